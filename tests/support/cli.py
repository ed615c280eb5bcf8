"""Running the command line inside the test process."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from prunescope.cli import app

ROWS = Path(__file__).parents[1] / "data" / "tasks"

SMALL = ["--data-dir", str(ROWS), "--seqlen", "64", "--limit", "4", "--device", "cpu"]
"""Options that make an evaluation of a tiny model take about a second."""


@dataclass(frozen=True)
class Finished:
    """What a command printed and how it ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def error_lines(self) -> list[str]:
        """The lines on stderr that are not empty."""
        return [line for line in self.stderr.splitlines() if line.strip()]


def run_cli(arguments: Sequence[str], cwd: Path) -> Finished:
    """Run ``prunescope`` with ``arguments`` as if from ``cwd``; an unexpected error is raised."""
    with contextlib.chdir(cwd):
        result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    return Finished(result.exit_code, result.stdout, result.stderr)
