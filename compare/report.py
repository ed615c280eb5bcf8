"""Reports of comparisons and runs, for the terminal, for sharing and for other programs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from prunescope.compare.delta import Comparison
from prunescope.compare.export import json_report, json_text, timestamp
from prunescope.compare.formats import csv_report, latex_report
from prunescope.compare.html import html_report, run_report_html
from prunescope.compare.markdown import (
    headline,
    markdown_report,
    run_note,
    run_report_markdown,
)
from prunescope.compare.terminal import plain_report, plain_table, terminal_report
from prunescope.errors import OutputError, SettingError
from prunescope.records import write_file

__all__ = [
    "FORMATS",
    "csv_report",
    "headline",
    "html_report",
    "json_report",
    "json_text",
    "latex_report",
    "markdown_report",
    "plain_report",
    "plain_table",
    "run_note",
    "run_report_html",
    "run_report_markdown",
    "terminal_report",
    "write_comparison",
]


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "json": json_text,
    "md": markdown_report,
    "html": html_report,
    "csv": csv_report,
    "tex": latex_report,
}
"""File name suffix -> what writes it."""


def write_comparison(
    comparison: Comparison, output_dir: Path, formats: Sequence[str] = ("json", "md", "html")
) -> dict[str, Path]:
    """Write ``comparison_YYYYMMDD_HHMMSS`` as ``.json``, ``.md`` and ``.html``.

    Earlier files are never overwritten: a second comparison of the same second is called
    ``comparison_YYYYMMDD_HHMMSS_2``. All files are written, or none.

    Args:
        comparison: what to write.
        output_dir: made where it does not exist.
        formats: which of :data:`FORMATS`.

    Returns:
        Format -> the file.

    Raises:
        OutputError: the folder cannot be made or written.
        SettingError: a format is not known.
    """
    if unknown := sorted(set(formats) - set(FORMATS)):
        known = ", ".join(FORMATS)
        raise SettingError(f"unknown report format {', '.join(unknown)}; expected {known}")
    texts = {name: FORMATS[name](comparison) for name in formats}
    stem = _reserve(output_dir, f"comparison_{timestamp(comparison)}", list(texts))
    paths = {suffix: output_dir / f"{stem}.{suffix}" for suffix in texts}
    try:
        for suffix, text in texts.items():
            write_file(paths[suffix], text)
    except OutputError:
        for path in paths.values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        raise
    return paths


def _reserve(folder: Path, stem: str, suffixes: list[str]) -> str:
    """Claim the first free name by creating its first file, so that two processes never share
    one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            name = stem if number == 1 else f"{stem}_{number}"
            number += 1
            if any((folder / f"{name}.{suffix}").exists() for suffix in suffixes):
                continue
            with contextlib.suppress(FileExistsError):
                os.close(os.open(folder / f"{name}.{suffixes[0]}", os.O_CREAT | os.O_EXCL))
                return name
    except OSError as error:
        raise OutputError(
            f"cannot write into {folder}: {error.strerror or error}",
            hint="Choose another folder with --output-dir",
        ) from error
