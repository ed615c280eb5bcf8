"""The plain building blocks of a report's tables."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from prunescope.plain import printable

__all__ = ["Cell", "Table", "spreadsheet_safe"]


@dataclass(frozen=True)
class Cell:
    """A piece of text, and whether it tells of something better or worse."""

    text: str
    better: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", printable(self.text))


@dataclass(frozen=True)
class Table:
    """Rows of text under a header: columns of words first, then columns of figures."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    strong: frozenset[int] = frozenset()
    """Rows that sum up the others."""
    words: int = 1
    """How many columns are words; the others are figures, aligned right where it helps."""
    caption: str = ""
    """What a reader needs to know to read it."""
    spare: tuple[int, ...] = ()
    """Columns that a narrow terminal leaves out, the first of these first."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "header", tuple(printable(text) for text in self.header))

    def without(self, column: int) -> Table:
        """The table without one of its columns."""
        return replace(
            self,
            header=_drop(self.header, column),
            rows=tuple(_drop(row, column) for row in self.rows),
            words=self.words - (column < self.words),
            spare=tuple(c - (c > column) for c in self.spare if c != column),
        )


_Item = TypeVar("_Item")


def _drop(row: tuple[_Item, ...], column: int) -> tuple[_Item, ...]:
    return (*row[:column], *row[column + 1 :])


def spreadsheet_safe(text: str) -> str:
    """Text of a CSV cell, printable, that no spreadsheet takes for a formula.

    What might be one gets an apostrophe in front.

    Full-width signs and leading white space count, which some spreadsheets pass over.
    """
    text = printable(text)
    start = text.lstrip()[:1]
    risky = text[:1] in ("\t", "\n") or start in tuple("=+-@\uff1d\uff0b\uff0d\uff20")
    return "'" + text if risky else text
