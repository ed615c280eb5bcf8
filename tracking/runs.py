"""A run as it lies on the tracking server, and the searches that find it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from prunescope.records import RunRef

__all__ = ["MANIFEST_TAG", "StoredRun", "filter_string"]

MANIFEST_TAG = "prunescope.manifest_sha256"
"""Tag of a run whose artifacts were all read back: the SHA-256 of its manifest."""


@dataclass(frozen=True)
class StoredRun:
    """A run's fields, without its artifacts."""

    ref: RunRef
    status: str
    """RUNNING, FINISHED, FAILED, KILLED or SCHEDULED."""
    started_at: datetime
    metrics: Mapping[str, float]
    params: Mapping[str, str]
    tags: Mapping[str, str]
    is_deleted: bool = False
    """Whether it is in MLflow's trash, where no search finds it."""

    @property
    def role(self) -> str | None:
        """``original`` or ``pruned``, None where nobody said."""
        return self.tags.get("prunescope.role")

    @property
    def model(self) -> str | None:
        """Short name of the model; None for a run that prunescope did not log."""
        return self.tags.get("prunescope.model")

    @property
    def method(self) -> str | None:
        """How it was pruned, None where nobody said."""
        return self.tags.get("prunescope.method")

    @property
    def baseline_run_id(self) -> str | None:
        """Run id of the original that it is compared with."""
        return self.tags.get("prunescope.baseline_run_id")

    @property
    def record_key(self) -> str | None:
        """Hash of everything that decides its numbers."""
        return self.tags.get("prunescope.record_key")

    @property
    def record_id(self) -> str | None:
        """Id of the evaluation that it stands for."""
        return self.tags.get("prunescope.record_id")

    @property
    def is_complete(self) -> bool:
        """Whether its record was sent to the end, and its artifacts were read back."""
        return self.status in ("FINISHED", "FAILED", "KILLED") and MANIFEST_TAG in self.tags


def filter_string(
    *,
    tags: Mapping[str, str | None],
    status: str | None = None,
    name: str | None = None,
    id_prefix: str | None = None,
    only_prunescope: bool = True,
) -> str | None:
    """MLflow's search language for all of these at once; what is None is not asked for.

    Returns:
        The filter, or None where no run can match (a value with both kinds of quotes, which the
        language cannot spell).
    """
    clauses = [("tags.`" + key + "`", "=", value) for key, value in tags.items()]
    clauses.append(("attributes.status", "=", status))
    clauses.append(("attributes.run_name", "=", name))
    clauses.append(("attributes.run_id", "LIKE", f"{id_prefix}%" if id_prefix else None))
    clauses.append(("tags.`prunescope.schema`", "LIKE", "%" if only_prunescope else None))
    spelled = []
    for field, comparator, value in clauses:
        if value is None:
            continue
        quote = '"' if "'" in value else "'"
        if quote in value:
            return None
        spelled.append(f"{field} {comparator} {quote}{value}{quote}")
    return " AND ".join(spelled)
