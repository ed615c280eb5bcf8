"""Two evaluations and their comparison in one go: what ``pair`` and ``demo`` do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prunescope.cli import options
from prunescope.records import EvalConfig, Labels

if TYPE_CHECKING:
    from prunescope.cli.console import Output

__all__ = ["run_pair"]


def run_pair(
    original: tuple[EvalConfig, Labels],
    pruned: tuple[EvalConfig, Labels],
    *,
    output_dir: Path,
    tracking_uri: str | None,
    experiment: str | None,
    output: Output,
    logged_model: bool = False,
    force: bool = False,
) -> None:
    """Evaluate both (unless they were before), then print and write their comparison.

    Raises:
        PrunescopeError: a mistake that the user can mend.
    """
    from prunescope.cli.publishing import open_tracker
    from prunescope.cli.reports import check_output_dir, write_reports
    from prunescope.cli.summary import outcome_document, print_outcome
    from prunescope.cli.workflow import evaluate_and_track
    from prunescope.compare.delta import compare_records
    from prunescope.compare.export import json_report
    from prunescope.compare.report import terminal_report

    check_output_dir(output_dir)
    tracker = open_tracker(
        tracking_uri, options.DEFAULT_ROOT, experiment, logged_model=logged_model
    )
    with output.progress() as progress:
        first = evaluate_and_track(*original, tracker, progress, force=force)
    print_outcome(first, tracker, output, brief=True)
    with output.progress() as progress:
        second = evaluate_and_track(
            *pruned,
            tracker,
            progress,
            baseline=first.run.run_id if first.run else first.record.record_id,
            force=force,
        )
    print_outcome(second, tracker, output, brief=True)
    # Without a server there is no baseline, but the two records are here.
    comparison = second.comparison or compare_records(first.record, second.record)
    files = write_reports(comparison, output_dir, output=output)
    output.show(
        lambda: terminal_report(comparison),
        document=lambda: {
            "original": outcome_document(first),
            "pruned": outcome_document(second),
            "comparison": json_report(comparison),
            "files": [str(path) for path in files],
        },
        essential=lambda: str(files[0]),
    )
