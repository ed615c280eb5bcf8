"""Groups and blocks of several tensors together, and the layers that stand out."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from prunescope.evaluate.sparsity.blocks import add_tiers
from prunescope.evaluate.sparsity.patterns import PATTERNS, GroupCounts
from prunescope.records import BlockTiers, LayerSparsity, SparsityResult, TensorSparsity, ZeroCount

__all__ = [
    "KIND_ORDER",
    "TIERS",
    "LayerSpread",
    "Part",
    "block_count",
    "differing_shapes",
    "layer_spread",
    "linear_tensors",
    "order_kinds",
    "parts_by",
    "tier_title",
]

KIND_ORDER = ("q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down", "router")
"""Module kinds in the order of a decoder block; others follow."""

TIERS = ("empty", "at_most_topk", "two_four", "dense", "other")
"""The tiers of :class:`~prunescope.records.BlockTiers`, in the order in which they are tried."""

_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True)
class Part:
    """Linear layers that belong together."""

    tensors: int
    count: ZeroCount
    groups: dict[str, GroupCounts] = field(default_factory=dict)
    """Pattern -> groups."""
    blocks: BlockTiers | None = None
    rows: int = 0
    empty_rows: int = 0
    columns: int = 0
    empty_columns: int = 0
    heads: int = 0
    empty_heads: int = 0


@dataclass(frozen=True)
class LayerSpread:
    """How sparsity is distributed over the decoder blocks."""

    lowest: LayerSparsity
    median: float
    highest: LayerSparsity
    standing_out: tuple[LayerSparsity, ...]


def linear_tensors(result: SparsityResult) -> list[TensorSparsity]:
    """The linear layers of the decoder blocks, each counted once."""
    return [t for t in result.tensors if t.linear and t.tied_to is None and t.parameters]


def parts_by(
    tensors: Iterable[TensorSparsity], key: Callable[[TensorSparsity], _Key]
) -> dict[_Key, Part]:
    """Add up the tensors that have the same key, in the order of first appearance."""
    together: dict[_Key, list[TensorSparsity]] = {}
    for tensor in tensors:
        together.setdefault(key(tensor), []).append(tensor)
    return {name: _part(members) for name, members in together.items()}


def _part(tensors: list[TensorSparsity]) -> Part:
    blocks: BlockTiers | None = None
    for tensor in tensors:
        if tensor.blocks is not None:
            blocks = add_tiers(blocks, tensor.blocks) if blocks else tensor.blocks
    return Part(
        tensors=len(tensors),
        count=ZeroCount(
            zeros=sum(tensor.zeros for tensor in tensors),
            parameters=sum(tensor.parameters for tensor in tensors),
        ),
        groups={
            pattern: GroupCounts(
                sum(tensor.nm_groups.get(pattern, 0) for tensor in tensors),
                sum(tensor.nm_total.get(pattern, 0) for tensor in tensors),
                sum(tensor.nm_empty.get(pattern, 0) for tensor in tensors),
            )
            for pattern in PATTERNS
        },
        blocks=blocks,
        rows=sum(tensor.rows or 0 for tensor in tensors),
        empty_rows=sum(tensor.empty_rows or 0 for tensor in tensors),
        columns=sum(tensor.columns or 0 for tensor in tensors),
        empty_columns=sum(tensor.empty_columns or 0 for tensor in tensors),
        heads=sum(tensor.heads or 0 for tensor in tensors),
        empty_heads=sum(tensor.empty_heads or 0 for tensor in tensors),
    )


def layer_spread(result: SparsityResult) -> LayerSpread | None:
    """Lowest, median and highest sparsity of the decoder blocks; None without any.

    A block stands out when its modified z-score, 0.6745 x (value - median) / MAD, is beyond 3.5
    (Iglewicz and Hoaglin 1993, "How to Detect and Handle Outliers", section 3.3) and it is more
    than one point from the median.
    """
    if not result.layers:
        return None
    values = {layer.layer: _fraction(layer) for layer in result.layers}
    median = statistics.median(values.values())
    deviation = statistics.median(abs(value - median) for value in values.values())

    def stands_out(layer: LayerSparsity) -> bool:
        distance = abs(values[layer.layer] - median)
        return distance > 0.01 and 0.6745 * distance > 3.5 * deviation

    def by_value(layer: LayerSparsity) -> float:
        return values[layer.layer]

    return LayerSpread(
        lowest=min(result.layers, key=by_value),
        median=median,
        highest=max(result.layers, key=by_value),
        standing_out=tuple(layer for layer in result.layers if stands_out(layer)),
    )


def differing_shapes(result: SparsityResult) -> dict[str, dict[tuple[int, ...], list[int]]]:
    """Module kinds whose shape differs between decoder blocks: what structured pruning leaves.

    Returns:
        kind -> shape -> the blocks that have it. Experts are left out.
    """
    found: dict[str, dict[tuple[int, ...], list[int]]] = {}
    for tensor in linear_tensors(result):
        if tensor.layer is not None and tensor.kind and ".experts." not in tensor.name:
            shapes = found.setdefault(tensor.kind, {})
            shapes.setdefault(tensor.shape, []).append(tensor.layer)
    return {kind: shapes for kind, shapes in found.items() if _differ(list(shapes.values()))}


def _differ(blocks: list[list[int]]) -> bool:
    """Whether blocks have different shapes; a kind that has two in one block has so by design."""
    return len(blocks) > 1 and len({n for part in blocks for n in part}) == sum(map(len, blocks))


def _fraction(layer: LayerSparsity) -> float:
    return ZeroCount(zeros=layer.zeros, parameters=layer.parameters).fraction


def order_kinds(kinds: set[str]) -> list[str]:
    """Module kinds in the order of :data:`KIND_ORDER`, unknown ones after them by name."""
    return [k for k in KIND_ORDER if k in kinds] + sorted(kinds - set(KIND_ORDER))


def tier_title(tier: str, topk: int) -> str:
    """What a tier is called in tables and legends."""
    return {"at_most_topk": f"at most {topk} left", "two_four": "2:4"}.get(tier, tier)


def block_count(tiers: BlockTiers) -> int:
    """All blocks: each is in one tier."""
    return sum(getattr(tiers, name) for name in TIERS)
