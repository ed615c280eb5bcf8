"""Evaluations of a tiny model that faults are done to, and where their runs are looked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prunescope.records import read_record
from prunescope.tracking.runs import StoredRun
from prunescope.tracking.store import Store, open_store
from support.cli import SMALL
from support.forks import Command, Forks

__all__ = ["Bench", "lasting_metrics", "record_ids", "runs_of"]

_COUNTER = iter(range(1, 10_000))
_MEASURED_ANEW = ("time/", "tokens_per_s")


@dataclass
class Bench:
    """Starts evaluations of equal numbers and different keys, and looks for their runs."""

    forks: Forks
    model: Path
    server: str
    metrics: Mapping[str, float]
    """Of an undisturbed evaluation, but for the times."""
    seconds: float
    """How long that took."""

    def arguments(self, address: str | None = None) -> list[str]:
        """A command line of a new evaluation: the seed is part of the key and changes nothing."""
        where = ["--tracking-uri", address] if address else []
        seed = ["--seed", str(next(_COUNTER)), "--checkpoint-every", "0"]
        return ["eval", str(self.model), *SMALL, "--experiment", "faults", *seed, *where]

    def start(self, arguments: list[str], folder: Path) -> Command:
        """Start a command in ``folder``, made where it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        return self.forks.start(arguments, folder)

    def store(self, folder: Path, address: str | None = None) -> Store:
        """The embedded store of a folder, or the server's."""
        return open_store(address or self.server, root=folder / "mlruns")

    def is_undisturbed(self, run: StoredRun) -> bool:
        """Whether a run has exactly the numbers of an undisturbed evaluation."""
        return lasting_metrics(run) == self.metrics


def lasting_metrics(run: StoredRun) -> dict[str, float]:
    """The metrics of a run that are the same each time."""
    return {k: v for k, v in run.metrics.items() if not k.startswith(_MEASURED_ANEW)}


def record_ids(folder: Path) -> list[str]:
    """The ids of the records in a folder's ``mlruns/records``."""
    found = sorted((folder / "mlruns" / "records").glob("*/record.json"))
    return [read_record(path.parent).record_id for path in found]


def runs_of(store: Store, record_id: str) -> list[StoredRun]:
    """The runs of a record, finished or not."""
    return store.search(record_id=record_id, status=None)
