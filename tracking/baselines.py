"""Which run is a run's original: what it says itself, or what this machine remembers.

A run's id differs from store to store, and an original may arrive after what was pruned from it.
So a baseline is looked for by its run id, then by the id of its record, then through what this
machine sent where.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from prunescope.errors import RecordError, RunNotFoundError
from prunescope.records import Labels, read_record
from prunescope.tracking.history.bundle import BASELINE_TAG
from prunescope.tracking.query import model_name, resolve_original
from prunescope.tracking.runs import StoredRun
from prunescope.tracking.spool import list_records, uploaded_to

if TYPE_CHECKING:
    from prunescope.tracking.store import Store

__all__ = ["WANTED_TAG", "Baselines", "later_tags", "names_baseline"]

WANTED_TAG = "prunescope.baseline"
"""What ``--baseline`` said while no server could tell which run that is."""


def later_tags(root: Path, wanted: str) -> dict[str, str]:
    """What to note in a record whose baseline has to be found later.

    Args:
        root: holds this machine's records.
        wanted: a run's id or name, ``latest:MODEL``, a model, or a record's id.
    """
    model = model_name(wanted.removeprefix("latest:"))
    found = []
    for directory in list_records(root):
        with contextlib.suppress(RecordError):
            record = read_record(directory)
            runs = uploaded_to(directory)
            names = {record.record_id, record.model.name, *(run.run_id for run in runs)}
            names |= {run.run_name for run in runs}
            if record.status == "finished" and names & {wanted, model}:
                found.append((wanted == record.record_id, record.started_at, record.record_id))
    return {WANTED_TAG: wanted} | ({BASELINE_TAG: max(found)[2]} if found else {})


def names_baseline(tags: Mapping[str, str]) -> bool:
    """Whether a run's tags, or its record's, name a baseline, be it on this server or not."""
    return any(tag in tags for tag in ("prunescope.baseline_run_id", BASELINE_TAG, WANTED_TAG))


class Baselines:
    """Finds the originals of a store's runs; reads this machine's records once, where need be."""

    def __init__(self, store: Store, root: Path) -> None:
        """Look in ``store``, and in the records under the folder ``root``."""
        self._store = store
        self._root = root

    def of_run(self, run: StoredRun) -> StoredRun | None:
        """The finished run that ``run`` is to be compared with; None where none is known.

        Raises:
            TrackingError: the store refuses.
        """
        found = self._find(run.baseline_run_id, run.tags)
        if found is None and (directory := self._sent.get(run.ref.run_id)) is not None:
            # It may have been sent as a copy that does not name a run of another server.
            with contextlib.suppress(RecordError):
                found = self.of_labels(read_record(directory).labels)
        return found if found is None or found.ref.run_id != run.ref.run_id else None

    def of_labels(self, labels: Labels) -> StoredRun | None:
        """The finished run that a record's labels name; None where this store does not have it.

        Raises:
            TrackingError: the store refuses.
        """
        return self._find(labels.baseline_run_id, labels.tags)

    def of_record(self, directory: Path) -> StoredRun | None:
        """The original of a record that is about to be sent, perhaps not for the first time.

        Raises:
            RecordError: the record is damaged.
            TrackingError: the store refuses.
        """
        record = read_record(directory)
        if (found := self.of_labels(record.labels)) is not None or not uploaded_to(directory):
            return found
        # Its run may have got a baseline after it was sent.
        known = self._store.search(record_id=record.record_id, limit=1)
        return self.of_run(known[0]) if known and known[0].baseline_run_id else None

    def _find(self, run_id: str | None, tags: Mapping[str, str]) -> StoredRun | None:
        record_id = tags.get(BASELINE_TAG)
        if run_id is not None:
            with contextlib.suppress(RunNotFoundError):
                run = self._store.get(run_id)
                if not run.is_deleted:
                    return _finished(run)
                record_id = run.record_id  # which may have been sent again
            record_id = record_id or self._record_of(run_id)
        if record_id is not None:
            return next(iter(self._store.search(record_id=record_id, limit=1)), None)
        if wanted := tags.get(WANTED_TAG):
            with contextlib.suppress(RunNotFoundError):
                return resolve_original(self._store, wanted)
        return None

    def _record_of(self, run_id: str) -> str | None:
        """The record that was sent as this run, to whatever server."""
        if (directory := self._sent.get(run_id)) is not None:
            with contextlib.suppress(RecordError):
                return read_record(directory).record_id
        return None

    @cached_property
    def _sent(self) -> dict[str, Path]:
        """For the id of a run, on any server, the record directory that was sent as it."""
        return {
            run.run_id: directory
            for directory in list_records(self._root)
            for run in uploaded_to(directory)
        }


def _finished(run: StoredRun) -> StoredRun | None:
    return run if run.status == "FINISHED" else None
