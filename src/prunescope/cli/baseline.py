"""From ``--baseline`` to the run that an evaluation is compared with, the server there or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunescope.errors import TrackingError
from prunescope.records import Labels

if TYPE_CHECKING:
    from prunescope.cli.publishing import Tracker
    from prunescope.tracking.store import StoredRun

__all__ = ["settle_baseline"]


def settle_baseline(
    tracker: Tracker, wanted: str | None, labels: Labels
) -> tuple[Tracker, StoredRun | None, Labels]:
    """Find the baseline, and write it into the labels.

    Args:
        tracker: from :func:`~prunescope.cli.publishing.open_tracker`.
        wanted: names a run (see ``resolve_run``), a model that was evaluated before, or a record
            of this machine; None: no baseline.
        labels: of the evaluation.

    Returns:
        The tracker, without its store where that failed; the run; and the labels. Where the
        server is away they name the baseline's record, or what was asked for: the two are brought
        together when the record is sent.

    Raises:
        RunNotFoundError: the server answers, and knows no such run.
    """
    if wanted is None:
        return tracker, None, labels
    labels = labels.model_copy(update={"role": labels.role or "pruned"})
    if tracker.store is not None:
        from prunescope.tracking.query import resolve_original

        try:
            run = resolve_original(tracker.store, wanted)
        except TrackingError as problem:
            tracker = tracker.without(problem)
        else:
            found = {"baseline_run_id": run.ref.run_id}
            return tracker, run, labels.model_copy(update=found)
    from prunescope.tracking.baselines import later_tags

    tags = {**labels.tags, **later_tags(tracker.root, wanted)}
    return tracker, None, labels.model_copy(update={"tags": tags})
