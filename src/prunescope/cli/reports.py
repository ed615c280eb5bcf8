"""Printing a comparison and writing its files."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prunescope.errors import OutputError

if TYPE_CHECKING:
    from prunescope.compare.delta import Comparison

__all__ = ["check_output_dir", "print_and_write"]


def check_output_dir(folder: Path) -> None:
    """Make the folder, and try to write into it before any work is done.

    Raises:
        OutputError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"cannot write reports into {folder}: {error.strerror or error}",
            hint="Name another folder with --output-dir",
        ) from error


def print_and_write(
    comparison: Comparison, output_dir: Path, formats: Sequence[str] = ("json", "md", "html")
) -> tuple[Path, ...]:
    """The delta table on stdout; files of the given formats into ``output_dir``.

    Returns:
        The files.
    """
    from prunescope.cli.console import stderr, stdout
    from prunescope.compare.report import terminal_report, write_comparison

    stdout().print(terminal_report(comparison))
    files = tuple(write_comparison(comparison, output_dir, formats).values())
    for path in files:
        stderr().print(f"wrote {path}", soft_wrap=True)
    return files
