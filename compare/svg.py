"""Charts as inline SVG: no script, no font, no network; colours come from the page's CSS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Dumbbell", "Line", "bar_chart", "dumbbell_chart", "line_chart"]

_WIDTH = 760
_LEFT = 150
_RIGHT = 40
_ROW = 30


@dataclass(frozen=True)
class Dumbbell:
    """A row of two points; each may carry a half-width to draw as an error bar."""

    label: str
    original: float
    pruned: float
    original_error: float | None = None
    pruned_error: float | None = None


@dataclass(frozen=True)
class Line:
    """A series of points; ``css`` is the class that colours it."""

    label: str
    css: str
    points: tuple[tuple[float, float], ...]


def dumbbell_chart(rows: Sequence[Dumbbell], title: str) -> str:
    """Two points a row, joined: where each task was, and where pruning took it.

    Returns:
        An ``<svg>`` element, or empty text without rows.
    """
    if not rows:
        return ""
    ends = [
        value + sign * (error or 0.0)
        for row in rows
        for value, error in (
            (row.original, row.original_error),
            (row.pruned, row.pruned_error),
        )
        for sign in (-1, 1)
    ]
    ticks = _ticks(max(0.0, min(ends)) if min(ends) >= 0 else min(ends), max(ends))
    scale = _Scale(ticks[0], ticks[-1], _LEFT, _WIDTH - _RIGHT)
    height = _ROW * len(rows) + 34
    parts = [_grid(ticks, scale, height - 26)]
    for number, row in enumerate(rows):
        parts.append(_dumbbell(row, scale, _ROW * number + 20))
    return _svg(title, height, parts)


def bar_chart(bars: Sequence[tuple[str, float, float | None]], title: str) -> str:
    """One bar a row from 0, with its error where it has one; empty text without rows."""
    if not bars:
        return ""
    ticks = _ticks(0.0, max(value + (error or 0.0) for _, value, error in bars))
    scale = _Scale(ticks[0], ticks[-1], _LEFT, _WIDTH - _RIGHT)
    height = _ROW * len(bars) + 34
    parts = [_grid(ticks, scale, height - 26)]
    for number, (label, value, error) in enumerate(bars):
        y = _ROW * number + 20
        x0, x1 = scale(0.0), scale(value)
        tip = f"{label}: {value:.4f}"
        parts.append(
            f'<g><title>{escape(tip)}</title>{_label(label, y)}<rect class="bar" x="{x0:.1f}" '
            f'y="{y - 8}" width="{max(0.0, x1 - x0):.1f}" height="16" rx="2"/>'
            f"{_error(scale, value, error, y)}</g>"
        )
    return _svg(title, height, parts)


def line_chart(lines: Sequence[Line], title: str, x_title: str) -> str:
    """Series over a shared x axis, y in percent; empty text without points."""
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    height, top, bottom = 240, 12, 200
    x_values = [x for x, _ in points]
    across = _Scale(min(x_values), max(max(x_values), min(x_values) + 1), 60, _WIDTH - _RIGHT)
    ticks = _ticks(0.0, max(y for _, y in points) or 1.0)
    up = _Scale(ticks[0], ticks[-1], bottom, top)
    parts = []
    for tick in ticks:
        y = up(tick)
        parts.append(
            f'<line class="grid" x1="60" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>'
            f'<text class="tick" x="52" y="{y + 4:.1f}" text-anchor="end">{100 * tick:g}%</text>'
        )
    for x in _whole_ticks(int(min(x_values)), int(max(x_values))):
        parts.append(
            f'<text class="tick" x="{across(x):.1f}" y="{bottom + 16}" '
            f'text-anchor="middle">{x}</text>'
        )
    parts.append(
        f'<text class="tick" x="{_WIDTH / 2}" y="{height - 6}" text-anchor="middle">'
        f"{escape(x_title)}</text>"
    )
    parts.extend(_series(line, across, up) for line in lines)
    return _svg(title, height, parts)


# --- parts --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low or 1.0
        return self.start + (value - self.low) / span * (self.end - self.start)


def _ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers that enclose the range."""
    span = (high - low) or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= 7)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


def _whole_ticks(low: int, high: int) -> range:
    return range(low, high + 1, max(1, math.ceil((high - low) / 12)))


def _svg(title: str, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>{"".join(parts)}</svg>'
    )


def _grid(ticks: Sequence[float], scale: _Scale, bottom: int) -> str:
    return "".join(
        f'<line class="grid" x1="{scale(tick):.1f}" y1="6" x2="{scale(tick):.1f}" y2="{bottom}"/>'
        f'<text class="tick" x="{scale(tick):.1f}" y="{bottom + 16}" text-anchor="middle">'
        f"{tick:g}</text>"
        for tick in ticks
    )


def _label(text: str, y: float) -> str:
    shown = text if len(text) <= 20 else text[:19] + "\u2026"
    return (
        f'<text class="label" x="{_LEFT - 12}" y="{y + 4}" text-anchor="end">{escape(shown)}</text>'
    )


def _error(scale: _Scale, value: float, error: float | None, y: float) -> str:
    if not error:
        return ""
    x0, x1 = scale(value - error), scale(value + error)
    return f'<line class="error" x1="{x0:.1f}" y1="{y}" x2="{x1:.1f}" y2="{y}"/>'


def _dumbbell(row: Dumbbell, scale: _Scale, y: float) -> str:
    x0, x1 = scale(row.original), scale(row.pruned)
    tip = f"{row.label}: original {row.original:.4f}, pruned {row.pruned:.4f}"
    return (
        f"<g><title>{escape(tip)}</title>{_label(row.label, y)}"
        f"{_error(scale, row.original, row.original_error, y - 4)}"
        f"{_error(scale, row.pruned, row.pruned_error, y + 4)}"
        f'<line class="link" x1="{x0:.1f}" y1="{y}" x2="{x1:.1f}" y2="{y}"/>'
        f'<circle class="original" cx="{x0:.1f}" cy="{y}" r="6"/>'
        f'<circle class="pruned" cx="{x1:.1f}" cy="{y}" r="6"/></g>'
    )


def _series(line: Line, across: _Scale, up: _Scale) -> str:
    path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line.points)
    dots = "".join(
        f'<circle class="{line.css}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="3">'
        f"<title>{escape(line.label)}, {x:g}: {100 * y:.2f}%</title></circle>"
        for x, y in line.points
    )
    return f'<polyline class="series {line.css}" points="{path}"/>{dots}'
