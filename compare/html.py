"""Comparisons and single runs as one HTML page that needs nothing else: no network, no CDN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunescope.compare.delta import Comparison, ordered_tasks
from prunescope.compare.layout import Table
from prunescope.compare.markdown import headline
from prunescope.compare.run_tables import run_tables
from prunescope.compare.svg import Dumbbell, Line, bar_chart, dumbbell_chart, line_chart
from prunescope.compare.tables import comparison_tables
from prunescope.records import EvalRecord

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["html_report", "run_report_html"]


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


def html_report(comparison: Comparison, pictures: Sequence[Path] = ()) -> str:
    """The whole comparison as a self-contained page with charts and sortable tables.

    Args:
        comparison: of two records, with or without its analysis.
        pictures: SVG files of the pruned run's structure, put into the page.
    """
    tables = comparison_tables(comparison)
    keys = (_Key("original", "original"), _Key("pruned", "pruned"))
    sections = [
        _Section(tables.models),
        _Section(tables.summary),
        _Section(
            tables.tasks, _tasks_chart(comparison), keys, "Lines are one standard error each way."
        ),
    ]
    if tables.significance is not None:
        sections.append(_Section(tables.significance))
    sections.extend(_Section(t) for t in (tables.groups, tables.further) if t.rows)
    layers = _layers_chart([("original", comparison.original), ("pruned", comparison.pruned)])
    if layers:
        empty = Table("Sparsity by Layer", (), ())
        sections.append(_Section(empty, layers, keys, "Linear layers of each decoder block."))
    sections.extend(_picture_sections(pictures))
    sections.extend(_Section(table) for table in tables.details)
    if tables.protocol.rows:
        sections.append(_Section(tables.protocol))
    names = (comparison.pruned.model.name, comparison.original.model.name)
    when = comparison.created_at.strftime("%Y-%m-%d %H:%M:%S %Z").strip()
    footnotes = [f"[{n}] {reason}" for n, reason in enumerate(tables.footnotes, 1)]
    return _render(
        title="{} against {}".format(*names),
        lead=f"{headline(comparison)}. {when}.",
        sections=sections,
        notes=[*footnotes, *tables.notes],
    )


def run_report_html(record: EvalRecord, pictures: Sequence[Path] = ()) -> str:
    """A single run as a self-contained page, with SVG files of its structure put into it."""
    tables = run_tables(record)
    charts = {
        "Task Results": (_run_chart(record), "Primary metric, with one standard error each way."),
        "Sparsity by Layer and Kind": (
            _layers_chart([("pruned", record)]),
            "Linear layers of each decoder block.",
        ),
    }
    sections = []
    for table in tables.sections:
        chart, caption = charts.get(table.title, ("", ""))
        sections.append(_Section(table, chart, (), caption))
    sections.extend(_picture_sections(pictures))
    when = record.started_at.strftime("%Y-%m-%d %H:%M:%S %Z").strip()
    role = f"{record.labels.role}, " if record.labels.role else ""
    return _render(
        title=f"Evaluation of {record.model.name}",
        lead=f"{role}{record.status}, started {when}",
        sections=sections,
        notes=list(tables.notes),
    )


def _picture_sections(pictures: Sequence[Path]) -> list[_Section]:
    """As images, so that nothing in a file can run or reach the page."""
    from base64 import b64encode

    from markupsafe import Markup

    found = []
    for path in pictures:
        title = path.stem.replace("-", " ").capitalize()
        data = b64encode(path.read_bytes()).decode()
        image = Markup('<img class="picture" alt="{}" src="data:image/svg+xml;base64,{}">')
        found.append(_Section(Table(title, (), ()), image.format(title, data)))
    return found


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
        keep_trailing_newline=True,
    )


def _markup(svg: str) -> Any:
    """SVG is built from escaped parts: the page takes it as it is."""
    from markupsafe import Markup

    return Markup(svg)  # noqa: S704
