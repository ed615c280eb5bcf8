"""The terminal table fits 80 columns, and shows all columns where there is room."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from support.records import write_example

from prunescope.compare.analysis import compare_directories
from prunescope.compare.report import terminal_report


@pytest.mark.parametrize(("width", "spare"), [(80, False), (160, True)])
def test_the_statistics_fit_the_terminal(tmp_path: Path, width: int, spare: bool) -> None:
    write_example(tmp_path / "a", "original")
    write_example(tmp_path / "b", "pruned")
    comparison = compare_directories(tmp_path / "a", tmp_path / "b")
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(terminal_report(comparison))
    lines = [line.rstrip() for line in capture.get().splitlines()]
    assert max(len(line) for line in lines) <= width
    header = next(line for line in lines if "Verdict" in line)
    assert ("Detectable" in header) is spare
    assert any("Detectable" in line for line in lines) is spare
    rows = [line for line in lines if line.startswith("arc_challenge ")]
    assert len(rows) == 3  # accuracies, their differences, the divergence of the choices
    assert rows[1].split()[-1] in ("worse", "better", "same", "unclear")
