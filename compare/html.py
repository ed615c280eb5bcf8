"""Comparisons and single runs as one HTML page that needs nothing else: no network, no CDN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunescope.compare.charts import forest_plot, heat_map, perplexity_chart, tiers_chart
from prunescope.compare.delta import Comparison, ordered_tasks
from prunescope.compare.highlights import comparison_highlights, run_highlights
from prunescope.compare.layout import Cell, Table
from prunescope.compare.markdown import headline
from prunescope.compare.run_tables import run_tables
from prunescope.compare.structure import Structure, tier_counts
from prunescope.compare.svg import Dumbbell, Line, bar_chart, dumbbell_chart, line_chart
from prunescope.compare.tables import comparison_tables
from prunescope.metrics import format_percent
from prunescope.plain import printable
from prunescope.records import EvalRecord, RunRef

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["html_report", "run_report_html"]

_FOLDED = ("Documents That Lost Most", "Worst Windows", "Token by Token", "Flips", "Further")
"""What the titles of tables contain that a reader unfolds."""


@dataclass(frozen=True)
class _Key:
    css: str
    label: str


@dataclass(frozen=True)
class _Section:
    table: Table
    chart: Any = ""
    keys: tuple[_Key, ...] = ()
    caption: str = ""

    @property
    def folded(self) -> bool:
        return any(part in self.table.title for part in _FOLDED)


_SIDES = (_Key("original", "original"), _Key("pruned square", "pruned"))
_VERDICTS = (
    _Key("worse", "worse"),
    _Key("better", "better"),
    _Key("same", "same within the band"),
    _Key("unclear", "unclear"),
)


def html_report(comparison: Comparison) -> str:
    """The whole comparison as a self-contained page with charts and sortable tables.

    Args:
        comparison: of two records, with or without its analysis.
    """
    tables = comparison_tables(comparison)
    top = comparison_highlights(comparison)
    sections = [
        *_judged(comparison, tables.significance),
        _Section(
            tables.tasks, _tasks_chart(comparison), _SIDES, "Lines are one standard error each way."
        ),
        _Section(tables.summary, _markup(perplexity_chart(comparison))),
        *(_Section(t) for t in (tables.groups, tables.protocol) if t.rows),
        *_structure_sections(comparison.structure, "pruned"),
    ]
    if comparison.structure is None:
        sections.extend(_layers_section(comparison))
    sections.extend(_Section(table) for table in (tables.further, *tables.details) if table.rows)
    sections.append(_Section(tables.models))
    names = (comparison.pruned.model.name, comparison.original.model.name)
    footnotes = [f"[{n}] {reason}" for n, reason in enumerate(tables.footnotes, 1)]
    when = comparison.created_at.strftime("%Y-%m-%d %H:%M:%S %Z").strip()
    return _render(
        title="{} against {}".format(*names),
        lead=f"{headline(comparison)}. {when}.",
        top=top,
        runs=_links(comparison.original_run, comparison.pruned_run),
        sections=sections,
        notes=[*footnotes, *(note for note in tables.notes if note not in top.warnings)],
    )


def run_report_html(
    record: EvalRecord, structure: Structure | None = None, run: RunRef | None = None
) -> str:
    """A single run as a self-contained page.

    Args:
        record: the evaluation.
        structure: where its zeros are; None where it is not known.
        run: where it was tracked.
    """
    tables = run_tables(record, run)
    top = run_highlights(record)
    sections = []
    for table in tables.sections:
        chart, caption = "", ""
        if table.title == "Task Results":
            chart = _run_chart(record)
            caption = "Primary metric, with one standard error each way."
        sections.append(_Section(table, chart, (), caption))
    how = sections[-1:] if sections and sections[-1].table.title.startswith("How") else []
    model = [section for section in sections if section.table.title == "Model"]
    rest = [section for section in sections if section not in (*how, *model)]
    when = record.started_at.strftime("%Y-%m-%d %H:%M:%S %Z").strip()
    role = f"{record.labels.role}, " if record.labels.role else ""
    return _render(
        title=f"Evaluation of {record.model.name}",
        lead=f"{role}{record.status}, started {when}",
        top=top,
        runs=_links(run, None),
        sections=[*rest, *_structure_sections(structure), *model, *how],
        notes=[note for note in tables.notes if note not in top.warnings],
    )


def _links(first: RunRef | None, second: RunRef | None) -> list[RunRef]:
    """The runs that have a page."""
    runs = [run for run in (first, second) if run is not None]
    return [run for run in runs if (run.url or "").startswith(("http://", "https://"))]


# --- sections -----------------------------------------------------------------------------------


def _judged(comparison: Comparison, table: Table | None) -> list[_Section]:
    if table is None or comparison.analysis is None or comparison.analysis.suite is None:
        return []
    caption = (
        f"Pruned \u2212 original with 95 % intervals. The band is "
        f"\u00b1{round(100 * comparison.analysis.suite.margin, 6):g}, where a difference is of no "
        "consequence."
    )
    chart = _markup(forest_plot(comparison))
    return [_Section(table, chart, _VERDICTS if chart else (), caption if chart else "")]


def _structure_sections(structure: Structure | None, side: str = "") -> list[_Section]:
    found = []
    whose = f" of the {side.capitalize()} Model" if side else ""
    if chart := _markup(heat_map(structure, side)):
        caption = "Zeros in percent: each module of each decoder block."
        found.append(_Section(Table(f"Sparsity Map{whose}", (), ()), chart, (), caption))
    if structure is not None and structure.tiers and structure.sparse:
        keys = tuple(
            _Key(f"tier{n} square", title) for n, title in enumerate(_tier_titles(structure))
        )
        found.append(_Section(_tier_table(structure), _markup(tiers_chart(structure)), keys))
    return found


def _tier_titles(structure: Structure) -> list[str]:
    return list(tier_counts(next(iter(structure.tiers.values()))))


def _tier_table(structure: Structure) -> Table:
    first = next(iter(structure.tiers.values()))
    found = [tier_counts(tiers) for tiers in structure.tiers.values()]
    total = {title: sum(counts[title] for counts in found) for title in found[0]}
    blocks = sum(total.values())
    rows = tuple(
        (Cell(title), Cell(f"{count:,}"), Cell(format_percent(count / blocks if blocks else None)))
        for title, count in total.items()
    )
    caption = "Each block is in the first tier that it fits, in this order."
    title = f"Blocks of {first.block[0]}\u00d7{first.block[1]} Weights"
    return Table(title, ("Tier", "Blocks", "Share"), rows, caption=caption)


def _layers_section(comparison: Comparison) -> list[_Section]:
    sides = (("original", comparison.original), ("pruned", comparison.pruned))
    chart = _layers_chart(sides)
    if not chart:
        return []
    caption = "Linear layers of each decoder block."
    return [_Section(Table("Sparsity by Layer", (), ()), chart, _SIDES, caption)]


# --- charts -------------------------------------------------------------------------------------


def _tasks_chart(comparison: Comparison) -> Any:
    rows = [
        Dumbbell(row.label, row.original, row.pruned, row.original_stderr, row.pruned_stderr)
        for row in comparison.tasks
        if row.comparable and row.original is not None and row.pruned is not None
    ]
    return _markup(dumbbell_chart(rows, "Accuracy of each task, original and pruned"))


def _run_chart(record: EvalRecord) -> Any:
    tasks = [record.tasks[name] for name in ordered_tasks(record)]
    bars = [
        (task.task, task.accuracy, _finite(task.stderr.get(task.primary)))
        for task in tasks
        if task.accuracy is not None and _finite(task.accuracy) is not None and task.accuracy >= 0
    ]
    return _markup(bar_chart(bars, "Primary metric of each task"))


def _layers_chart(sides: Sequence[tuple[str, EvalRecord]]) -> Any:
    """Sparsity over the decoder blocks; nothing where no weight was pruned."""
    lines = [
        Line(
            side,
            side,
            tuple(
                (float(layer.layer), layer.zeros / layer.parameters)
                for layer in record.sparsity.layers
                if layer.parameters
            ),
        )
        for side, record in sides
        if record.sparsity is not None
    ]
    if not any(y > 0.001 for line in lines for _, y in line.points):
        return ""
    return _markup(line_chart(lines, "Sparsity of each decoder block", "decoder block"))


def _finite(value: float | None) -> float | None:
    return value if value is not None and abs(value) < float("inf") else None


# --- page ---------------------------------------------------------------------------------------


def _render(**values: Any) -> str:
    return _environment().get_template("page.html.j2").render(**values)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
        keep_trailing_newline=True,
    )


def _markup(svg: str) -> Any:
    """SVG is built from escaped parts: the page takes it as it is."""
    from markupsafe import Markup

    return Markup(printable(svg))  # noqa: S704
