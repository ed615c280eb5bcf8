"""Everything that prunescope raises on purpose.

PrunescopeError             a mistake that the user can mend; exit code 2
├── ModelError              a checkpoint or tokenizer that cannot be read
├── DataError               task rows or a corpus that cannot be had
├── TaskError               a task that lm-eval does not know or cannot run
├── SettingError            an option out of range, or a device that is absent
├── RecordError             a record that is missing, damaged or too new
├── RunNotFoundError        no run, or more than one, answers to a name
├── TrackingError           the tracking server cannot be reached or refuses
└── OutputError             a folder that cannot be written
"""

from __future__ import annotations

from prunescope.redaction import redact

__all__ = [
    "DataError",
    "ModelError",
    "OutputError",
    "PrunescopeError",
    "RecordError",
    "RunNotFoundError",
    "SettingError",
    "TaskError",
    "TrackingError",
]


class PrunescopeError(Exception):
    """A mistake that the user can mend.

    The command line prints it as one line without a traceback and exits with code 2. Passwords
    and tokens are taken out of its text.

    Args:
        message: what was expected and what was found, as one sentence without a full stop.
        hint: what to do about it, as one sentence without a full stop.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = redact(message)
        self.hint = redact(hint) if hint else None
        super().__init__(f"{self.message}. {self.hint}." if self.hint else f"{self.message}.")


class ModelError(PrunescopeError):
    """A checkpoint or tokenizer that cannot be found or read."""


class DataError(PrunescopeError):
    """Task rows or a perplexity corpus that cannot be had or fail their check."""


class TaskError(PrunescopeError):
    """A task that lm-eval does not know or cannot run."""


class SettingError(PrunescopeError):
    """An option that is out of range, or a device that is absent."""


class RecordError(PrunescopeError):
    """A record that is missing, damaged or written by a newer schema."""


class RunNotFoundError(PrunescopeError):
    """No run, or more than one, answers to a name."""


class TrackingError(PrunescopeError):
    """The tracking server cannot be reached, or refuses."""


class OutputError(PrunescopeError):
    """A folder or file that cannot be written."""
