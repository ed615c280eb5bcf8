"""What an evaluation prints at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunescope.metrics import KL, PERPLEXITY, format_percent, task_metric

if TYPE_CHECKING:
    from rich.table import Table

    from prunescope.cli.publishing import Outcome, Tracker
    from prunescope.records import EvalRecord

__all__ = ["print_outcome", "summary_table"]


def print_outcome(outcome: Outcome, tracker: Tracker, *, brief: bool = False) -> None:
    """The numbers on stdout; where the run is, and what went wrong, on stderr.

    Args:
        outcome: of ``evaluate_and_track``.
        tracker: where the run went.
        brief: without the table, which a comparison will show.
    """
    from rich.text import Text

    from prunescope.cli.console import stderr, stdout

    out, notes = stdout(), stderr()
    record = outcome.record
    if outcome.reused:
        when = record.started_at.astimezone().strftime("%Y-%m-%d %H:%M")
        notes.print(
            Text(
                f"{record.model.name}: the same evaluation finished before ({when}); not run again"
            ),
            soft_wrap=True,
        )
    if not brief:
        out.print(summary_table(record))
        if outcome.comparison is not None:
            from prunescope.compare.report import terminal_report

            out.print(terminal_report(outcome.comparison))
    for breakage in record.broken:
        notes.print(
            Text(f"BROKEN: {breakage.what}, first seen in {breakage.stage}: {breakage.where}"),
            style="bold red",
            soft_wrap=True,
        )
    for alarm in record.alarms:
        notes.print(Text(f"ALARM: {alarm.message}"), style="bold red", soft_wrap=True)
    if outcome.run is not None:
        where = outcome.run.url or f"{outcome.run.run_id} in {outcome.run.tracking_uri}"
        notes.print(Text(f"run  {outcome.run.run_name}  {where}"), soft_wrap=True)
        if tracker.store is not None and tracker.store.is_embedded:
            notes.print(Text("     browse it with: prunescope ui"), soft_wrap=True)
    if outcome.problem is not None:
        notes.print(Text(f"not tracked: {outcome.problem}"), style="bold yellow", soft_wrap=True)
        where = f"the record is safe in {outcome.directory}"
        notes.print(
            Text(f"{where}; send it with: prunescope sync (with the same --tracking-uri)"),
            soft_wrap=True,
        )


def summary_table(record: EvalRecord) -> Table:
    """Sparsity, perplexity and the accuracy of each task with its standard error."""
    from rich.table import Table

    table = Table(title=record.model.name, title_justify="left", title_style="bold")
    table.add_column("Metric")
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
