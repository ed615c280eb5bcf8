"""What an evaluation prints at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunescope.metrics import KL, PERPLEXITY, format_percent, task_metric

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from prunescope.cli.console import Output
    from prunescope.cli.publishing import Outcome, Tracker
    from prunescope.records import EvalRecord, RunRef
    from prunescope.tracking.store import Store

__all__ = ["note_table", "outcome_document", "print_outcome", "summary_table"]


def print_outcome(
    outcome: Outcome, tracker: Tracker, output: Output, *, brief: bool = False
) -> None:
    """The numbers on stdout; where the run is, and what went wrong, on stderr.

    Args:
        outcome: of ``evaluate_and_track``.
        tracker: where the run went.
        output: how to print.
        brief: without the numbers, which a comparison will show.
    """
    record = outcome.record
    if outcome.reused:
        when = record.started_at.astimezone().strftime("%Y-%m-%d %H:%M")
        output.note(
            f"{record.model.name}: the same evaluation finished before ({when}); not run again"
        )
    if not brief:
        output.show(
            lambda: _tables(outcome),
            document=lambda: outcome_document(outcome),
            essential=lambda: outcome.run.run_id if outcome.run else str(outcome.directory),
        )
    for breakage in record.broken:
        where = f"first seen in {breakage.stage}: {breakage.where}"
        output.warn(f"BROKEN: {breakage.what}, {where}", style="bold red")
    for alarm in record.alarms:
        output.warn(f"ALARM: {alarm.message}", style="bold red")
    if outcome.run is not None:
        where = outcome.run.url or f"{outcome.run.run_id} in {outcome.run.tracking_uri}"
        output.note(f"run  {outcome.run.run_name}  {where}")
        if tracker.store is not None:
            note_table(tracker.store, outcome.run, output)
            if tracker.store.is_embedded:
                output.note("     browse it with: prunescope ui")
    if outcome.problem is not None:
        output.warn(f"not tracked: {outcome.problem}")
        where = f"the record is safe in {outcome.directory}"
        output.warn(f"{where}; send it with: prunescope sync (with the same --tracking-uri)", "")


def note_table(store: Store, run: RunRef, output: Output) -> None:
    """Say where the server shows the run among the others; nothing for a store without one."""
    table = store.experiment_url(run.experiment_id)
    if table is not None:
        output.note(f"all  {table}")


def outcome_document(outcome: Outcome) -> dict[str, Any]:
    """An evaluation for ``--json``: the run, the whole record, and the comparison if there is one.

    ``run`` is null where the server was away; then ``record_directory`` has what sync sends.
    """
    from prunescope.compare.export import json_report

    return {
        "run": outcome.run.model_dump(mode="json") if outcome.run else None,
        "record_directory": str(outcome.directory) if outcome.directory else None,
        "reused": outcome.reused,
        "problem": str(outcome.problem) if outcome.problem else None,
        "record": outcome.record.model_dump(mode="json"),
        "comparison": json_report(outcome.comparison) if outcome.comparison else None,
    }


def _tables(outcome: Outcome) -> list[RenderableType]:
    tables: list[RenderableType] = [summary_table(outcome.record)]
    if outcome.comparison is not None:
        from prunescope.compare.report import terminal_report

        tables.append(terminal_report(outcome.comparison))
    return tables


def summary_table(record: EvalRecord) -> Table:
    """Sparsity, perplexity and the accuracy of each task with its standard error."""
    from rich.table import Table

    table = Table(
        title=record.model.name,
        title_justify="left",
        title_style="bold",
        box=None,
        header_style="bold",
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    table.add_column("Metric", overflow="fold")
    table.add_column("Value", justify="right")
    table.add_column("±", justify="right")
    table.add_column("Over", justify="right", style="dim")
    if record.sparsity is not None:
        for name, count in (
            ("sparsity (linear layers)", record.sparsity.linear),
            ("sparsity (all parameters)", record.sparsity.total),
        ):
            table.add_row(name, format_percent(count.fraction), "", f"{count.parameters:,}")
    for corpus, result in record.perplexity.items():
        table.add_row(
            f"perplexity {corpus} ({result.seqlen})",
            PERPLEXITY.format(result.perplexity),
            "",
            f"{result.windows} windows",
        )
    for corpus, divergence in record.divergence.items():
        error = divergence.stderr_windows
        at_least = "at least " if divergence.kind == "top-k" else ""
        table.add_row(
            f"KL from {divergence.reference_name} {corpus}",
            at_least + KL.format(divergence.mean),
            f"{error:.4f}" if error is not None else "",
            f"{divergence.tokens:,} tokens",
        )
    for name, task in record.tasks.items():
        if task.group:
            continue
        for key, value in task.metrics.items():
            error = task.stderr.get(key)
            table.add_row(
                name if key == task.primary else f"{name} {key}",
                task_metric(key).format(value),
                f"{error:.4f}" if error is not None else "",
                f"{task.n:,} documents",
                style=None if key == task.primary else "dim",
            )
    for name, task in record.tasks.items():
        if task.group:
            table.add_row(
                f"{name} (group)", task_metric(task.primary).format(task.accuracy), "", ""
            )
    if record.mean_accuracy is not None:
        table.add_section()
        counted = sum(not task.group for task in record.tasks.values())
        table.add_row("mean accuracy", f"{record.mean_accuracy:.4f}", "", f"{counted} tasks")
    return table
