"""Write docs/cli.md from the ``--help`` of every command, or with ``--check`` tell if it is stale.

The text is what a terminal of 90 columns shows, without colours.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PATH = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
WIDTH = 90
HEADER = """# The commands

Generated from `--help` by `make docs-cli`; `make check` fails when it is stale.
"""


def plain_terminal() -> None:
    """Make help the same wherever it is written; must run before typer is imported."""
    for name in list(os.environ):
        if name.startswith(("LC_", "LANG", "PRUNESCOPE_", "MLFLOW_", "HF_")):
            del os.environ[name]
    for name in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"):
        os.environ.pop(name, None)
    os.environ.update(TERMINAL_WIDTH=str(WIDTH), COLUMNS=str(WIDTH), NO_COLOR="1", TERM="dumb")


def command_paths() -> list[tuple[str, ...]]:
    """The words that call each command which is not hidden, parents first, without the program."""
    from typer.main import get_command

    from prunescope.cli import app

    def walk(words: tuple[str, ...], command: Any) -> Iterator[tuple[str, ...]]:
        yield words
        for name, child in getattr(command, "commands", {}).items():
            if not child.hidden:
                yield from walk((*words, name), child)

    return list(walk((), get_command(app)))


def help_text(words: tuple[str, ...]) -> str:
    """What ``prunescope WORDS --help`` prints."""
    from typer.testing import CliRunner

    from prunescope.cli import app

    result = CliRunner().invoke(app, [*words, "--help"], prog_name="prunescope")
    if result.exit_code:
        raise RuntimeError(f"{' '.join(words)} --help failed: {result.output}")
    lines = [line.rstrip() for line in result.output.splitlines()]
    return "\n".join(lines).strip("\n")


def render() -> str:
    """The whole of docs/cli.md."""
    paths = command_paths()
    titles = [" ".join(("prunescope", *words)) for words in paths]
    contents = "\n".join(f"- [{title}](#{title.replace(' ', '-')})" for title in titles)
    sections = (
        f"## {title}\n\n```text\n{help_text(words)}\n```\n"
        for title, words in zip(titles, paths, strict=True)
    )
    return "\n".join((HEADER, contents + "\n", *sections))


def main() -> int:
    """Write the file; with ``--check`` compare it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 when the file is stale")
    options = parser.parse_args()
    plain_terminal()
    text = render()
    if options.check:
        if PATH.is_file() and PATH.read_text(encoding="utf-8") == text:
            return 0
        print("docs/cli.md is stale: run `make docs-cli`", file=sys.stderr)
        return 1
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
