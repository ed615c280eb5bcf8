"""What the terminal shows: results on stdout, everything else on stderr."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from prunescope.errors import PrunescopeError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from prunescope.records import Stage

__all__ = ["TerminalProgress", "print_error", "stderr", "stdout"]


def stdout() -> Console:
    """The console that results go to."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


def stderr() -> Console:
    """The console for progress, notes and errors."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def print_error(error: PrunescopeError) -> None:
    """One line: what was expected, what was found, what to do."""
    from rich.text import Text

    text = " ".join(str(error).split())
    stderr().print(Text.assemble(("Error: ", "bold red"), text), soft_wrap=True)


class TerminalProgress:
    """A bar for each stage with the time left; silent where stderr is not a terminal."""

    def __init__(self) -> None:
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
            TextColumn("{task.fields[stage]:<10} {task.description:<16.16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
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

        self._console.print(Text(f"note: {message}"), style="yellow", soft_wrap=True)
