"""What came of each fault, as one table."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Ledger", "Row", "read_table"]

_HEAD = (
    "| fault | evaluations started | on the server at once | in the end | doubled "
    "| metrics as undisturbed | seconds lost, at most |",
    "|---|---:|---:|---:|---:|---|---:|",
)


@dataclass(frozen=True)
class Row:
    """One fault."""

    fault: str
    started: int
    at_once: int
    """Runs that are complete on the server when the commands have ended."""
    in_the_end: int
    """The same after the fault was mended and the command or ``sync`` was run again."""
    doubled: int
    equal: bool
    lost: float | None = None
    """The longest that an evaluation took beyond an undisturbed one, seconds."""

    def line(self) -> str:
        """Its line of a Markdown table."""
        lost = "" if self.lost is None else f"{max(self.lost, 0.0):.0f}"
        equal = "yes" if self.equal else "NO"
        numbers = f"{self.started} | {self.at_once} | {self.in_the_end} | {self.doubled}"
        return f"| {self.fault} | {numbers} | {equal} | {lost} |"


class Ledger:
    """Collects rows in the file that ``PRUNESCOPE_FAULTS_FILE`` names, where it names one."""

    def __init__(self) -> None:
        name = os.environ.get("PRUNESCOPE_FAULTS_FILE")
        self._path = Path(name) if name else None

    def add(self, row: Row) -> None:
        """Write a row down, and demand of it that nothing was lost or doubled."""
        if self._path is not None:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(row)) + "\n")
        assert row.in_the_end == row.started, row
        assert row.doubled == 0, row
        assert row.equal, row
        assert row.lost is None or row.lost <= 15, row


def read_table(path: Path) -> str:
    """The rows of a file as a Markdown table, with their sum."""
    rows = [Row(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    total = Row(
        f"**all {len(rows)}**",
        sum(row.started for row in rows),
        sum(row.at_once for row in rows),
        sum(row.in_the_end for row in rows),
        sum(row.doubled for row in rows),
        all(row.equal for row in rows),
        max((row.lost for row in rows if row.lost is not None), default=None),
    )
    return "\n".join([*_HEAD, *(row.line() for row in rows), total.line()])
