"""Attention over a packed row in blocks, so that no token is multiplied with another tree's keys.

A packed row of a thousand tokens holds many small trees, and dense attention would spend most of
its work on pairs that the mask forbids. The row is cut into blocks of neighbouring tokens, and
each block attends only to the places that any of its tokens may see: itself and the path that
leads to it. The result is the same; the work falls from the row's length to the tree's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from prunescope.evaluate.scoring.trees import Layout

__all__ = ["Block", "BlockedAttention", "cut_blocks"]

PIECE = 64
"""A longer run of tokens is cut, so that early tokens skip the keys of later ones."""
CALL_COST = 1500
"""What one more call costs, in query-key pairs."""
COPY_COST = 8
"""What copying one key and value together costs, in query-key pairs."""


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring tokens of a row."""

    start: int
    stop: int
    ancestors: tuple[int, ...]
    """Places before ``start`` that its tokens may see, besides the prefix."""


def cut_blocks(layout: Layout, prefix: int) -> list[Block]:
    """The cheapest cut of a row behind ``prefix`` cached tokens (dynamic programming)."""
    pieces: list[Block] = []
    for start, stop, ancestors in layout.branches:
        for a in range(start, stop, PIECE):
            b = min(a + PIECE, stop)
            pieces.append(Block(a, b, (*ancestors, *range(start, a))))
    best = [0.0]
    origin = [0]
    for end in range(1, len(pieces) + 1):
        options = []
        for begin in range(end - 1, -1, -1):
            size = pieces[end - 1].stop - pieces[begin].start
            if size > 8 * PIECE:
                break
            # A depth-first order: what later pieces see before the block, the first one sees too.
            keys = prefix + len(pieces[begin].ancestors) + size
            options.append((best[begin] + CALL_COST + (size + COPY_COST) * keys, begin))
        cost, begin = min(options)
        best.append(cost)
        origin.append(begin)
    blocks: list[Block] = []
    end = len(pieces)
    while end:
        begin = origin[end]
        first = pieces[begin]
        blocks.append(Block(first.start, pieces[end - 1].stop, first.ancestors))
        end = begin
    return blocks[::-1]


class BlockedAttention(TorchFunctionMode):
    """While active, scaled_dot_product_attention over one packed row is computed in blocks."""

    def __init__(self, blocks: Sequence[Block], prefix: int, masks: Sequence[Tensor]) -> None:
        super().__init__()
        self._blocks = blocks
        self._width = blocks[-1].stop
        self._keys = [_key_places(block, prefix) for block in blocks]
        self._slices = {id(mask): self._cut(mask) for mask in masks}
        self._masks = masks  # alive as long as their ids are in use

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.nn.functional.scaled_dot_product_attention or len(args) != 3:
            return func(*args, **kwargs)
        query, key, value = args
        mask = kwargs.pop("attn_mask", None)
        if mask is None or query.shape[0] != 1 or query.shape[2] != self._width:
            return func(query, key, value, attn_mask=mask, **kwargs)
        slices = self._slices.get(id(mask)) or self._cut(mask)
        parts = [
            func(
                query[:, :, block.start : block.stop],
                _take(key, places),
                _take(value, places),
                attn_mask=part,
                **kwargs,
            )
            for block, places, part in zip(self._blocks, self._keys, slices, strict=True)
        ]
        return torch.cat(parts, dim=2)

    def _cut(self, mask: Tensor) -> list[Tensor]:
        return [
            mask[:, :, block.start : block.stop][..., places].contiguous()
            for block, places in zip(self._blocks, self._keys, strict=True)
        ]


def _key_places(block: Block, prefix: int) -> slice | Tensor:
    """Where the block's keys are, counted with the prefix; a slice where they are in one piece."""
    if not block.ancestors and (not prefix or not block.start):
        return slice(block.start, prefix + block.stop)
    ancestors = [prefix + place for place in block.ancestors]
    own = range(prefix + block.start, prefix + block.stop)
    return torch.tensor([*range(prefix), *ancestors, *own])


def _take(states: Tensor, places: slice | Tensor) -> Tensor:
    return states[:, :, places] if isinstance(places, slice) else states.index_select(2, places)
