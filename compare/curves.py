"""Quality over sparsity, one curve a pruning method."""

from __future__ import annotations

import io
import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from prunescope.compare.leaderboard import LeaderboardRun
from prunescope.plain import picture_label

__all__ = ["CurvePoint", "Quality", "curve_points", "draw_curves"]

Quality = Literal["mean", "ppl"]

_SAME = 0.005
"""Sparsities nearer than half a point are repetitions of the same one."""


@dataclass(frozen=True)
class CurvePoint:
    """Runs of one method at one sparsity."""

    sparsity: float
    """Mean measured sparsity of the runs, a fraction."""
    value: float
    """Mean of the quality."""
    low: float | None
    """95 % t interval over the runs; None for a single one."""
    high: float | None
    runs: int


def curve_points(
    runs: Sequence[LeaderboardRun], quality: Quality = "mean", corpus: str | None = None
) -> dict[str, tuple[CurvePoint, ...]]:
    """Method -> points in the order of sparsity; runs that lack a figure are left out.

    Runs of a method are repetitions (other seeds) where they have the same target sparsity, or
    without one where their sparsities lie within half a point.

    Args:
        runs: pruned runs and originals; those without a method are called ``original`` where
            less than half a percent of their weights are zero, else ``unnamed``.
        quality: mean accuracy, or perplexity.
        corpus: whose perplexity; the first by name when None.
    """
    found: dict[str, list[tuple[float, float, float | None]]] = defaultdict(list)
    for run in runs:
        value = run.mean if quality == "mean" else _perplexity(run, corpus)
        if run.sparsity is None or value is None or not math.isfinite(value):
            continue
        dense = run.sparsity < _SAME
        method = run.method or ("original" if dense else "unnamed")
        found[method].append((run.sparsity, value, run.target_sparsity))
    return {
        method: tuple(_point(group) for group in _repetitions(values))
        for method, values in sorted(found.items())
    }


def _perplexity(run: LeaderboardRun, corpus: str | None) -> float | None:
    if corpus is not None:
        return run.perplexity.get(corpus)
    return run.perplexity[min(run.perplexity)] if run.perplexity else None


def _repetitions(
    values: list[tuple[float, float, float | None]],
) -> list[list[tuple[float, float]]]:
    groups: list[tuple[float | None, list[tuple[float, float]]]] = []
    for sparsity, value, target in sorted(values, key=lambda v: (v[0], v[1])):
        for known, group in groups:
            near = sparsity - group[0][0] < _SAME
            if (known == target) if (known is not None and target is not None) else near:
                group.append((sparsity, value))
                break
        else:
            groups.append((target, [(sparsity, value)]))
    return [group for _, group in groups]


def _point(group: list[tuple[float, float]]) -> CurvePoint:
    sparsity = math.fsum(s for s, _ in group) / len(group)
    values = np.asarray([v for _, v in group])
    mean = float(values.mean())
    if len(values) < 2:
        return CurvePoint(sparsity, mean, None, None, 1)
    t = float(special.stdtrit(len(values) - 1, 0.975))
    half = t * float(values.std(ddof=1)) / math.sqrt(len(values))
    return CurvePoint(sparsity, mean, mean - half, mean + half, len(values))


def draw_curves(
    curves: dict[str, tuple[CurvePoint, ...]], quality: Quality = "mean", kind: str = "png"
) -> bytes:
    """The curves as a picture (matplotlib): ``png``, ``svg`` or ``pdf``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for method, points in curves.items():
        x = [100 * point.sparsity for point in points]
        y = [point.value for point in points]
        (line,) = axes.plot(x, y, marker="o", label=picture_label(method))
        low = [point.value if point.low is None else point.low for point in points]
        high = [point.value if point.high is None else point.high for point in points]
        if low != y:
            axes.fill_between(x, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
    axes.set_xlabel("Sparsity of the linear layers (%)")
    axes.set_ylabel("Mean accuracy" if quality == "mean" else "Perplexity (log scale)")
    if quality == "ppl" and any(curves.values()):
        axes.set_yscale("log")
    axes.grid(visible=True, alpha=0.3)
    if curves:
        axes.legend(frameon=False)
    out = io.BytesIO()
    with warnings.catch_warnings():  # of a name's letters that the font lacks: boxes stand for them
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure.savefig(out, format=kind)
    return out.getvalue()
