"""Inline SVG: scales, axes, marks and a few charts; no script, no font, no network.

Colours come from the page's CSS. Each chart is drawn twice, for a wide and for a narrow page, so
that its text is readable on a phone; the page shows one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = [
    "NARROW",
    "WIDE",
    "Dumbbell",
    "Frame",
    "Line",
    "Scale",
    "axis",
    "bar_chart",
    "dumbbell_chart",
    "line_chart",
    "mark",
    "row_label",
    "svg_chart",
    "ticks_over",
    "whole_ticks",
]

ROW = 30
"""Height of a row, pixels."""


@dataclass(frozen=True)
class Frame:
    """The width that a chart is drawn for, and its margins, pixels."""

    css: str
    width: int
    left: int
    right: int
    letters: int
    """How long a row's label may be."""

    @property
    def narrow(self) -> bool:
        """Whether it is for a phone."""
        return self.css == "narrow"

    def scale(self, ticks: Sequence[float], right: int | None = None) -> Scale:
        """From the first to the last tick over the room between the margins."""
        end = self.width - (self.right if right is None else right)
        return Scale(ticks[0], ticks[-1], self.left, end)


WIDE = Frame("wide", 760, 150, 40, 20)
NARROW = Frame("narrow", 350, 108, 18, 14)


@dataclass(frozen=True)
class Scale:
    """A straight line from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low or 1.0
        return self.start + (value - self.low) / span * (self.end - self.start)


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


def svg_chart(description: str, draw: Callable[[Frame], tuple[float, Sequence[str]]]) -> str:
    """Both drawings of a chart.

    Args:
        description: the text alternative: what it shows, with its figures.
        draw: gives height and elements for a frame.
    """
    drawings = []
    for frame in (WIDE, NARROW):
        height, parts = draw(frame)
        drawings.append(
            f'<svg class="chart {frame.css}" viewBox="0 0 {frame.width} {height:g}" role="img" '
            f'aria-label="{escape(description)}">{"".join(parts)}</svg>'
        )
    return "".join(drawings)


# --- charts -------------------------------------------------------------------------------------


def dumbbell_chart(rows: Sequence[Dumbbell], title: str) -> str:
    """Two points a row, joined: where each task was, and where pruning took it.

    Returns:
        ``<svg>`` elements, or empty text without rows.
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

    def draw(frame: Frame) -> tuple[float, list[str]]:
        most = 5 if frame.narrow else 7
        low = max(0.0, min(ends)) if min(ends) >= 0 else min(ends)
        ticks = ticks_over(low, max(ends), most)
        scale = frame.scale(ticks)
        height = ROW * len(rows) + 34
        parts = [axis(ticks, scale, height - 26)]
        for number, row in enumerate(rows):
            parts.append(_dumbbell(row, frame, scale, ROW * number + 20))
        return height, parts

    said = [f"{row.label} {row.original:.4f} and {row.pruned:.4f}" for row in rows]
    return svg_chart(f"{title}: {'; '.join(said)}", draw)


def bar_chart(bars: Sequence[tuple[str, float, float | None]], title: str) -> str:
    """One bar a row from 0, with its error where it has one; empty text without rows."""
    if not bars:
        return ""

    def draw(frame: Frame) -> tuple[float, list[str]]:
        highest = max(value + (error or 0.0) for _, value, error in bars)
        ticks = ticks_over(0.0, highest, 5 if frame.narrow else 7)
        scale = frame.scale(ticks)
        height = ROW * len(bars) + 34
        parts = [axis(ticks, scale, height - 26)]
        for number, bar in enumerate(bars):
            parts.append(_bar(bar, frame, scale, ROW * number + 20))
        return height, parts

    said = [f"{label} {value:.4f}" for label, value, _ in bars]
    return svg_chart(f"{title}: {'; '.join(said)}", draw)


def line_chart(lines: Sequence[Line], title: str, x_title: str) -> str:
    """Series over a shared x axis, y in percent; empty text without points."""
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    height, top, bottom, left = 240, 12, 200, 60
    x_values = [x for x, _ in points]
    ticks = ticks_over(0.0, max(y for _, y in points) or 1.0)
    up = Scale(ticks[0], ticks[-1], bottom, top)

    def draw(frame: Frame) -> tuple[float, list[str]]:
        end = frame.width - frame.right
        across = Scale(min(x_values), max(max(x_values), min(x_values) + 1), left, end)
        parts = []
        for tick in ticks:
            y = up(tick)
            parts.append(
                f'<line class="grid" x1="{left}" y1="{y:.1f}" x2="{end}" y2="{y:.1f}"/>'
                f'<text class="tick" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">'
                f"{100 * tick:g}%</text>"
            )
        for x in whole_ticks(int(min(x_values)), int(max(x_values)), 6 if frame.narrow else 12):
            parts.append(
                f'<text class="tick" x="{across(x):.1f}" y="{bottom + 16}" '
                f'text-anchor="middle">{x}</text>'
            )
        parts.append(
            f'<text class="tick" x="{frame.width / 2:g}" y="{height - 6}" '
            f'text-anchor="middle">{escape(x_title)}</text>'
        )
        parts.extend(_series(line, across, up) for line in lines)
        return height, parts

    said = [
        f"{line.label} from {100 * min(y for _, y in line.points):.2f}% to "
        f"{100 * max(y for _, y in line.points):.2f}%"
        for line in lines
        if line.points
    ]
    return svg_chart(f"{title}: {'; '.join(said)}", draw)


# --- parts --------------------------------------------------------------------------------------


def ticks_over(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers that enclose the range, about ``most`` steps."""
    span = (high - low) or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next((m for m in (1, 2, 5, 10) if span / (step * m) <= most), 20)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 10) for number in range(first, max(last, first + 1) + 1)]


def whole_ticks(low: int, high: int, most: int = 12) -> range:
    """Whole numbers from ``low`` on, at most about ``most``."""
    return range(low, high + 1, max(1, math.ceil((high - low) / most)))


def axis(ticks: Sequence[float], scale: Scale, bottom: float) -> str:
    """Vertical lines at the ticks, with their numbers under ``bottom``."""
    return "".join(
        f'<line class="grid" x1="{scale(tick):.1f}" y1="6" x2="{scale(tick):.1f}" '
        f'y2="{bottom:g}"/>'
        f'<text class="tick" x="{scale(tick):.1f}" y="{bottom + 16:g}" text-anchor="middle">'
        f"{_signed(tick)}</text>"
        for tick in ticks
    )


def row_label(text: str, frame: Frame, y: float, css: str = "label") -> str:
    """A row's label, right-aligned at the plot, cut where it is too long."""
    shown = text if len(text) <= frame.letters else text[: frame.letters - 1] + "\u2026"
    return (
        f'<text class="{css}" x="{frame.left - 12}" y="{y + 4:g}" text-anchor="end">'
        f"{escape(shown)}</text>"
    )


def mark(verdict: str, x: float, y: float, size: float = 7) -> str:
    """A verdict as a shape and a colour: down, up, square or ring."""
    css = f'class="mark {verdict}"'
    if verdict == "worse":
        return f'<path {css} d="M{x - size:.1f} {y - 5:g}h{2 * size:g}l{-size:g} 11z"/>'
    if verdict == "better":
        return f'<path {css} d="M{x - size:.1f} {y + 5:g}h{2 * size:g}l{-size:g} -11z"/>'
    if verdict == "same":
        return f'<rect {css} x="{x - 5:.1f}" y="{y - 5:g}" width="10" height="10"/>'
    return f'<circle {css} cx="{x:.1f}" cy="{y:g}" r="5"/>'


def _signed(value: float) -> str:
    return f"{value:g}".replace("-", "\u2212")


def _error(scale: Scale, value: float, error: float | None, y: float) -> str:
    if not error:
        return ""
    x0, x1 = scale(value - error), scale(value + error)
    return f'<line class="error" x1="{x0:.1f}" y1="{y}" x2="{x1:.1f}" y2="{y}"/>'


def _bar(bar: tuple[str, float, float | None], frame: Frame, scale: Scale, y: float) -> str:
    label, value, error = bar
    x0, x1 = scale(0.0), scale(value)
    return (
        f"<g><title>{escape(f'{label}: {value:.4f}')}</title>{row_label(label, frame, y)}"
        f'<rect class="bar" x="{x0:.1f}" y="{y - 8}" width="{max(0.0, x1 - x0):.1f}" '
        f'height="16" rx="2"/>{_error(scale, value, error, y)}</g>'
    )


def _dumbbell(row: Dumbbell, frame: Frame, scale: Scale, y: float) -> str:
    x0, x1 = scale(row.original), scale(row.pruned)
    tip = f"{row.label}: original {row.original:.4f}, pruned {row.pruned:.4f}"
    return (
        f"<g><title>{escape(tip)}</title>{row_label(row.label, frame, y)}"
        f"{_error(scale, row.original, row.original_error, y - 4)}"
        f"{_error(scale, row.pruned, row.pruned_error, y + 4)}"
        f'<line class="link" x1="{x0:.1f}" y1="{y}" x2="{x1:.1f}" y2="{y}"/>'
        f'<circle class="original" cx="{x0:.1f}" cy="{y}" r="6"/>'
        f'<rect class="pruned" x="{x1 - 5.5:.1f}" y="{y - 5.5}" width="11" height="11"/></g>'
    )


def _series(line: Line, across: Scale, up: Scale) -> str:
    path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in line.points)
    dots = "".join(
        f'<circle class="{line.css}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="3">'
        f"<title>{escape(line.label)}, {x:g}: {100 * y:.2f}%</title></circle>"
        for x, y in line.points
    )
    return f'<polyline class="series {line.css}" points="{path}"/>{dots}'
