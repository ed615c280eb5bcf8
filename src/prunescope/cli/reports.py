"""Writing the files of a comparison."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prunescope.errors import OutputError

if TYPE_CHECKING:
    from prunescope.cli.console import Output
    from prunescope.compare.delta import Comparison

__all__ = ["check_output_dir", "write_reports"]


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


def write_reports(
    comparison: Comparison,
    output_dir: Path,
    formats: Sequence[str] = ("json", "md", "html"),
    *,
    output: Output,
) -> tuple[Path, ...]:
    """Files of the given formats into ``output_dir``; each is named on stderr.

    Returns:
        The files.
    """
    from prunescope.compare.report import write_comparison

    files = tuple(write_comparison(comparison, output_dir, formats).values())
    for path in files:
        output.note(f"wrote {path}")
    return files
