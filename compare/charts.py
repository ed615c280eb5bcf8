"""The charts of a comparison: differences with their intervals, perplexity, where the zeros are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from prunescope.compare.delta import Comparison, Row
from prunescope.compare.paired_perplexity import Measured
from prunescope.compare.significance import Estimate
from prunescope.compare.structure import Structure, tier_counts
from prunescope.compare.svg import Frame, Scale, axis, mark, row_label, svg_chart, ticks_over
from prunescope.compare.verdict import SuiteStatistics

__all__ = [
    "forest_plot",
    "heat_map",
    "perplexity_chart",
    "perplexity_ratio",
    "points",
    "tiers_chart",
]

_ROW = 30
_Line = tuple[str, Estimate, str]
"""Label, difference as a fraction, verdict."""


def points(value: float, decimals: int = 2) -> str:
    """A fraction in signed percentage points, with a true minus sign."""
    return f"{100 * value:+.{decimals}f}".replace("-", "\u2212")


# --- accuracy -----------------------------------------------------------------------------------


def forest_plot(comparison: Comparison) -> str:
    """Each task's difference with its 95 % interval, and their mean; empty where none is judged.

    Tasks whose figures are no fractions (a perplexity) have no place on the axis and are left
    out, and with them the mean.
    """
    suite = comparison.analysis.suite if comparison.analysis else None
    if suite is None:
        return ""
    fractions = {row.label for row in comparison.tasks if _is_fraction(row)}
    lines = [(t.task, t.estimate, t.verdict) for t in suite.tasks if t.task in fractions]
    if not lines:
        return ""
    whole = len(lines) == len(suite.tasks) > 1
    mean = ("all tasks", suite.mean, suite.verdict) if whole else None

    def draw(frame: Frame) -> tuple[float, list[str]]:
        return _forest(frame, lines, mean, suite)

    said = "; ".join(
        f"{label} {points(e.value)}, from {points(e.low)} to {points(e.high)}, {verdict}"
        for label, e, verdict in (*lines, *([mean] if mean else []))
    )
    return svg_chart(f"Accuracy differences in percentage points with 95 % intervals: {said}", draw)


def _forest(
    frame: Frame, lines: Sequence[_Line], mean: _Line | None, suite: SuiteStatistics
) -> tuple[float, list[str]]:
    shown = [*lines, *([mean] if mean else [])]
    margin = 100 * suite.margin
    low = min(-margin, *(100 * e.low for _, e, _ in shown))
    high = max(margin, *(100 * e.high for _, e, _ in shown))
    ticks = ticks_over(low, high, 5 if frame.narrow else 9)
    right = 60 if frame.narrow else 190
    scale = frame.scale(ticks, right)
    bottom = _ROW * len(shown) + (16 if mean else 8)
    band = (
        f'<rect class="band" x="{scale(-margin):.1f}" y="6" '
        f'width="{scale(margin) - scale(-margin):.1f}" height="{bottom - 6}"/>'
    )
    zero = f'<line class="zero" x1="{scale(0):.1f}" y1="6" x2="{scale(0):.1f}" y2="{bottom}"/>'
    parts = [band, axis(ticks, scale, bottom), zero]
    for number, line in enumerate(lines):
        parts.append(_forest_row(frame, scale, line, _ROW * number + 20))
    if mean is not None:
        y = _ROW * len(lines) + 28
        parts.append(
            f'<line class="rule" x1="0" y1="{y - 18}" x2="{frame.width}" y2="{y - 18}"/>'
            + _forest_row(frame, scale, mean, y, strong=True)
        )
    parts.append(
        f'<text class="tick" x="{(scale.start + scale.end) / 2:.1f}" y="{bottom + 34}" '
        f'text-anchor="middle">percentage points</text>'
    )
    return bottom + 42, parts


def _forest_row(frame: Frame, scale: Scale, line: _Line, y: float, *, strong: bool = False) -> str:
    label, estimate, verdict = line
    x, x0, x1 = (scale(100 * v) for v in (estimate.value, estimate.low, estimate.high))
    interval = f"{points(estimate.low)} to {points(estimate.high)}"
    css = "label strong" if strong else "label"
    if strong:
        drawn = (
            f'<path class="mark {verdict}" d="M{x0:.1f} {y:g}L{x:.1f} {y - 8:g}L{x1:.1f} {y:g}'
            f'L{x:.1f} {y + 8:g}z"/>'
        )
    else:
        drawn = (
            f'<path class="interval {verdict}" d="M{x0:.1f} {y:g}H{x1:.1f}'
            f'M{x0:.1f} {y - 4:g}v8M{x1:.1f} {y - 4:g}v8"/>{mark(verdict, x, y)}'
        )
    value = points(estimate.value, 1 if frame.narrow else 2)
    text = value if frame.narrow else f"{value} ({interval})"
    return (
        f"<g><title>{escape(label)}: {points(estimate.value)} ({interval}), {verdict}</title>"
        f"{row_label(label, frame, y, css)}{drawn}"
        f'<text class="{css}" x="{frame.width}" y="{y + 4:g}" text-anchor="end">{text}</text></g>'
    )


def _is_fraction(row: Row) -> bool:
    return all(v is not None and 0 <= v <= 1 for v in (row.original, row.pruned))


# --- perplexity ---------------------------------------------------------------------------------


def perplexity_ratio(comparison: Comparison, row: Row) -> Measured | None:
    """Pruned / original perplexity with its error over the tokens; None without the tokens."""
    tokens = comparison.analysis.tokens if comparison.analysis else ()
    return next((t.ratio for t in tokens if t.corpus == row.key), None)


def perplexity_chart(comparison: Comparison) -> str:
    """Original and pruned perplexity of each comparable corpus as bars from 0."""
    rows = [row for row in comparison.perplexity if row.comparable and row.relative is not None]
    if not rows:
        return ""
    said = "; ".join(f"{r.label} original {r.original:.4f}, pruned {r.pruned:.4f}" for r in rows)

    def draw(frame: Frame) -> tuple[float, list[str]]:
        highest = max(v for r in rows for v in (r.original, r.pruned) if v is not None)
        # a bar's own figure is written behind it
        end = frame.width - 74
        parts, y = [], 18
        for row in rows:
            parts.append(f'<text class="label" x="0" y="{y}">{escape(row.label)}</text>')
            y += 12
            for side, value in (("original", row.original), ("pruned", row.pruned)):
                width = (value or 0.0) / highest * (end - 70)
                parts.append(
                    f'<text class="tick" x="60" y="{y + 12}" text-anchor="end">{side}</text>'
                    f'<rect class="{side}" x="70" y="{y}" width="{max(width, 1):.1f}" '
                    f'height="16" rx="2"/><text class="label" x="{70 + width + 8:.1f}" '
                    f'y="{y + 12}">{_short(value)}</text>'
                )
                y += 22
            y += 14
        return y - 8, parts

    return svg_chart(f"Perplexity, lower is better: {said}", draw)


def _short(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "n/a"
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}" if value < 1e7 else f"{value:.3g}"


# --- structure ----------------------------------------------------------------------------------


def heat_map(structure: Structure | None, side: str = "") -> str:
    """Sparsity of each module kind in each decoder block; empty where nothing is sparse."""
    if structure is None or not structure.sparse:
        return ""
    layers, kinds, cells = structure.layers, structure.kinds, structure.cells
    values = [count.fraction for count in cells.values()]

    def draw(frame: Frame) -> tuple[float, list[str]]:
        left, row = 64, 22
        step = min(44.0, (frame.width - left - 2) / len(layers))
        parts = []
        for down, kind in enumerate(kinds):
            y = down * row + 4
            parts.append(
                f'<text class="label" x="{left - 8}" y="{y + 14}" text-anchor="end">'
                f"{escape(kind[:9])}</text>"
            )
            for across, layer in enumerate(layers):
                if (layer, kind) in cells:
                    share = cells[layer, kind].fraction
                    name = f"block {layer} {kind}"
                    parts.append(_cell(name, share, left + across * step, y, step, row))
        parts.append(_block_axis(layers, left, step, len(kinds) * row + 4, frame))
        return len(kinds) * row + 44, parts

    whose = f"{side} model, " if side else ""
    description = (
        f"Sparsity of each module in each decoder block, {whose}from "
        f"{100 * min(values):.2f}% to {100 * max(values):.2f}%"
    )
    return svg_chart(description, draw)


def _cell(name: str, share: float, x: float, y: float, step: float, row: float) -> str:
    text = ""
    if step >= 20:
        css = "on" if share > 0.55 else "off"
        text = (
            f'<text class="cell {css}" x="{x + step / 2:.1f}" y="{y + 14:g}" '
            f'text-anchor="middle">{100 * share:.0f}</text>'
        )
    return (
        f'<g><title>{escape(name)}: {100 * share:.2f}%</title><rect class="heat" x="{x:.1f}" '
        f'y="{y:g}" width="{max(step - 1, 0.5):.1f}" height="{row - 1:g}" '
        f'style="fill-opacity:{share:.3f}"/>{text}</g>'
    )


def _block_axis(layers: Sequence[int], left: float, step: float, y: float, frame: Frame) -> str:
    most = 8 if frame.narrow else 24
    every = math.ceil(len(layers) / most)
    numbers = "".join(
        f'<text class="tick" x="{left + (n + 0.5) * step:.1f}" y="{y + 16:g}" '
        f'text-anchor="middle">{layer}</text>'
        for n, layer in enumerate(layers)
        if n % every == 0
    )
    middle = left + len(layers) * step / 2
    anchor = "middle" if len(layers) * step > 100 else "start"
    x = middle if anchor == "middle" else left
    return (
        f'{numbers}<text class="tick" x="{x:.1f}" y="{y + 34:g}" text-anchor="{anchor}">'
        "decoder block</text>"
    )


def tiers_chart(structure: Structure | None) -> str:
    """Share of the blocks of weights in each tier, one column a decoder block."""
    if structure is None or not structure.tiers:
        return ""
    layers = tuple(sorted(structure.tiers))
    counts = [tier_counts(structure.tiers[layer]) for layer in layers]

    def draw(frame: Frame) -> tuple[float, list[str]]:
        left, height = 64, 150
        step = min(44.0, (frame.width - left - 2) / len(layers))
        parts = [
            f'<text class="tick" x="{left - 8}" y="{y + 4}" text-anchor="end">{share}%</text>'
            f'<line class="grid" x1="{left}" y1="{y}" x2="{left + step * len(layers):.1f}" '
            f'y2="{y}"/>'
            for share, y in ((0, height + 8), (50, height / 2 + 8), (100, 8))
        ]
        for across, (layer, found) in enumerate(zip(layers, counts, strict=True)):
            parts.append(_column(layer, found, left + across * step, step, height))
        parts.append(_block_axis(layers, left, step, height + 8, frame))
        return height + 48, parts

    total = {name: sum(found[name] for found in counts) for name in counts[0]}
    blocks = sum(total.values()) or 1
    said = "; ".join(f"{name} {100 * n / blocks:.2f}%" for name, n in total.items())
    return svg_chart(f"Blocks of weights by tier: {said}", draw)


def _column(layer: int, found: dict[str, int], x: float, step: float, height: float) -> str:
    blocks, base, parts = sum(found.values()) or 1, height + 8.0, []
    for number, (name, count) in enumerate(found.items()):
        tall = height * count / blocks
        if count:
            parts.append(
                f"<g><title>block {layer}: {escape(name)} {100 * count / blocks:.2f}%</title>"
                f'<rect class="tier{number}" x="{x:.1f}" y="{base - tall:.1f}" '
                f'width="{max(step - 1, 0.5):.1f}" height="{tall:.1f}"/></g>'
            )
        base -= tall
    return "".join(parts)
