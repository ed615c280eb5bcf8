"""Two evaluations and their comparison in one go: what ``pair`` and ``demo`` do."""

from __future__ import annotations

from pathlib import Path

from prunescope.cli import options
from prunescope.records import EvalConfig, Labels

__all__ = ["run_pair"]


def run_pair(
    original: tuple[EvalConfig, Labels],
    pruned: tuple[EvalConfig, Labels],
    *,
    output_dir: Path,
    tracking_uri: str | None,
    experiment: str | None,
    force: bool = False,
) -> None:
    """Evaluate both (unless they were before), then print and write their comparison.

    Raises:
        PrunescopeError: a mistake that the user can mend.
    """
    from prunescope.cli.console import TerminalProgress
    from prunescope.cli.publishing import open_tracker
    from prunescope.cli.reports import check_output_dir, print_and_write
    from prunescope.cli.summary import print_outcome
    from prunescope.cli.workflow import evaluate_and_track
    from prunescope.compare.delta import compare_records

    check_output_dir(output_dir)
    tracker = open_tracker(tracking_uri, options.DEFAULT_ROOT, experiment)
    with TerminalProgress() as progress:
        first = evaluate_and_track(*original, tracker, progress, force=force)
    print_outcome(first, tracker, brief=True)
    with TerminalProgress() as progress:
        second = evaluate_and_track(
            *pruned,
            tracker,
            progress,
            baseline=first.run.run_id if first.run else None,
            force=force,
        )
    print_outcome(second, tracker, brief=True)
    # Without a server there is no baseline, but the two records are here.
    comparison = second.comparison or compare_records(first.record, second.record)
    print_and_write(comparison, output_dir)
