"""What a reader of ten seconds takes away: one verdict and a few figures."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from prunescope.compare.analysis_tables import collapse_notes
from prunescope.compare.charts import perplexity_ratio, points
from prunescope.compare.delta import Comparison, Row
from prunescope.compare.significance import detectable_difference
from prunescope.compare.verdict import SuiteStatistics
from prunescope.metrics import ACC, PERPLEXITY, format_percent, format_ratio, perplexity_title
from prunescope.records import EvalRecord, SparsityResult

__all__ = ["Highlights", "Tile", "comparison_highlights", "run_highlights"]


@dataclass(frozen=True)
class Tile:
    """One large figure."""

    title: str
    value: str
    detail: str
    css: str = ""
    """``worse``, ``better``, ``same``, ``unclear``, or nothing."""


@dataclass(frozen=True)
class Highlights:
    """The top of a page."""

    verdict: str
    """``worse``, ``better``, ``same``, ``unclear``; empty where nothing is judged."""
    sentence: str
    tiles: tuple[Tile, ...]
    warnings: tuple[str, ...] = ()
    """What a reader must know before any figure: NaN, alarms, tasks that collapsed."""


def comparison_highlights(comparison: Comparison) -> Highlights:
    """The verdict over all tasks, and what became of accuracy, perplexity and sparsity."""
    suite = comparison.analysis.suite if comparison.analysis else None
    tiles = [
        _mean_tile(comparison, suite),
        *(_perplexity_tile(comparison, row) for row in comparison.perplexity[:2]),
        _sparsity_tile(comparison.pruned.sparsity),
        _answers_tile(suite),
    ]
    sides = (comparison.original, comparison.pruned)
    warnings = comparison.notes[: sum(len(side.broken) + len(side.alarms) for side in sides)]
    warnings += collapse_notes(comparison.analysis)
    return Highlights(
        suite.verdict if suite else "",
        _sentence(suite),
        tuple(tile for tile in tiles if tile is not None),
        warnings,
    )


def run_highlights(record: EvalRecord) -> Highlights:
    """The figures of a single run."""
    tiles: list[Tile | None] = []
    if record.mean_accuracy is not None:
        n = sum(not task.group for task in record.tasks.values())
        detail = f"plain mean over {n} tasks" if n != 1 else "of one task"
        tiles.append(Tile("Mean accuracy", ACC.format(record.mean_accuracy), detail))
    for corpus, found in list(record.perplexity.items())[:2]:
        windows = f"{found.windows:,} windows" if found.windows else "windows not known"
        title = perplexity_title(corpus, found.seqlen)
        tiles.append(Tile(title, PERPLEXITY.format(found.perplexity), windows))
    tiles.append(_sparsity_tile(record.sparsity))
    warnings = [
        f"Broken: {broken.what} first seen in {broken.where} ({broken.stage})"
        for broken in record.broken
    ]
    warnings += [f"Alarm: {alarm.message}" for alarm in record.alarms]
    return Highlights("", "", tuple(tile for tile in tiles if tile is not None), tuple(warnings))


def _sentence(suite: SuiteStatistics | None) -> str:
    if suite is None:
        return ""
    mean, margin = suite.mean, f"{round(100 * suite.margin, 6):g}"
    change = f"mean accuracy changed by {points(mean.value)} points"
    interval = f"95 % interval {points(mean.low)} to {points(mean.high)}"
    plural = "" if margin == "1" else "s"
    said = {
        "worse": f"Worse: {change} ({interval}), more than chance explains.",
        "better": f"Better: {change} ({interval}), more than chance explains.",
        "same": f"The same within {margin} point{plural}: {change} ({interval}).",
        "unclear": (
            f"Unclear: {change} ({interval}), which chance may explain. These documents would "
            f"show a change of about {100 * detectable_difference(mean, None):.1f} points."
        ),
    }[suite.verdict]
    if len(suite.tasks) < 2:
        return said
    counts = Counter(task.verdict for task in suite.tasks)
    parts = [f"{counts[v]} {v}" for v in ("worse", "better", "same", "unclear") if counts[v]]
    return f"{said} Of {len(suite.tasks)} tasks: {', '.join(parts)}."


def _mean_tile(comparison: Comparison, suite: SuiteStatistics | None) -> Tile | None:
    row = comparison.average
    if not comparison.tasks:
        return None
    if row.difference is None:
        return Tile("Mean accuracy", "n/a", row.reason or "not comparable")
    detail = f"{ACC.format(row.original)} \u2192 {ACC.format(row.pruned)}"
    if comparison.averaged < len(comparison.tasks):
        detail += f", {comparison.averaged} of {len(comparison.tasks)} tasks"
    css = suite.verdict if suite else ""
    return Tile("Mean accuracy", f"{points(row.difference, 1)} points", detail, css)


def _perplexity_tile(comparison: Comparison, row: Row) -> Tile:
    if not row.comparable or row.relative is None:
        broken = row.pruned is not None and not math.isfinite(row.pruned)
        value, css = (PERPLEXITY.format(row.pruned), "worse") if broken else ("n/a", "")
        return Tile(row.label, value, row.reason or "not comparable", css)
    detail = f"{_perplexity(row.original)} \u2192 {_perplexity(row.pruned)}"
    ratio = perplexity_ratio(comparison, row)
    css = ""
    if ratio is not None:
        detail += f"; 95 % {format_ratio(ratio.low, 3)} to {format_ratio(ratio.high, 3)}"
        css = "worse" if ratio.low > 1 else "better" if ratio.high < 1 else "unclear"
    return Tile(row.label, format_ratio(1 + row.relative, 3), detail, css)


def _perplexity(value: float | None) -> str:
    ruined = value is not None and 1000 <= value < math.inf
    return f"{value:,.0f}" if ruined else PERPLEXITY.format(value)


def _sparsity_tile(sparsity: SparsityResult | None) -> Tile | None:
    if sparsity is None:
        return None
    parts = ["zeros in the linear layers"]
    if sparsity.pattern:
        parts.insert(0, f"{sparsity.pattern} holds")
    if sparsity.total.known:
        parts.append(f"{format_percent(sparsity.total.fraction)} of all parameters")
    return Tile("Sparsity", format_percent(sparsity.linear.fraction), "; ".join(parts))


def _answers_tile(suite: SuiteStatistics | None) -> Tile | None:
    if suite is None or suite.p_pooled is None:
        return None
    n = sum(task.flips.n for task in suite.tasks if task.flips is not None)
    detail = f"right answers, of {n:,} documents"
    return Tile("Answers", f"{suite.lost} lost, {suite.gained} gained", detail)
