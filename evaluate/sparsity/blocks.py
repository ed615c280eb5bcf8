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

_PAIRS, _FOURS = 0x5555555555555555, 0x1111111111111111


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
        widths = np.full(self._across, block[1], np.int64)
        if columns % block[1]:
            widths[-1] = columns % block[1]
        self._widths = widths
        self._tiers = np.zeros(5, np.int64)
        self._ragged = 0
        self.empty_rows = 0

    def add(self, chunk: MaskChunk) -> None:
        """Count the blocks of further rows: a multiple of the block's height, or the last."""
        height = self._block[0]
        rows = chunk.bits.shape[0]
        down = math.ceil(rows / height)
        bits = self._aligned(chunk)
        in_byte = np.bitwise_count(bits)
        self.empty_rows += rows - int(np.count_nonzero(in_byte.any(axis=1)))
        count = self._by_block(in_byte, down, np.add, np.uint32)
        broken = self._by_block(_over_two_of_four(bits), down, np.bitwise_or, np.uint8)
        heights = np.full(down, height, np.int64)
        if rows % height:
            heights[-1] = rows % height
        size = heights[:, None] * self._widths[None, :]
        self._sort(count, broken == 0, size)

    def result(self) -> BlockTiers:
        """The tiers of all blocks so far."""
        empty, few, two_four, dense, other = (int(count) for count in self._tiers)
        return BlockTiers(
            block=self._block,
            topk=self._topk,
            empty=empty,
            at_most_topk=few,
            two_four=two_four,
            dense=dense,
            other=other,
            ragged=self._ragged,
        )

    def _sort(
        self, count: npt.NDArray[Any], complies: npt.NDArray[np.bool_], size: npt.NDArray[Any]
    ) -> None:
        tier = np.full(count.shape, 4, np.uint8)
        tier[count == size] = 3
        tier[complies] = 2
        tier[count <= self._topk] = 1
        tier[count == 0] = 0
        self._tiers += np.bincount(tier.reshape(-1), minlength=5)
        self._ragged += int(np.count_nonzero(size < self._block[0] * self._block[1]))

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
        self, values: npt.NDArray[Any], down: int, combine: np.ufunc, dtype: type
    ) -> npt.NDArray[Any]:
        """Combine what belongs to one block: (rows, bytes across) -> (blocks down, across)."""
        height = self._block[0]
        missing = down * height - values.shape[0]
        if missing:
            values = np.pad(values, ((0, missing), (0, 0)))
        by_row = combine.reduce(values.reshape(down, height, -1), axis=1, dtype=dtype)
        whole: npt.NDArray[Any] = combine.reduce(
            by_row.reshape(down, self._across, self._bytes), axis=2, dtype=dtype
        )
        return whole


def _over_two_of_four(bits: Bits) -> Bits:
    """Non-zero bytes where a half byte has more than two bits set, in the shape of ``bits``."""
    padded = np.zeros(math.ceil(bits.size / 8) * 8, np.uint8)
    padded[: bits.size] = bits.reshape(-1)
    words = padded.view(np.uint64)
    both = words & (words >> 1) & _PAIRS
    either = (words | (words >> 1)) & _PAIRS
    over = ((both & (either >> 2)) | (either & (both >> 2))) & _FOURS
    return over.view(np.uint8)[: bits.size].reshape(bits.shape)
