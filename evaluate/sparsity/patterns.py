"""N:M patterns: at most N of each M neighbours along the input dimension are not zero.

Everything follows from one histogram: how often each byte of the packed mask occurs. A byte holds
eight neighbours of a row, so it holds whole groups of 2, 4 and 8 (Mishra et al. 2021,
"Accelerating Sparse Deep Neural Networks", section 3, defines 2:4).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prunescope.records import TensorSparsity

__all__ = [
    "PATTERNS",
    "PRUNED",
    "GroupCounts",
    "common_pattern",
    "count_groups",
    "holds",
    "parse_pattern",
    "tightest",
]

PATTERNS: tuple[str, ...] = ("1:4", "2:8", "1:2", "2:4", "4:8")
"""The patterns that are counted, from the tightest: each implies the next of its density."""

PRUNED = 0.01
"""A tensor counts as pruned from this share of zeros on."""

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)


@dataclass(frozen=True)
class GroupCounts:
    """Groups of one pattern in one or more matrices."""

    complying: int
    total: int
    empty: int


def parse_pattern(pattern: str) -> tuple[int, int]:
    """``"2:4"`` as (2, 4)."""
    n, m = pattern.split(":")
    return int(n), int(m)


def _table(size: int) -> npt.NDArray[np.int64]:
    """(256, groups in a byte): the non-zeros in each group of ``size``."""
    table: npt.NDArray[np.int64] = _BITS.reshape(256, 8 // size, size).sum(axis=2, dtype=np.int64)
    return table


_TABLES = {size: _table(size) for size in (2, 4, 8)}


def count_groups(
    histogram: npt.NDArray[np.int64], rows: int, columns: int
) -> dict[str, GroupCounts]:
    """Count the groups of every pattern of a mask of ``rows`` rows of ``columns`` columns.

    Args:
        histogram: (256,), how often each byte of the packed mask occurs. Rows are padded with
            zeros to whole bytes; the groups that the padding makes up are taken off again. A
            ragged last group of a row counts as one, and complies by the weights it has.
        rows: of all matrices together.
        columns: of each matrix.
    """
    counts: dict[str, GroupCounts] = {}
    for pattern in PATTERNS:
        n, m = parse_pattern(pattern)
        in_group = _TABLES[m]
        total = rows * math.ceil(columns / m)
        padding = rows * math.ceil(columns / 8) * (8 // m) - total
        complying = int(histogram @ (in_group <= n).sum(axis=1))
        empty = int(histogram @ (in_group == 0).sum(axis=1))
        counts[pattern] = GroupCounts(complying - padding, total, empty - padding)
    return counts


def tightest(counts: dict[str, GroupCounts]) -> str | None:
    """The tightest pattern that holds in all groups, None where none does."""
    for pattern in PATTERNS:
        groups = counts.get(pattern)
        if groups and groups.total and groups.complying == groups.total:
            return pattern
    return None


def holds(tensor: TensorSparsity, pattern: str) -> bool:
    """Whether all groups of a tensor comply with ``pattern``."""
    total = tensor.nm_total.get(pattern, 0)
    return total > 0 and tensor.nm_groups.get(pattern) == total


def common_pattern(tensors: Iterable[TensorSparsity]) -> str | None:
    """The tightest pattern that holds in every pruned linear layer, None where none does.

    A layer with less than 1 % zeros is not pruned, and one of zeros alone says nothing.
    """
    pruned = [
        tensor
        for tensor in tensors
        if tensor.linear
        and tensor.tied_to is None
        and PRUNED * tensor.parameters <= tensor.zeros < tensor.parameters
    ]
    for pattern in PATTERNS:
        if pruned and all(holds(tensor, pattern) for tensor in pruned):
            return pattern
    return None
