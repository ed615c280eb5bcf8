"""Sparsity as pictures: a heat map of layers x module kinds, and block tiers a layer."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from prunescope.evaluate.sparsity.aggregate import (
    TIERS,
    Part,
    block_count,
    linear_tensors,
    order_kinds,
    parts_by,
    tier_title,
)
from prunescope.plain import picture_label
from prunescope.records import BlockTiers, SparsityResult, write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["block_tiers", "heat_map", "write_pictures"]

# Okabe and Ito's palette, which colour-blind readers tell apart
_TIER_COLORS = {
    "empty": "#0072B2",
    "at_most_topk": "#56B4E9",
    "two_four": "#009E73",
    "dense": "#E69F00",
    "other": "#BBBBBB",
}
_TEXT = "#1c2026"
_STYLE: Any = {
    "font.size": 10,
    "axes.edgecolor": "#858c96",
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "svg.hashsalt": "prunescope",  # the same picture is the same bytes
}


def write_pictures(result: SparsityResult, directory: Path) -> list[Path]:
    """Draw what the result has tensors for, each picture as PNG and SVG.

    Args:
        result: with its tensors.
        directory: where ``sparsity-heatmap`` and ``block-tiers`` are put; made where missing.

    Returns:
        The files: none where the result has no linear layers.

    Raises:
        OutputError: the folder cannot be written.
    """
    import matplotlib

    written: list[Path] = []
    with matplotlib.rc_context(_STYLE):
        for name, draw in (("sparsity-heatmap", heat_map), ("block-tiers", block_tiers)):
            figure = draw(result)
            if figure is None:
                continue
            for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                content = io.BytesIO()
                with warnings.catch_warnings():  # a module's name may have letters of no font
                    warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
                    figure.savefig(content, format=suffix, dpi=150, metadata=metadata)
                path = directory / f"{name}.{suffix}"
                write_file(path, content.getvalue())
                written.append(path)
    return written


def heat_map(result: SparsityResult) -> Figure | None:
    """Sparsity of each module kind in each decoder block; None without linear layers."""
    cells = _cells(result)
    if not cells:
        return None
    kinds = order_kinds({kind for _, kind in cells})
    layers = sorted({layer for layer, _ in cells})
    grid = np.full((len(layers), len(kinds)), np.nan)
    for (layer, kind), part in cells.items():
        grid[layers.index(layer), kinds.index(kind)] = 100 * part.count.fraction
    height = min(max(0.26 * len(layers), 1.2), 14) + 1.3
    figure, axes = _figure(max(0.75 * len(kinds), 3.0) + 1.9, height)
    image = axes.imshow(grid, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(kinds)), [picture_label(kind, 12) for kind in kinds])
    axes.set_yticks(*_layer_ticks(layers))
    axes.set_xlabel("module")
    axes.set_ylabel("decoder block")
    axes.set_title(
        f"Sparsity: {100 * result.linear.fraction:.2f}% of the linear layers", loc="left"
    )
    bar = figure.colorbar(image, ax=axes, fraction=0.06, pad=0.03)
    bar.set_label("zeros, %")
    bar.outline.set_visible(False)
    if len(layers) <= 40:
        _write_values(axes, grid)
    return figure


def block_tiers(result: SparsityResult) -> Figure | None:
    """Share of the blocks of each tier in each decoder block; None without blocks."""
    parts = parts_by(
        (t for t in linear_tensors(result) if t.layer is not None and t.blocks), lambda t: t.layer
    )
    if not parts:
        return None
    layers = sorted(layer for layer in parts if layer is not None)
    tiers = [parts[layer].blocks for layer in layers]
    first = next(t for t in tiers if t is not None)
    figure, axes = _figure(min(max(0.3 * len(layers), 4.5), 16) + 2.6, 3.6)
    below = [0.0] * len(layers)
    for name in TIERS:
        shares = [100 * _share(t, name) if t else 0.0 for t in tiers]
        axes.bar(
            range(len(layers)),
            shares,
            bottom=below,
            color=_TIER_COLORS[name],
            label=tier_title(name, first.topk),
            width=0.85,
        )
        below = [low + share for low, share in zip(below, shares, strict=True)]
    axes.set_xticks(*_layer_ticks(layers))
    axes.set_xlim(-0.6, len(layers) - 0.4)
    axes.set_ylim(0, 100)
    axes.set_xlabel("decoder block")
    axes.set_ylabel("blocks, %")
    axes.set_title(f"Blocks of {first.block[0]}x{first.block[1]} weights", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    # from the top, as the bars are stacked
    axes.legend(
        handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False
    )
    return figure


def _share(tiers: BlockTiers, name: str) -> float:
    count: int = getattr(tiers, name)
    return count / max(block_count(tiers), 1)


def _cells(result: SparsityResult) -> dict[tuple[int, str], Part]:
    placed = [t for t in linear_tensors(result) if t.layer is not None]
    return parts_by(placed, lambda t: (t.layer if t.layer is not None else -1, t.kind or "other"))


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _layer_ticks(layers: Sequence[int], most: int = 20) -> tuple[list[int], list[str]]:
    step = -(-len(layers) // most)
    places = list(range(0, len(layers), step))
    return places, [str(layers[place]) for place in places]


def _write_values(axes: Axes, grid: npt.NDArray[np.float64]) -> None:
    for row, column in np.argwhere(~np.isnan(grid)).tolist():
        value = grid[row, column]
        # white on the dark end of the scale, black on the light one
        color = "white" if value < 55 else "black"
        axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=color, fontsize=7)
