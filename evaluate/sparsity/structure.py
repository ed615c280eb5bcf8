"""Zeros and their structure in one tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from prunescope.errors import ModelError
from prunescope.evaluate.sparsity.blocks import BlockCounter, add_tiers
from prunescope.evaluate.sparsity.masks import (
    Bits,
    MaskChunk,
    Words,
    bits_set,
    flat_chunks,
    matrix_chunks,
    words_of,
)
from prunescope.evaluate.sparsity.names import EMBEDDING, TensorRole
from prunescope.evaluate.sparsity.patterns import count_groups, tightest
from prunescope.records import BlockTiers, TensorSparsity

__all__ = ["Stored", "structure_of", "zeros_of"]

_PACKED = frozenset({"uint8", "int16", "int32", "int64"})


@dataclass(frozen=True)
class Stored:
    """A tensor as it is stored."""

    name: str
    dtype: str
    words: Words
    role: TensorRole

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor, role: TensorRole) -> Stored:
        """The tensor ``name``.

        Raises:
            ModelError: the dtype is not one that zeros can be counted in.
        """
        return cls(name, str(tensor.dtype).removeprefix("torch."), words_of(name, tensor), role)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that it is stored in."""
        return self.words.array.shape

    def matrices(self) -> tuple[npt.NDArray[Any], ...]:
        """The matrices (out, in) of a linear layer or an embedding: one, or one an expert.

        None for other tensors and for those without a weight.
        """
        array, role = self.words.array, self.role
        if not array.size or not (role.linear or (role.kind == EMBEDDING and array.ndim == 2)):
            return ()
        stack = array if array.ndim == 3 else array[None]
        return tuple(matrix.T if role.transposed else matrix for matrix in stack)

    def chunks(self) -> Iterator[MaskChunk]:
        """The whole mask: of a matrix (out, in), each row padded to a byte, of any other tensor
        in its stored order."""
        matrices = self.matrices()
        if not matrices:
            yield from flat_chunks(self.words)
        for matrix in matrices:
            yield from matrix_chunks(self.words, matrix, 1)


def zeros_of(stored: Stored) -> TensorSparsity:
    """The zeros of a tensor and the hash of its mask, without structure."""
    digest = hashlib.sha256()
    nonzero = nonfinite = 0
    for chunk in stored.chunks():
        digest.update(chunk.bits.data)
        nonzero += bits_set(chunk.bits)
        nonfinite += chunk.nonfinite
    return _tensor(stored, nonzero, digest.hexdigest(), nonfinite)


def structure_of(stored: Stored, *, block: tuple[int, int], topk: int) -> TensorSparsity:
    """Everything about one tensor: zeros, and for a matrix N:M groups, blocks, rows and columns.

    Raises:
        ModelError: a decoder block's weights are packed integers.
    """
    role = stored.role
    if stored.dtype in _PACKED and stored.words.array.ndim >= 2 and role.layer is not None:
        raise ModelError(
            f"expected weights as numbers, found packed {stored.dtype} in {stored.name}",
            hint="Evaluate a dequantized checkpoint, or leave out the sparsity stage",
        )
    matrices = stored.matrices()
    if not matrices:
        return zeros_of(stored)
    tally = _Tally(block, topk, role)
    for matrix in matrices:
        tally.add(stored.words, matrix)
    columns = matrices[0].shape[1]
    rows = sum(matrix.shape[0] for matrix in matrices)
    nonzero = int(tally.histogram @ _SET)
    found = _tensor(stored, nonzero, tally.digest.hexdigest(), tally.nonfinite)
    changes: dict[str, Any] = {
        "rows": rows,
        "columns": columns * len(matrices),
        "empty_rows": tally.empty_rows,
        "empty_columns": tally.empty_columns,
        "heads": tally.heads,
        "empty_heads": tally.empty_heads,
    }
    if role.linear:
        groups = count_groups(tally.histogram, rows, columns)
        changes |= {
            "nm_groups": {pattern: count.complying for pattern, count in groups.items()},
            "nm_total": {pattern: count.total for pattern, count in groups.items()},
            "nm_empty": {pattern: count.empty for pattern, count in groups.items()},
            "pattern": tightest(groups),
            "blocks": tally.blocks,
        }
    return found.model_copy(update=changes)


_SET = np.bitwise_count(np.arange(256, dtype=np.uint8)).astype(np.int64)


class _Tally:
    """What the matrices of one tensor add up to."""

    def __init__(self, block: tuple[int, int], topk: int, role: TensorRole) -> None:
        self._block, self._topk, self._role = block, topk, role
        self.digest = hashlib.sha256()
        self.histogram = np.zeros(256, np.int64)
        self.blocks: BlockTiers | None = None
        self.empty_rows = self.empty_columns = self.nonfinite = 0
        self.heads: int | None = None
        self.empty_heads: int | None = None

    def add(self, words: Words, matrix: npt.NDArray[Any]) -> None:
        columns = matrix.shape[1]
        counter = BlockCounter(self._block, self._topk, columns)
        rows: list[npt.NDArray[np.bool_]] = []
        across = np.zeros((columns + 7) // 8, np.uint8)
        for chunk in matrix_chunks(words, matrix, self._block[0]):
            self.digest.update(chunk.bits.data)
            # torch counts bytes as they are; numpy would widen them to 64 bits first
            counts = torch.bincount(torch.from_numpy(chunk.bits.reshape(-1)), minlength=256)
            self.histogram += counts.numpy()
            counter.add(chunk)
            rows.append(_used_rows(chunk.bits))
            across |= np.bitwise_or.reduce(chunk.bits, axis=0)
            self.nonfinite += chunk.nonfinite
        by_row, by_column = np.concatenate(rows), np.unpackbits(across, count=columns) != 0
        self.empty_rows += int(np.count_nonzero(~by_row))
        self.empty_columns += int(np.count_nonzero(~by_column))
        self._count_heads(by_column if self._role.kind == "o" else by_row)
        tiers = counter.result()
        self.blocks = add_tiers(self.blocks, tiers) if self.blocks else tiers

    def _count_heads(self, used: npt.NDArray[np.bool_]) -> None:
        size = self._role.head_size
        if size and used.size % size == 0:
            heads = used.reshape(-1, size).any(axis=1)
            self.heads = (self.heads or 0) + heads.size
            self.empty_heads = (self.empty_heads or 0) + int(np.count_nonzero(~heads))


def _used_rows(bits: Bits) -> npt.NDArray[np.bool_]:
    """(rows,): whether a row has a weight."""
    words = bits.view(np.uint64) if bits.shape[1] % 8 == 0 else bits
    used: npt.NDArray[np.bool_] = np.bitwise_or.reduce(words, axis=1) != 0
    return used


def _tensor(stored: Stored, nonzero: int, mask_sha256: str, nonfinite: int) -> TensorSparsity:
    array, role = stored.words.array, stored.role
    return TensorSparsity(
        name=stored.name,
        shape=array.shape,
        dtype=stored.dtype,
        zeros=array.size - nonzero,
        parameters=array.size,
        layer=role.layer,
        kind=role.kind,
        linear=role.linear,
        mask_sha256=mask_sha256,
        nonfinite=nonfinite,
    )
