"""How a long evaluation tells what it is doing, without knowing who listens."""

from __future__ import annotations

from typing import Protocol

from prunescope.records import Stage

__all__ = ["Progress", "SilentProgress"]


class Progress(Protocol):
    """What a listener offers. The command line draws bars; tests and libraries stay silent."""

    def start(self, stage: Stage, description: str, total: float | None) -> None:
        """A piece of work begins; ``total`` is in steps of its own (tokens, bytes, requests)."""

    def advance(self, amount: float) -> None:
        """``amount`` of the total is done."""

    def finish(self) -> None:
        """The piece of work that began last has ended."""

    def say(self, message: str) -> None:
        """Something happened that the user should know, for example a halved batch."""


class SilentProgress:
    """Listens to everything and keeps only what was said, for the record's notes."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def start(self, stage: Stage, description: str, total: float | None) -> None:
        """Nothing to draw."""

    def advance(self, amount: float) -> None:
        """Nothing to draw."""

    def finish(self) -> None:
        """Nothing to draw."""

    def say(self, message: str) -> None:
        """Keep ``message``."""
        self.said.append(message)
