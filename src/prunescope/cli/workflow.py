"""Evaluate a model and track it: what ``eval``, ``pair`` and ``demo`` have in common."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from prunescope.errors import OutputError, PrunescopeError, TrackingError
from prunescope.records import (
    EvalConfig,
    EvalRecord,
    Labels,
    RunRef,
    new_record_id,
    read_record,
    write_file,
    write_record,
)

if TYPE_CHECKING:
    from prunescope.compare.delta import Comparison
    from prunescope.evaluate.progress import Progress
    from prunescope.evaluate.runner import Prepared
    from prunescope.tracking.store import Store, StoredRun

__all__ = ["DEFAULT_EXPERIMENT", "Outcome", "Tracker", "evaluate_and_track", "open_tracker"]

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
    problems: tuple[PrunescopeError, ...] = field(default=())
    """What kept the run from the server."""


def open_tracker(uri: str | None, root: Path, experiment: str | None) -> Tracker:
    """Open the tracking store for an evaluation, which can do without.

    Raises:
        OutputError: the folder for records cannot be written.
    """
    from prunescope.tracking.store import open_store

    _check_writable(root / "records")
    try:
        return Tracker(root, open_store(uri, root=root), experiment)
    except TrackingError as problem:
        return Tracker(root, None, experiment, problem)


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"cannot write into {folder}: {error.strerror or error}",
            hint="Run from a folder that you may write, or set --tracking-root",
        ) from error


def evaluate_and_track(
    config: EvalConfig,
    labels: Labels,
    tracker: Tracker,
    progress: Progress,
    *,
    baseline: str | None = None,
    force: bool = False,
) -> Outcome:
    """Evaluate, unless the same evaluation has finished before, and put the run on the server.

    Args:
        config: what to evaluate and how.
        labels: what the user says about the run.
        tracker: from :func:`open_tracker`.
        progress: hears of each stage.
        baseline: names the original's run (see ``resolve_run``), or a model evaluated before.
        force: evaluate even what has finished before.

    Raises:
        PrunescopeError: a mistake that the user can mend; nothing is half-written.
    """
    from prunescope.evaluate.runner import prepare, run

    original = _find_baseline(tracker, baseline)
    if original is not None:
        labels = labels.model_copy(
            update={"baseline_run_id": original.ref.run_id, "role": labels.role or "pruned"}
        )
    prepared = prepare(config, progress)
    if not force and (outcome := _reuse(prepared, labels, tracker, original)) is not None:
        return outcome
    record = prepared.new_record(labels)
    directory = _new_directory(tracker, record)
    try:
        record = run(prepared, record, directory, progress)
    except BaseException:
        publish(directory, tracker, original)
        raise
    return publish(directory, tracker, original)


def _find_baseline(tracker: Tracker, baseline: str | None) -> StoredRun | None:
    if baseline is None:
        return None
    if tracker.store is None:
        raise tracker.problem or TrackingError("a baseline needs the tracking server")
    from prunescope.errors import RunNotFoundError
    from prunescope.tracking.query import resolve_run

    try:
        return resolve_run(tracker.store, baseline)
    except RunNotFoundError as unknown:
        name = Path(baseline.rstrip("/")).name.partition("@")[0]
        try:
            return resolve_run(tracker.store, f"latest:{name}")
        except RunNotFoundError:
            raise unknown from None


def _new_directory(tracker: Tracker, record: EvalRecord) -> Path:
    from prunescope.tracking.spool import new_record_directory

    return new_record_directory(tracker.root, record)


# --- what finished before -----------------------------------------------------------------------


def _reuse(
    prepared: Prepared, labels: Labels, tracker: Tracker, original: StoredRun | None
) -> Outcome | None:
    from prunescope.tracking.query import find_finished
    from prunescope.tracking.spool import find_record

    local = find_record(tracker.root, prepared.record_key)
    run = find_finished(tracker.store, prepared.record_key) if tracker.store else None
    if run is not None and tracker.store is not None:
        known = tracker.store.read_record(run)
        if _agrees(known.labels, labels) and _in_experiment(tracker, run):
            comparison = _comparison(tracker, known)
            return Outcome(known, run.ref, local, reused=True, comparison=comparison)
        directory = _new_directory(tracker, known)
        tracker.store.fetch(run, directory, everything=True)
        return _relabel(directory, labels, tracker, original)
    if local is None:
        return None
    if _agrees(read_record(local).labels, labels):
        return _as_reused(publish(local, tracker, original))
    directory = _new_directory(tracker, read_record(local))
    shutil.copytree(local, directory, dirs_exist_ok=True)
    return _relabel(directory, labels, tracker, original)


def _agrees(known: Labels, wanted: Labels) -> bool:
    """Whether nothing that the user says now differs from what the run says."""
    given = wanted.model_dump(exclude_defaults=True)
    have = known.model_dump()
    tags = given.pop("tags", {})
    return all(have[name] == value for name, value in given.items()) and (
        tags.items() <= known.tags.items()
    )


def _in_experiment(tracker: Tracker, run: StoredRun) -> bool:
    if tracker.experiment is None or tracker.store is None:
        return True
    return tracker.store.experiment_name(run.ref.experiment_id) == tracker.experiment


def _relabel(
    directory: Path, labels: Labels, tracker: Tracker, original: StoredRun | None
) -> Outcome:
    """The same numbers as a run of its own, under other labels; nothing is evaluated again."""
    from prunescope.tracking.spool import forget_uploads

    known = read_record(directory)
    given = labels.model_dump(exclude_defaults=True)
    provenance = known.provenance.model_copy(
        update={"reused_from": known.provenance.reused_from or known.record_id}
    )
    record = known.model_copy(
        update={
            "record_id": new_record_id(),
            "labels": Labels.model_validate({**known.labels.model_dump(), **given}),
            "provenance": provenance,
        }
    )
    write_record(directory, record)
    forget_uploads(directory)
    return _as_reused(publish(directory, tracker, original))


def _as_reused(outcome: Outcome) -> Outcome:
    return Outcome(
        outcome.record,
        outcome.run,
        outcome.directory,
        reused=True,
        comparison=outcome.comparison,
        problems=outcome.problems,
    )


# --- onto the server ----------------------------------------------------------------------------


def publish(directory: Path, tracker: Tracker, original: StoredRun | None = None) -> Outcome:
    """Write the run's reports into its record directory and send the whole to the server.

    A server that cannot be reached is no error here: the record stays on disk, and the outcome
    says what went wrong.
    """
    record = read_record(directory)
    store = tracker.store
    if store is None:
        problems = (tracker.problem,) if tracker.problem else ()
        _write_reports(directory, record, None)
        return Outcome(record, None, directory, problems=problems)
    try:
        comparison = _comparison(tracker, record, original)
        _write_reports(directory, record, comparison)
        run = _send(directory, store, tracker.experiment or DEFAULT_EXPERIMENT, comparison)
    except TrackingError as problem:
        return Outcome(record, None, directory, problems=(problem,))
    return Outcome(record, run, directory, comparison=comparison)


def _comparison(
    tracker: Tracker, record: EvalRecord, original: StoredRun | None = None
) -> Comparison | None:
    from prunescope.compare.delta import compare_records

    if tracker.store is None or record.status != "finished":
        return None
    if original is None:
        if record.labels.baseline_run_id is None:
            return None
        original = tracker.store.get(record.labels.baseline_run_id)
    return compare_records(tracker.store.read_record(original), record)


def _write_reports(directory: Path, record: EvalRecord, comparison: Comparison | None) -> None:
    from prunescope.compare import report

    if comparison is None:
        markdown, page = report.run_report_markdown(record), report.run_report_html(record)
    else:
        markdown, page = report.markdown_report(comparison), report.html_report(comparison)
    write_file(directory / "report.md", markdown)
    write_file(directory / "report.html", page)


def _send(directory: Path, store: Store, experiment: str, comparison: Comparison | None) -> RunRef:
    from prunescope.compare.delta import delta_metrics
    from prunescope.compare.report import run_note
    from prunescope.tracking.spool import mark_uploaded

    extra = delta_metrics(comparison) if comparison is not None else {}
    run = store.upload(directory, experiment=experiment, extra_metrics=extra)
    if comparison is not None:
        baseline = comparison.pruned.labels.baseline_run_id
        original = store.get(baseline).ref if baseline else None
        if original is not None:
            store.set_note(
                run.run_id,
                run_note(
                    comparison,
                    baseline_url=store.run_link(original),
                    compare_url=store.compare_link(original, run),
                ),
            )
    mark_uploaded(directory, run)
    return run
