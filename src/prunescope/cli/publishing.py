"""From a record directory to a run on the tracking server, with its reports and its baseline."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from prunescope.errors import OutputError, PrunescopeError, TrackingError
from prunescope.records import EvalRecord, RunRef, read_record, read_tensors, write_file

if TYPE_CHECKING:
    from prunescope.compare.delta import Comparison
    from prunescope.tracking.store import Store, StoredRun

__all__ = [
    "DEFAULT_EXPERIMENT",
    "Baseline",
    "Outcome",
    "Tracker",
    "compare_with",
    "fetch_baseline",
    "open_tracker",
    "publish",
    "raise_alarms",
]

DEFAULT_EXPERIMENT = "prunescope"


@dataclass(frozen=True)
class Tracker:
    """Where runs go. Without a store (the server is away) records stay on disk."""

    root: Path
    store: Store | None
    experiment: str | None
    """None: the default experiment, and a finished run is recognised in any."""
    problem: TrackingError | None = None
    """Why there is no store."""
    logged_model: bool = False
    """Whether each run is to have a logged model besides."""

    def without(self, problem: TrackingError) -> Tracker:
        """The same once the store has failed: an evaluation loses no more time to it."""
        return replace(self, store=None, problem=problem)


@dataclass(frozen=True)
class Outcome:
    """What an evaluation came to."""

    record: EvalRecord
    run: RunRef | None
    directory: Path | None
    """The record directory; None where the numbers came from a run on the server."""
    reused: bool = False
    comparison: Comparison | None = None
    """With its baseline, where it has one."""
    problem: PrunescopeError | None = None
    """What kept the run from the server."""


@dataclass(frozen=True)
class Baseline:
    """The original that a run is compared with, fetched from the server."""

    run: RunRef
    directory: Path


def open_tracker(
    uri: str | None, root: Path, experiment: str | None, *, logged_model: bool = False
) -> Tracker:
    """Open the tracking store for an evaluation, which can do without.

    Raises:
        OutputError: the folder for records cannot be written.
        TrackingError: logged models are wanted, and the store knows none.
    """
    from prunescope.tracking.store import open_store
    from prunescope.tracking.store.logged_model import check_models

    _check_writable(root / "records")
    try:
        store = open_store(uri, root=root)
        # What a killed evaluation on this machine left RUNNING is put right by the next one.
        store.recover_orphans()
    except TrackingError as problem:
        return Tracker(root, None, experiment, problem, logged_model)
    if logged_model:
        check_models(store)
    return Tracker(root, store, experiment, logged_model=logged_model)


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"cannot write into {folder}: {error.strerror or error}",
            hint="Run the command in a folder that you may write",
        ) from error


@contextlib.contextmanager
def fetch_baseline(tracker: Tracker, run: StoredRun | None) -> Iterator[Baseline | None]:
    """The original's record directory, for as long as the context lasts; None without one.

    Raises:
        PrunescopeError: the run has no record, or the server refuses.
    """
    if run is None or tracker.store is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="prunescope-") as folder:
        fetched = tracker.store.fetch(run, Path(folder) / "baseline", everything=True)
        yield Baseline(run.ref, fetched)


def raise_alarms(directory: Path, baseline: Baseline | None) -> None:
    """Write into the record what contradicts its labels, or its baseline's weights and answers."""
    from prunescope.evaluate.sparsity import find_alarms, same_answers

    record = read_record(directory)
    alarms = find_alarms(
        record,
        sparsity=read_tensors(directory) if record.sparsity is not None else None,
        baseline=read_record(baseline.directory) if baseline else None,
        answers_unchanged=same_answers(directory, baseline.directory) if baseline else None,
    )
    record = record.model_copy(update={"alarms": alarms})
    write_file(directory / "record.json", record.model_dump_json(indent=1))


def compare_with(
    baseline: Baseline | None, directory: Path, run: RunRef | None = None
) -> Comparison | None:
    """The record against its baseline; None without one, or where either did not finish."""
    from prunescope.compare.analysis import compare_directories

    if baseline is None or read_record(directory).status != "finished":
        return None
    return compare_directories(
        baseline.directory, directory, original_run=baseline.run, pruned_run=run
    )


def publish(directory: Path, tracker: Tracker, baseline: Baseline | None = None) -> Outcome:
    """Write the run's reports into its record directory and send the whole to the server.

    A server that cannot be reached is no error here: the record stays on disk, and the outcome
    says what went wrong.
    """
    record = _want_model(directory) if tracker.logged_model else read_record(directory)
    store = tracker.store
    if store is None:
        _write_reports(directory, record, None)
        return Outcome(record, None, directory, problem=tracker.problem)
    try:
        if baseline is None and (original := _original(store, tracker, directory)) is not None:
            with fetch_baseline(tracker, original) as fetched:
                return _publish(directory, store, tracker, fetched)
        return _publish(directory, store, tracker, baseline)
    except TrackingError as problem:
        if not (directory / "report.html").is_file():
            _write_reports(directory, record, None)
        return Outcome(record, None, directory, problem=problem)


def _want_model(directory: Path) -> EvalRecord:
    """Let the record say that its run is to have a logged model, on whatever server."""
    from prunescope.tracking.store.logged_model import WANTED_TAG

    record = read_record(directory)
    tags = {**record.labels.tags, WANTED_TAG: "wanted"}
    labels = record.labels.model_copy(update={"tags": tags})
    record = record.model_copy(update={"labels": labels})
    write_file(directory / "record.json", record.model_dump_json(indent=1))
    return record


def _original(store: Store, tracker: Tracker, directory: Path) -> StoredRun | None:
    """The run that a record is compared with; None where this server does not have it."""
    from prunescope.tracking.baselines import Baselines

    return Baselines(store, tracker.root).of_record(directory)


def _publish(directory: Path, store: Store, tracker: Tracker, baseline: Baseline | None) -> Outcome:
    from prunescope.compare.delta import delta_metrics
    from prunescope.compare.report import run_note
    from prunescope.tracking.notes import cut_note
    from prunescope.tracking.spool import mark_uploaded

    record = read_record(directory)
    comparison = compare_with(baseline, directory)

    def prepare(run: RunRef) -> dict[str, str]:
        known = None if comparison is None else replace(comparison, pruned_run=run)
        _write_reports(directory, record, known, run)
        if known is None or baseline is None:
            return {}
        note = run_note(
            known,
            baseline_url=store.run_link(baseline.run),
            compare_url=store.compare_link(baseline.run, run),
        )
        return {
            "mlflow.note.content": cut_note(note),
            "prunescope.baseline_run_id": baseline.run.run_id,
        }

    run = store.upload(
        directory,
        experiment=tracker.experiment or DEFAULT_EXPERIMENT,
        extra_metrics=delta_metrics(comparison) if comparison is not None else {},
        prepare=prepare,
    )
    if comparison is not None:
        comparison = replace(comparison, pruned_run=run)
    mark_uploaded(directory, run)
    return Outcome(record, run, directory, comparison=comparison)


def _write_reports(
    directory: Path, record: EvalRecord, comparison: Comparison | None, run: RunRef | None = None
) -> None:
    from prunescope.compare import report
    from prunescope.compare.structure import read_structure

    if comparison is None:
        markdown = report.run_report_markdown(record, run)
        page = report.run_report_html(record, read_structure(directory), run)
    else:
        markdown = report.markdown_report(comparison)
        page = report.html_report(comparison)
    write_file(directory / "report.md", markdown)
    write_file(directory / "report.html", page)
