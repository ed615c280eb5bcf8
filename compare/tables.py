"""A comparison as tables of text, which each report only has to draw.

What is shown, in which order, with which footnotes, is decided here once for the terminal,
Markdown and HTML.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from prunescope.compare.analysis_tables import (
    analysis_notes,
    choice_divergence_table,
    detail_tables,
    significance_table,
)
from prunescope.compare.delta import Comparison, Row
from prunescope.compare.layout import Cell, Table
from prunescope.compare.vocabulary import divergence_tables
from prunescope.metrics import SPARSITY, Metric, format_percent, format_relative
from prunescope.records import EvalRecord, RunRef

__all__ = [
    "ReportTables",
    "comparison_tables",
    "degradation",
    "format_bytes",
    "format_duration",
    "format_value",
    "model_facts",
    "task_table",
]


@dataclass(frozen=True)
class ReportTables:
    """Everything that a comparison's reports show."""

    models: Table
    summary: Table
    tasks: Table
    groups: Table
    further: Table
    protocol: Table
    footnotes: tuple[str, ...]
    """Footnote n is ``footnotes[n - 1]``."""
    first_footnotes: int
    """How many of the footnotes belong to ``summary``, ``tasks`` and ``groups``."""
    notes: tuple[str, ...]
    significance: Table | None = None
    """Whether the differences are real; None where nothing was judged."""
    divergences: tuple[Table, ...] = ()
    """Over the vocabulary, and over the answer choices; those of them that have rows."""
    details: tuple[Table, ...] = ()
    """Tables for the long reports: divergences, tokens, where it hurts."""


@dataclass
class _Footnotes:
    reasons: list[str] = field(default_factory=list)

    def mark(self, reason: str | None) -> str:
        """`` [n]`` for a reason, the same n for the same reason; nothing for none."""
        if reason is None:
            return ""
        if reason not in self.reasons:
            self.reasons.append(reason)
        return f" [{self.reasons.index(reason) + 1}]"


def comparison_tables(comparison: Comparison) -> ReportTables:
    """Lay out a comparison."""
    footnotes = _Footnotes()
    summary = _summary(comparison, footnotes)
    tasks = _tasks(comparison, footnotes)
    groups = _figures("Groups", "Group", comparison.groups, footnotes)
    first = len(footnotes.reasons)
    further = _further(comparison, footnotes)
    vocabulary = divergence_tables(comparison)
    return ReportTables(
        models=_models(comparison),
        summary=summary,
        tasks=tasks,
        groups=groups,
        further=further,
        protocol=_protocol(comparison),
        footnotes=tuple(footnotes.reasons),
        first_footnotes=first,
        notes=(*comparison.notes, *analysis_notes(comparison.analysis)),
        significance=significance_table(comparison.analysis),
        divergences=(*vocabulary, *_choices(comparison)),
        details=(*vocabulary, *detail_tables(comparison.analysis)),
    )


def _choices(comparison: Comparison) -> tuple[Table, ...]:
    if comparison.analysis is None or not comparison.analysis.divergences:
        return ()
    return (choice_divergence_table(comparison.analysis),)


def task_table(comparison: Comparison) -> tuple[Table, tuple[str, ...]]:
    """The table of the tasks alone, and its footnotes numbered from 1."""
    footnotes = _Footnotes()
    table = _tasks(comparison, footnotes)
    return table, tuple(footnotes.reasons)


def degradation(row: Row) -> str:
    """The increase of a perplexity: ``+3.3665 (+61.52%)``; ``n/a`` where there is none."""
    if row.difference is None:
        return "n/a"
    change = f"{row.metric.format_difference(row.difference)} ({format_relative(row.relative)})"
    return f"{change} !" if row.mismatch else change


def format_value(metric: Metric, value: float | None) -> str:
    """A figure as tables show it; a sparsity in percent."""
    return format_percent(value, metric.decimals) if metric == SPARSITY else metric.format(value)


# --- tables of figures --------------------------------------------------------------------------


def _cells(row: Row, footnotes: _Footnotes) -> tuple[Cell, ...]:
    if row.metric == SPARSITY:
        points = None if row.difference is None else 100 * row.difference
        difference = "n/a" if points is None else f"{points:+.{SPARSITY.decimals}f} pt"
    else:
        difference = row.metric.format_difference(row.difference)
    if row.mismatch:
        difference += " !"
    relative = format_relative(row.relative)
    if row.relative is None and row.reason is None:
        relative = ""
    return (
        Cell(row.label),
        Cell(format_value(row.metric, row.original)),
        Cell(format_value(row.metric, row.pruned)),
        Cell(difference, row.better),
        Cell(relative + footnotes.mark(row.reason), row.better),
    )


def _figures(title: str, first: str, rows: tuple[Row, ...], footnotes: _Footnotes) -> Table:
    header = (first, "Original", "Pruned", "Difference", "Relative")
    return Table(title, header, tuple(_cells(row, footnotes) for row in rows))


def _summary(comparison: Comparison, footnotes: _Footnotes) -> Table:
    rows = (*comparison.sparsity, *comparison.perplexity)
    table = _figures("Summary", "Figure", rows, footnotes)
    if not comparison.tasks:
        return table
    _, *cells = _cells(comparison.average, footnotes)
    mean = (Cell(f"Mean accuracy{_over(comparison)}"), *cells)
    return Table(table.title, table.header, (*table.rows, mean))


def _tasks(comparison: Comparison, footnotes: _Footnotes) -> Table:
    table = _figures("Task Results", "Task", comparison.tasks, footnotes)
    if not comparison.tasks:
        return table
    _, *cells = _cells(comparison.average, footnotes)
    rows = (*table.rows, (Cell(f"AVERAGE{_over(comparison)}"), *cells))
    return Table(table.title, table.header, rows, strong=frozenset({len(rows) - 1}))


def _over(comparison: Comparison) -> str:
    """Over how many tasks the average is, where they are not all."""
    averaged, total = comparison.averaged, len(comparison.tasks)
    return "" if averaged == total else f" ({averaged} of {total})"


def _further(comparison: Comparison, footnotes: _Footnotes) -> Table:
    rows = []
    for row in comparison.further:
        label, *cells = _cells(row, footnotes)
        rows.append((label, Cell(row.metric.name), *cells))
    header = ("Task", "Metric", "Original", "Pruned", "Difference", "Relative")
    return Table("Further Metrics", header, tuple(rows), words=2)


# --- tables of words ----------------------------------------------------------------------------


def _models(comparison: Comparison) -> Table:
    a = model_facts(comparison.original, comparison.original_run)
    b = model_facts(comparison.pruned, comparison.pruned_run)
    labels = [label for label in a if a[label] or b[label]]
    rows = tuple((Cell(label), Cell(a[label] or "-"), Cell(b[label] or "-")) for label in labels)
    return Table("Models", ("", "Original", "Pruned"), rows, words=3)


def model_facts(record: EvalRecord, run: RunRef | None = None) -> dict[str, str]:
    """What a report says about a model; empty text where it is not known."""
    model, labels, provenance = record.model, record.labels, record.provenance
    seconds = sum(provenance.timings.values())
    return {
        "Name": model.name,
        "Path": model.path or model.hub_id or model.requested,
        "Revision": model.revision or "",
        "Adapter of": model.adapter_of or "",
        "Architecture": model.architecture or "",
        "Parameters": f"{model.parameters:,}" if model.parameters else "",
        "Stored as": " ".join(
            part for part in (model.stored_dtype, format_bytes(model.bytes)) if part
        ),
        "Evaluated in": " on ".join(part for part in (model.dtype, record.protocol.device) if part),
        "Method": labels.method or "",
        "Pattern": (record.sparsity.pattern or "") if record.sparsity else "",
        "Evaluated at": record.started_at.strftime("%Y-%m-%d %H:%M:%S %Z").strip(),
        "Evaluation time": format_duration(seconds) if seconds else "",
        "Run": (run.run_name or run.run_id) if run else "",
        "Run id": run.run_id if run else "",
        "Record": record.record_id,
    }


def _protocol(comparison: Comparison) -> Table:
    rows = tuple(
        (Cell(d.what), Cell(d.original), Cell(d.pruned)) for d in comparison.protocol_differences
    )
    return Table("Protocol Differences", ("Setting", "Original", "Pruned"), rows, words=3)


def format_bytes(count: int | None) -> str:
    """``269.1 MB``; empty text where it is not known."""
    if count is None:
        return ""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def format_duration(seconds: float) -> str:
    """``35 min 17 s``, ``1 h 02 min``, ``3.4 s``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left:02d} min" if hours else f"{minutes} min {rest:02d} s"
