"""What a check found, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from prunescope.errors import PrunescopeError
from prunescope.redaction import redact

__all__ = ["Check", "Status", "checked", "worst"]

Status = Literal["ok", "warning", "problem", "skipped"]
"""``problem``: something that was asked for cannot work; ``warning``: it can, with a limit."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Status
    found: str
    """What is there, as one sentence without a full stop."""
    to_do: str = ""
    """What to do about it; empty where all is well."""

    def __post_init__(self) -> None:
        # A mirror's address or a library's words may hold a password.
        object.__setattr__(self, "found", redact(self.found))
        object.__setattr__(self, "to_do", redact(self.to_do))


def checked(name: str, check: Callable[[], Iterable[Check]]) -> tuple[Check, ...]:
    """Run a check; an error becomes a problem, so that the other checks run all the same.

    Args:
        name: what the check is called where it fails.
        check: is called without arguments.
    """
    try:
        return tuple(check())
    except PrunescopeError as error:
        found = (Check(name, "problem", _one_line(error.message), _one_line(error.hint or "")),)
    except Exception as error:  # whatever is broken, the doctor tells it and goes on
        what = f"{type(error).__name__}: {_one_line(str(error))}".rstrip(": ")
        found = (Check(name, "problem", f"the check itself failed with {what}", _REPORT),)
    return found


_REPORT = "Look into what it names; if that is in order, report this as a bug of prunescope"


def worst(checks: Iterable[Check]) -> Status:
    """``problem`` where there is one, else ``warning`` where there is one, else ``ok``."""
    found = {check.status for check in checks}
    order: tuple[Status, ...] = ("problem", "warning")
    return next((status for status in order if status in found), "ok")


def _one_line(text: str) -> str:
    return " ".join(text.split())
