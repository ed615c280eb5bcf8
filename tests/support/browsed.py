"""A tracking server's runs as people browse them: an original, three pruned models, an import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prunescope.cli.publishing import Baseline, Tracker, publish
from prunescope.evaluate.sparsity import write_pictures
from prunescope.records import EvalRecord, RunRef, read_tensors, write_record
from prunescope.tracking.store import open_store
from support.cli import run_cli
from support.legacy import LEGACY_FILE
from support.records import EXAMPLES, Example, write_example

__all__ = ["EXPERIMENT", "Browsed", "fill", "send_example"]

EXPERIMENT = "llama pruning"

_PRUNED = (
    Example(
        "SmolLM2-135M-wanda-30",
        "f" * 32,
        sparsity=0.3,
        noise=0.7,
        role="pruned",
        method="wanda",
        minutes=15,
    ),
    EXAMPLES["pruned"],
    Example(
        "SmolLM2-135M-sparsegpt-70",
        "9" * 32,
        sparsity=0.7,
        noise=4.0,
        role="pruned",
        method="sparsegpt",
        minutes=25,
    ),
)


@dataclass(frozen=True)
class Browsed:
    """The runs of one experiment on a server."""

    address: str
    experiment_id: str
    table_url: str
    """What ``eval``, ``compare`` and ``ui`` print."""
    original: RunRef
    pruned: tuple[RunRef, ...]
    """In the order of their sparsity."""
    imported: tuple[RunRef, ...]
    records: dict[str, EvalRecord]
    """Run id -> what it was made from."""
    examples: tuple[Example, ...] = (EXAMPLES["original"], *_PRUNED)
    """What ``original`` and ``pruned`` were made from."""


def fill(address: str, folder: Path) -> Browsed:
    """Send five runs to the server at ``address``, as ``eval`` and ``import`` do.

    Args:
        address: of an MLflow server.
        folder: where the record directories are written.
    """
    store = open_store(address, root=folder)
    tracker = Tracker(folder, store, EXPERIMENT)
    original, record = send_example(tracker, folder / "original", EXAMPLES["original"], None)
    records = {original.run_id: record}
    baseline = Baseline(original, folder / "original")
    pruned = []
    for which in _PRUNED:
        ref, record = send_example(tracker, folder / which.name, which, baseline)
        pruned.append(ref)
        records[ref.run_id] = record
    command = ["import", str(LEGACY_FILE), "--experiment", EXPERIMENT, "--tracking-uri", address]
    done = run_cli(command, folder)
    assert done.exit_code == 0, done.stderr
    imported = [run for run in store.search(experiment=EXPERIMENT) if run.ref.run_id not in records]
    for run in imported:
        records[run.ref.run_id] = store.read_record(run)
    return Browsed(
        address=address,
        experiment_id=original.experiment_id,
        table_url=dict(store.experiment_links(address))[EXPERIMENT],
        original=original,
        pruned=tuple(pruned),
        imported=tuple(run.ref for run in imported),
        records=records,
    )


def send_example(
    tracker: Tracker, directory: Path, which: Example, baseline: Baseline | None
) -> tuple[RunRef, EvalRecord]:
    """Write an example's record directory with its plots, and track it as ``eval`` does."""
    record = write_example(directory, which)
    if baseline is not None:
        labels = record.labels.model_copy(update={"baseline_run_id": baseline.run.run_id})
        record = record.model_copy(update={"labels": labels})
        write_record(directory, record)
    write_pictures(read_tensors(directory), directory / "plots")
    outcome = publish(directory, tracker, baseline)
    assert outcome.run is not None
    return outcome.run, outcome.record
