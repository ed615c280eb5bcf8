"""Records as they may be written down: what the user or a library said, without secrets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunescope.records.config import Labels
from prunescope.records.results import EvalRecord
from prunescope.redaction import redact

__all__ = ["without_secrets"]


def without_secrets(record: EvalRecord) -> EvalRecord:
    """The record with tokens and passwords removed from all text that is free.

    That is what the user typed (the model's address, labels, tags) and what was caught or noted
    on the way (the error, notes, alarms, the command line). Figures, hashes, and the names of
    tasks and tensors stay. A record without secrets is returned as it is.
    """
    changes: dict[str, Any] = {
        "labels": _changed(record.labels),
        "model": _changed(record.model, "requested", "name", "path", "hub_id", "adapter_of"),
        "provenance": _changed(record.provenance, "command", "data_source", "notes"),
        "error": record.error and _changed(record.error, "message"),
        "alarms": tuple(_changed(alarm, "message") for alarm in record.alarms),
        "broken": tuple(_changed(one, "where", "what") for one in record.broken),
        "divergence": {
            corpus: _changed(one, "reference_name") for corpus, one in record.divergence.items()
        },
    }
    found = record.model_copy(update=changes)
    return record if found == record else found


def _changed(value: Any, *names: str) -> Any:
    """A model with the text of these fields redacted; of labels, which are all the user's, any."""
    names = ("method", "run_name", "tags") if isinstance(value, Labels) else names
    return value.model_copy(update={name: _redacted(getattr(value, name)) for name in names})


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact(key): redact(text) for key, text in value.items()}
    return tuple(redact(text) for text in value) if isinstance(value, tuple) else value
