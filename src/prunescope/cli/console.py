"""What the terminal shows: results on stdout, everything else on stderr."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

from prunescope.errors import PrunescopeError
from prunescope.redaction import redact

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.progress import Progress as Bars
    from rich.progress import TaskID
    from rich.segment import Segment

    from prunescope.records import Stage

__all__ = ["Output", "TerminalProgress", "print_error", "stderr", "stdout"]

_UNBROKEN = 10_000
"""Columns of a console that breaks no line."""


def stdout() -> Console:
    """The console that results go to."""
    return _console(stderr=False)


def stderr() -> Console:
    """The console for progress, notes and errors."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    """A console that shows text as it is: no markup, no emoji, nothing that a terminal obeys.

    In a pipe or file, each row of a table stays one line, unless COLUMNS says how wide.
    """
    from rich.console import Console

    from prunescope.plain import printable

    class Plain(Console):
        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterable[Segment]:
            for part in super().render(renderable, options):
                shown = part.text if part.control else printable(part.text)
                yield part if shown == part.text else part._replace(text=shown)

    made = Plain(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = _UNBROKEN
    return made


def print_error(error: PrunescopeError) -> None:
    """One line: what was expected, what was found, what to do."""
    from rich.text import Text

    text = " ".join(str(error).split())
    stderr().print(Text.assemble(("Error: ", "bold red"), text), soft_wrap=True)


@dataclass(frozen=True)
class Output:
    """How a command answers: for a person, as JSON (``--json``), or in a line (``--quiet``).

    Results go to stdout, all else to stderr. Of ``--quiet`` warnings are left; with ``--json``
    besides, stdout has the document all the same.
    """

    as_json: bool = False
    quiet: bool = False

    def show(
        self,
        table: Callable[[], RenderableType | list[RenderableType]],
        *,
        document: Callable[[], Any],
        essential: Callable[[], str | Iterable[str]],
        columns: int = 0,
    ) -> None:
        """Print the result in the one form that was asked for; the others are not made.

        Args:
            table: what a person reads, one or several renderables; plain strings are lines.
            document: what ``json.dumps`` takes; NaN and infinities become null.
            essential: what a script goes on with; several are printed one a line.
            columns: what a table needs at least, however narrow the terminal.
        """
        if self.as_json:
            _print_json(document())
        elif self.quiet:
            found = essential()
            _print_parts((found,) if isinstance(found, str) else found)
        else:
            shown = table()
            _print_parts(shown if isinstance(shown, list | tuple) else (shown,), columns)

    def line(self, text: str) -> None:
        """A line of a result that comes bit by bit; none with ``--json`` or ``--quiet``."""
        if not (self.as_json or self.quiet):
            stdout().print(_line(text), soft_wrap=True)

    def note(self, text: str) -> None:
        """A line on stderr that a person may want to know; none with ``--quiet``."""
        if not self.quiet:
            stderr().print(_line(text), soft_wrap=True)

    def warn(self, text: str, style: str = "bold yellow") -> None:
        """A line on stderr that matters, whatever was asked for."""
        stderr().print(_line(text), soft_wrap=True, style=style)

    def progress(self) -> TerminalProgress:
        """Bars on stderr; none with ``--quiet``, or where stderr is not a terminal."""
        return TerminalProgress(silent=self.quiet)


def _line(text: str) -> str:
    """What is told in a line, whatever names are in it: without secrets and line breaks."""
    return " ".join(redact(text).splitlines())


def _print_parts(parts: Iterable[RenderableType], columns: int = 0) -> None:
    import typer

    for part in parts:
        console = stdout()
        console.width = max(console.width, columns)
        plain = isinstance(part, str)  # a line as it is, which the terminal may break
        if console.is_terminal:
            console.print(part, soft_wrap=plain)
            continue
        with console.capture() as captured:
            console.print(part, soft_wrap=plain)
        lines = captured.get().split("\n")
        typer.echo("\n".join(line.rstrip() for line in lines), nl=False)


def _print_json(value: Any) -> None:
    """One JSON document on stdout, in strict JSON: figures that are not finite become null."""
    import json

    import typer

    from prunescope.plain import visible_json

    text = json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False)
    typer.echo(visible_json(text))


def _finite(value: Any) -> Any:
    import math

    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value


class TerminalProgress:
    """A bar for each stage with the time left; silent where stderr is not a terminal."""

    def __init__(self, *, silent: bool = False) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._console = stderr()
        self._bars: Bars = Progress(
            TextColumn("{task.fields[stage]:<10} {task.description:<16.16}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            # FORCE_COLOR makes any file a terminal to rich; a log has no use for bars.
            disable=silent or not (self._console.is_terminal and self._console.file.isatty()),
        )
        self._open: list[TaskID] = []

    def __enter__(self) -> TerminalProgress:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def start(self, stage: Stage, description: str, total: float | None) -> None:
        """Draw a new bar."""
        self._open.append(self._bars.add_task(description, total=total, stage=stage))

    def advance(self, amount: float) -> None:
        """Move the newest bar."""
        if self._open:
            self._bars.advance(self._open[-1], amount)

    def finish(self) -> None:
        """Fill the newest bar."""
        if self._open:
            bar = self._open.pop()
            task = self._bars.tasks[bar]
            total = task.total if task.total is not None else max(task.completed, 1)
            self._bars.update(bar, total=total, completed=total)

    def say(self, message: str) -> None:
        """A note above the bars."""
        from rich.text import Text

        self._console.print(Text(_line(f"note: {message}")), style="yellow", soft_wrap=True)
