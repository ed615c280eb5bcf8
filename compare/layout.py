"""The plain building blocks of a report's tables."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Cell", "Table"]


@dataclass(frozen=True)
class Cell:
    """A piece of text, and whether it tells of something better or worse."""

    text: str
    better: bool | None = None


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
