"""From the name of a run to its record directory."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from prunescope.cli import options
from prunescope.errors import RunNotFoundError
from prunescope.records import EvalRecord, RunRef, read_record

if TYPE_CHECKING:
    from prunescope.tracking.store import Store, StoredRun

__all__ = ["Found", "RunFinder"]


@dataclass(frozen=True)
class Found:
    """A finished evaluation on this disk."""

    directory: Path
    record: EvalRecord
    run: RunRef | None
    """None for a record folder that the user named."""


class RunFinder:
    """Finds finished runs by name; opens the tracking store when a name first needs it.

    What it fetches from a server is there until its context ends.
    """

    def __init__(self, tracking_uri: str | None, root: Path = options.DEFAULT_ROOT) -> None:
        self._uri = tracking_uri
        self._root = root
        self._store: Store | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="prunescope-")
        self._fetched = 0

    def __enter__(self) -> RunFinder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._folder.cleanup()

    @property
    def store(self) -> Store:
        """The tracking store.

        Raises:
            TrackingError: it cannot be reached.
        """
        if self._store is None:
            from prunescope.tracking.store import open_store

            self._store = open_store(self._uri, root=self._root)
        return self._store

    def find(self, selector: str) -> Found:
        """The evaluation that a run id, name, ``latest:MODEL`` or record folder stands for.

        Raises:
            PrunescopeError: there is none, more than one, or it did not finish.
        """
        from prunescope.tracking.spool import is_record_directory

        folder = Path(selector)
        if is_record_directory(folder):
            return Found(folder, _finished(read_record(folder), selector), None)
        from prunescope.tracking.query import resolve_run

        run = resolve_run(self.store, selector)
        _finished(self.store.read_record(run), selector)
        self._fetched += 1
        into = Path(self._folder.name) / str(self._fetched)
        self.store.fetch(run, into, everything=True)
        return Found(into, read_record(into), run.ref)

    def read(self, selector: str) -> EvalRecord:
        """The record alone of what :meth:`find` finds.

        Raises:
            PrunescopeError: as for :meth:`find`.
        """
        from prunescope.tracking.query import resolve_run
        from prunescope.tracking.spool import is_record_directory

        folder = Path(selector)
        if is_record_directory(folder):
            return _finished(read_record(folder), selector)
        return _finished(self.store.read_record(resolve_run(self.store, selector)), selector)

    def find_baseline(self, pruned: Found, selector: str) -> Found:
        """The original that a run points at, in its tags or its record.

        Raises:
            PrunescopeError: it points at none, or at one that is not on this server.
        """
        run = self.baseline_run(pruned)
        if run is not None:
            return self.find(run.ref.run_id)
        known = _names_one(pruned.record)
        raise RunNotFoundError(
            f"the baseline of {selector} is not in {self.store.uri}"
            if known
            else f"{selector} has no baseline",
            hint="Name both runs: prunescope compare ORIGINAL PRUNED",
        )

    def baseline_run(self, pruned: Found) -> StoredRun | None:
        """The run of :meth:`find_baseline`; None where there is none.

        Raises:
            TrackingError: the store refuses.
        """
        from prunescope.tracking.baselines import Baselines

        if pruned.run is not None:
            run = self.store.get(pruned.run.run_id)
            return Baselines(self.store, self._root).of_run(run)
        if not _names_one(pruned.record):
            return None
        return Baselines(self.store, self._root).of_labels(pruned.record.labels)


def _names_one(record: EvalRecord) -> bool:
    from prunescope.tracking.baselines import names_baseline

    return record.labels.baseline_run_id is not None or names_baseline(record.labels.tags)


def _finished(record: EvalRecord, selector: str) -> EvalRecord:
    if record.status != "finished":
        why = f": {record.error.message}" if record.error else ""
        raise RunNotFoundError(
            f"expected a finished run, but {selector} is {record.status}{why}",
            hint="Run the evaluation again",
        )
    return record
