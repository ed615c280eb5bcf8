"""Evaluate a model and track it: what ``eval``, ``pair`` and ``demo`` have in common."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from prunescope.cli.baseline import settle_baseline
from prunescope.cli.publishing import (
    Outcome,
    Tracker,
    compare_with,
    fetch_baseline,
    publish,
    raise_alarms,
)
from prunescope.errors import PrunescopeError, TrackingError
from prunescope.records import (
    EvalConfig,
    EvalRecord,
    Labels,
    new_record_id,
    read_record,
    write_record,
)

if TYPE_CHECKING:
    from prunescope.evaluate.prepare import Prepared
    from prunescope.evaluate.progress import Progress
    from prunescope.tracking.store import StoredRun

__all__ = ["evaluate_and_track"]


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
        tracker: from :func:`~prunescope.cli.publishing.open_tracker`.
        progress: hears of each stage.
        baseline: names the original's run (see ``resolve_run``), or a model evaluated before.
        force: evaluate even what has finished before.

    Raises:
        PrunescopeError: a mistake that the user can mend; nothing is half-written.
        KeyboardInterrupt: it was told to stop; the same call goes on where it was.
    """
    from prunescope.evaluate.prepare import prepare
    from prunescope.tracking.spool import evaluation_lock

    tracker, original, labels = settle_baseline(tracker, baseline, labels)
    prepared = prepare(config, progress)
    with evaluation_lock(tracker.root, prepared.record_key, progress.say):
        if not force:
            try:
                outcome = _reuse(prepared, labels, tracker)
            except TrackingError as problem:
                tracker = tracker.without(problem)
                outcome = _reuse(prepared, labels, tracker)
            if outcome is not None:
                return outcome
        directory = _evaluate(prepared, labels, tracker, progress, force=force)
        return _judge_and_publish(directory, tracker, original)


def _evaluate(
    prepared: Prepared, labels: Labels, tracker: Tracker, progress: Progress, *, force: bool
) -> Path:
    """Evaluate into a record directory; one that was cut off is gone on with, as the same run."""
    from prunescope.evaluate.runner import run
    from prunescope.tracking.spool import find_interrupted, forget_uploads, new_record_directory

    record = prepared.new_record(labels)
    interrupted = None if force else find_interrupted(tracker.root, prepared.record_key)
    if interrupted is not None:
        known = read_record(interrupted)
        record = record.model_copy(update={"record_id": known.record_id})
        forget_uploads(interrupted)  # what was sent is the failed attempt
    directory = interrupted or new_record_directory(tracker.root, record)
    try:
        run(prepared, record, directory, progress, interrupted=interrupted)
    except BaseException as error:
        # What went wrong first is what is told: on a full disk nothing can be published either.
        with contextlib.suppress(PrunescopeError, OSError):
            publish(directory, tracker)
        if isinstance(error, KeyboardInterrupt):
            progress.say(
                f"interrupted: what was found is safe in {directory}; the same command goes on"
            )
        raise
    return directory


def _judge_and_publish(directory: Path, tracker: Tracker, original: StoredRun | None) -> Outcome:
    with contextlib.ExitStack() as stack:
        try:
            baseline = stack.enter_context(fetch_baseline(tracker, original))
        except TrackingError as problem:
            tracker, baseline = tracker.without(problem), None
        raise_alarms(directory, baseline)
        return publish(directory, tracker, baseline)


# --- what finished before -----------------------------------------------------------------------


def _reuse(prepared: Prepared, labels: Labels, tracker: Tracker) -> Outcome | None:
    from prunescope.tracking.spool import find_record, uploaded_to

    local = find_record(tracker.root, prepared.record_key)
    known = None
    if tracker.store is not None:
        for run in tracker.store.search(record_key=prepared.record_key):
            known = tracker.store.read_record(run)
            if _agrees(known.labels, labels) and _in_experiment(tracker, run):
                return _recognised(run, known, tracker)
        if known is not None:
            fetch = partial(tracker.store.fetch, run, everything=True)
            return _relabel(_new_copy(known, fetch, tracker), labels, tracker)
    if local is None:
        return None
    known = read_record(local)
    if _agrees(known.labels, labels):
        return replace(publish(local, tracker), reused=True)
    if not uploaded_to(local):
        # No server knows it under its old labels, so it need not become two.
        write_record(local, known.model_copy(update={"labels": labels}))
        return replace(_judge_and_publish(local, tracker, _original(labels, tracker)), reused=True)
    return _relabel(_new_copy(known, partial(shutil.copytree, local), tracker), labels, tracker)


def _new_copy(known: EvalRecord, write: Callable[[Path], object], tracker: Tracker) -> Path:
    """A new record directory that ``write`` has filled: there is none before it is whole."""
    from prunescope.tracking.spool import new_record_directory

    with tempfile.TemporaryDirectory(dir=tracker.root, prefix=".copy-") as scratch:
        whole = Path(scratch) / "record"
        write(whole)
        return whole.rename(new_record_directory(tracker.root, known))


def _recognised(run: StoredRun, record: EvalRecord, tracker: Tracker) -> Outcome:
    """A run as it lies on the server, with its comparison where it has a baseline."""
    from prunescope.tracking.store.logged_model import add_model

    if tracker.store is not None and tracker.logged_model:
        add_model(tracker.store, run.ref, record)
    if tracker.store is None or record.labels.baseline_run_id is None:
        return Outcome(record, run.ref, None, reused=True)
    original = tracker.store.get(record.labels.baseline_run_id)
    with tempfile.TemporaryDirectory() as folder, fetch_baseline(tracker, original) as baseline:
        directory = tracker.store.fetch(run, Path(folder) / "run", everything=True)
        comparison = compare_with(baseline, directory, run.ref)
    return Outcome(record, run.ref, None, reused=True, comparison=comparison)


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


def _relabel(directory: Path, labels: Labels, tracker: Tracker) -> Outcome:
    """The same numbers as a run of its own, under other labels; nothing is evaluated again."""
    from prunescope.tracking.spool import forget_uploads

    known = read_record(directory)
    provenance = known.provenance.model_copy(
        update={"reused_from": known.provenance.reused_from or known.record_id}
    )
    record = known.model_copy(
        update={
            "record_id": new_record_id(),
            "labels": labels,
            "provenance": provenance,
        }
    )
    write_record(directory, record)
    forget_uploads(directory)
    original = _original(labels, tracker)
    return replace(_judge_and_publish(directory, tracker, original), reused=True)


def _original(labels: Labels, tracker: Tracker) -> StoredRun | None:
    baseline = labels.baseline_run_id
    return tracker.store.get(baseline) if tracker.store and baseline else None
