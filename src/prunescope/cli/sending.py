"""Sending this machine's records to a tracking server, each behind its baseline."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from prunescope.errors import PrunescopeError, RecordError, RunNotFoundError
from prunescope.records import EvalRecord, RunRef, read_record

if TYPE_CHECKING:
    from prunescope.tracking.store import Store, StoredRun

__all__ = ["LocalRecord", "Sender", "ended_records", "in_order"]


@dataclass(frozen=True)
class LocalRecord:
    """An evaluation that has ended, in a folder on this machine."""

    directory: Path
    record: EvalRecord
    runs: tuple[RunRef, ...]
    """What it was sent as, one a server."""

    def is_on(self, uri: str) -> bool:
        """Whether it was sent whole to the store at ``uri``, as :attr:`Store.uri` gives it."""
        return any(run.tracking_uri == uri for run in self.runs)


def ended_records(
    root: Path, *, unless_on: str | None = None
) -> Iterator[LocalRecord | RecordError]:
    """The evaluations under ``root`` that have ended; for a damaged one, what is wrong with it.

    Args:
        root: folder of the records, normally ``./mlruns``.
        unless_on: leaves out, unread, what was sent to this store before.
    """
    from prunescope.tracking.spool import list_records, uploaded_to

    for directory in list_records(root):
        runs = tuple(uploaded_to(directory))
        if unless_on is not None and any(run.tracking_uri == unless_on for run in runs):
            continue
        try:
            record = read_record(directory)
        except RecordError as problem:
            yield problem
            continue
        if record.status != "running":
            yield LocalRecord(directory, record, runs)


def in_order(records: Sequence[LocalRecord], baselines: dict[str, str]) -> list[LocalRecord]:
    """The records, each behind its baseline where that is among them.

    Args:
        records: in any order.
        baselines: for a record's id, its baseline's.
    """
    by_id = {one.record.record_id: one for one in records}
    done: dict[str, LocalRecord] = {}
    for record_id in by_id:
        chain: list[str] = []
        step: str | None = record_id
        while step in by_id and step not in done and step not in chain:
            chain.append(step)
            step = baselines.get(step)
        done |= {one: by_id[one] for one in reversed(chain)}
    return list(done.values())


@dataclass
class Sender:
    """Sends records to one store.

    A run's id differs from store to store, so a record whose baseline is known here by another
    id is sent as a copy that points at the baseline's run there.
    """

    root: Path
    store: Store
    """Where records go."""
    experiment: str | None = None
    """None keeps the name that a record's run has elsewhere."""
    source: Store | None = None
    """Where records were sent first, which may know baselines that this machine does not have."""
    _record_ids: dict[str, str] = field(default_factory=dict)
    """For a run's id, on any server, its record's."""

    def arrange(self, records: Sequence[LocalRecord]) -> list[LocalRecord]:
        """The records in the order in which to send them.

        Pruned models come last: some know their baseline by name alone, and it may be among these.
        """
        records = sorted(records, key=lambda one: one.record.labels.role == "pruned")
        for one in ended_records(self.root):
            if isinstance(one, LocalRecord):
                self._record_ids |= {run.run_id: one.record.record_id for run in one.runs}
        known = {
            one.record.record_id: self._baseline_of(one.record, self._named(one)) for one in records
        }
        return in_order(records, {key: value for key, value in known.items() if value})

    def run_of(self, record_id: str) -> StoredRun | None:
        """The complete run of a record in the store.

        Raises:
            TrackingError: the store refuses.
        """
        found = self.store.search(record_id=record_id, status=None)
        return next((run for run in found if run.is_complete), None)

    def send(self, one: LocalRecord) -> RunRef:
        """Send a record, and its baseline first where only :attr:`source` has that.

        Raises:
            RecordError: the record is damaged.
            TrackingError: the store refuses.
        """
        from prunescope.tracking.history.bundle import relinked
        from prunescope.tracking.spool import mark_uploaded

        baseline = self._named(one)
        if baseline is None or self._has(baseline):
            return self._publish(one.directory, self._experiment(one))
        baseline_id = self._baseline_of(one.record, baseline)
        with self._scratch() as folder:
            copy = folder / one.directory.name
            shutil.copytree(one.directory, copy, ignore=shutil.ignore_patterns(".*"))
            relinked(copy, one.record, baseline_id, self._baseline_run(baseline, baseline_id))
            run = self._publish(copy, self._experiment(one))
        mark_uploaded(one.directory, run)
        return run

    def _baseline_run(self, run_id: str, record_id: str | None) -> str | None:
        """The baseline's run in the store; it is copied from :attr:`source` where need be."""
        if record_id is None:
            return None
        known = self.run_of(record_id)
        if known is None and self.source is not None:
            with contextlib.suppress(RunNotFoundError), self._scratch() as folder:
                run = self.source.get(run_id)
                self.source.fetch(run, folder, everything=True)
                record = read_record(folder)
                there = self.source.experiment_name(run.ref.experiment_id)
                return self._send_fetched(folder, record, there)
        return known.ref.run_id if known is not None else None

    def _send_fetched(self, folder: Path, record: EvalRecord, experiment: str) -> str:
        from prunescope.tracking.history.bundle import relinked

        if record.labels.baseline_run_id is not None:
            baseline = self._baseline_of(record, record.labels.baseline_run_id)
            relinked(folder, record, baseline, None)
        return self._publish(folder, self.experiment or experiment).run_id

    def _publish(self, directory: Path, experiment: str | None) -> RunRef:
        from prunescope.cli.publishing import Tracker, publish

        outcome = publish(directory, Tracker(self.root, self.store, experiment))
        if outcome.problem is not None:
            raise outcome.problem
        assert outcome.run is not None
        return outcome.run

    def _has(self, run_id: str) -> bool:
        try:
            self.store.get(run_id)
        except RunNotFoundError:
            return False
        return True

    def _named(self, one: LocalRecord) -> str | None:
        """The run that a record is compared with; :attr:`source` may know one since it was sent."""
        named = one.record.labels.baseline_run_id
        source = self.source
        if named is None and source is not None and one.record.labels.role != "original":
            sent = [run.run_id for run in one.runs if run.tracking_uri == source.uri]
            with contextlib.suppress(PrunescopeError):
                named = source.get(sent[0]).baseline_run_id if sent else None
        return named

    def _baseline_of(self, record: EvalRecord, run_id: str | None) -> str | None:
        """The record id of a record's baseline, the run ``run_id``, where any place knows it."""
        from prunescope.tracking.history.bundle import BASELINE_TAG

        if run_id is not None and run_id not in self._record_ids and self.source is not None:
            with contextlib.suppress(PrunescopeError):
                self._record_ids[run_id] = self.source.get(run_id).record_id or ""
        return self._record_ids.get(run_id or "") or record.labels.tags.get(BASELINE_TAG)

    def _experiment(self, one: LocalRecord) -> str | None:
        if self.experiment is None and self.source is not None:
            for run in one.runs:
                if run.tracking_uri == self.source.uri:
                    return self.source.experiment_name(run.experiment_id)
        return self.experiment

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="prunescope-") as folder:
            yield Path(folder)
