"""Blocks of a weight matrix and their tiers: empty, few weights left, 2:4, dense, other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from prunescope.errors import SettingError
from prunescope.evaluate.sparsity.masks import Bits, MaskChunk
from prunescope.records import BlockTiers

__all__ = ["BlockCounter", "add_tiers", "check_block"]

_LOWEST_OF_FOUR = 0x1111111111111111


def check_block(block: tuple[int, int], topk: int) -> None:
    """Refuse block sizes that make no sense.

    Raises:
        SettingError: a side below 1, or ``topk`` below 0.
    """
    if min(block) < 1:
        raise SettingError(
            f"expected a block of at least 1x1, found {block[0]}x{block[1]}", hint="Try 16x16"
        )
    if topk < 0:
        raise SettingError(f"expected a topk of at least 0, found {topk}", hint="Try 10")


def add_tiers(first: BlockTiers, second: BlockTiers) -> BlockTiers:
    """The blocks of both. They must have the same block size and topk."""
    sums = {
        field: getattr(first, field) + getattr(second, field)
        for field in ("empty", "at_most_topk", "two_four", "dense", "other", "ragged")
    }
    return first.model_copy(update=sums)


class BlockCounter:
    """Sorts the blocks of a matrix of ``columns`` columns into tiers, some rows at a time.

    A block is counted in the first tier that it fits: empty, at most ``topk`` non-zeros, at most
    two non-zeros in each group of four along a row (counted from the block's left edge), no zero
    at all, other. Blocks at the right and lower edge may be smaller: their real size decides.
    """

    def __init__(self, block: tuple[int, int], topk: int, columns: int) -> None:
        check_block(block, topk)
        self._block = block
        self._topk = topk
        self._columns = columns
        self._across = math.ceil(columns / block[1])
        self._bytes = math.ceil(block[1] / 8)
        self._rows = 0
        self._nonzeros: list[npt.NDArray[Any]] = []
        self._broken: list[npt.NDArray[Any]] = []

    def add(self, chunk: MaskChunk) -> None:
        """Count the blocks of further rows: a multiple of the block's height, or the last."""
        bits = self._aligned(chunk)
        self._rows += bits.shape[0]
        # a byte of the sum holds eight columns of the block's height
        wide = np.uint8 if 8 * self._block[0] < 256 else np.uint32
        self._nonzeros.append(self._by_block(np.bitwise_count(bits), np.add, wide))
        self._broken.append(self._by_block(_over_two_of_four(bits), np.bitwise_or, np.uint8))

    def result(self) -> BlockTiers:
        """The tiers of all blocks so far."""
        nonzeros, broken = np.concatenate(self._nonzeros), np.concatenate(self._broken)
        size = np.outer(_sides(self._rows, self._block[0]), _sides(self._columns, self._block[1]))
        tier = np.full(size.shape, 4, np.uint8)
        tier[nonzeros == size] = 3
        tier[broken == 0] = 2
        tier[nonzeros <= self._topk] = 1
        tier[nonzeros == 0] = 0
        empty, few, two_four, dense, other = np.bincount(tier.reshape(-1), minlength=5).tolist()
        return BlockTiers(
            block=self._block,
            topk=self._topk,
            empty=empty,
            at_most_topk=few,
            two_four=two_four,
            dense=dense,
            other=other,
            ragged=int(np.count_nonzero(size < self._block[0] * self._block[1])),
        )

    def _aligned(self, chunk: MaskChunk) -> Bits:
        """The bits with each block's rows starting at a byte: (rows, blocks across x bytes)."""
        rows = chunk.bits.shape[0]
        width = self._across * self._bytes
        if self._block[1] % 8 == 0:
            missing = width - chunk.bits.shape[1]
            return np.pad(chunk.bits, ((0, 0), (0, missing))) if missing else chunk.bits
        missing = self._across * self._block[1] - self._columns
        whole = np.pad(chunk.nonzero, ((0, 0), (0, missing)))
        return np.packbits(whole.reshape(rows, self._across, self._block[1]), axis=2).reshape(
            rows, width
        )

    def _by_block(
        self, values: npt.NDArray[Any], combine: np.ufunc, dtype: type
    ) -> npt.NDArray[Any]:
        """Combine what belongs to one block: (rows, bytes across) -> (blocks down, across)."""
        height = self._block[0]
        down = math.ceil(values.shape[0] / height)
        missing = down * height - values.shape[0]
        if missing:
            values = np.pad(values, ((0, missing), (0, 0)))
        by_row = combine.reduce(values.reshape(down, height, -1), axis=1, dtype=dtype)
        whole: npt.NDArray[Any] = combine.reduce(
            by_row.reshape(down, self._across, self._bytes), axis=2, dtype=np.uint32
        )
        return whole


def _sides(length: int, side: int) -> npt.NDArray[np.int64]:
    """Length of each block along an edge: ``side``, and what is left for the last one."""
    return np.diff(np.append(np.arange(0, length, side), length))


def _over_two_of_four(bits: Bits) -> Bits:
    """Non-zero bytes where a half byte has more than two bits set, in the shape of ``bits``."""
    flat = bits.reshape(-1)
    if flat.size % 8:
        flat = np.pad(flat, (0, 8 - flat.size % 8))
    words = flat.view(np.uint64)
    shifted = words >> 1
    # the lowest bit of each half byte: both (either) of its lower two bits are set
    both, either = words & shifted, words | shifted
    # more than two of four: both of the one pair and either of the other
    over = ((both & (either >> 2)) | (either & (both >> 2))) & _LOWEST_OF_FOUR
    return over.view(np.uint8)[: bits.size].reshape(bits.shape)
