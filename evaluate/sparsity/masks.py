"""Which weights are zero, as packed bits, from the stored bytes.

A weight is zero when its value is: both +0.0 and -0.0 are, a subnormal is not. The test works on
the bit patterns, so no floating-point mode of the processor (flush to zero) can change it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from prunescope.errors import ModelError

__all__ = [
    "Bits",
    "Encoding",
    "MaskChunk",
    "Words",
    "bits_set",
    "flat_chunks",
    "matrix_chunks",
    "words_of",
]

Bits = npt.NDArray[np.uint8]
"""Packed non-zero flags, most significant bit first; each row is padded with zeros to a byte."""

_CHUNK = 2**18
"""Weights handled at once: what fits into a processor's cache."""


@dataclass(frozen=True)
class Encoding:
    """How a dtype writes zero and non-finite values."""

    word: type[np.unsignedinteger[Any]]
    """Unsigned integer as wide as the dtype."""
    signed: bool = True
    """Whether the highest bit is a sign to be ignored, so that -0.0 is zero."""
    limit: int | None = None
    """NaN and infinity are the words of at least this, after the sign was shifted out."""


_ENCODINGS: dict[torch.dtype, Encoding] = {
    torch.float64: Encoding(np.uint64, limit=0xFFE << 52),
    torch.float32: Encoding(np.uint32, limit=0xFF << 24),
    torch.bfloat16: Encoding(np.uint16, limit=0xFF << 8),
    torch.float16: Encoding(np.uint16, limit=0x1F << 11),
    torch.float8_e4m3fn: Encoding(np.uint8, limit=0xFE),
    torch.float8_e5m2: Encoding(np.uint8, limit=0xF8),
    # no -0.0 in these two: that pattern, 0x80, is their only NaN
    torch.float8_e4m3fnuz: Encoding(np.uint8, signed=False, limit=0x80),
    torch.float8_e5m2fnuz: Encoding(np.uint8, signed=False, limit=0x80),
    torch.int8: Encoding(np.uint8, signed=False),
    torch.uint8: Encoding(np.uint8, signed=False),
    torch.bool: Encoding(np.uint8, signed=False),
    torch.int16: Encoding(np.uint16, signed=False),
    torch.int32: Encoding(np.uint32, signed=False),
    torch.int64: Encoding(np.uint64, signed=False),
}


@dataclass(frozen=True)
class Words:
    """A tensor's stored bit patterns."""

    array: npt.NDArray[Any]
    """Unsigned integers in the tensor's shape, C-contiguous."""
    encoding: Encoding


@dataclass(frozen=True)
class MaskChunk:
    """Some rows of a mask."""

    bits: Bits
    """(rows, bytes a row)."""
    nonzero: npt.NDArray[np.bool_]
    """(rows, columns), valid until the next chunk is asked for."""
    nonfinite: int
    """NaN or infinite weights among them."""


def bits_set(bits: Bits) -> int:
    """How many bits are set."""
    return int(np.bitwise_count(bits).sum(dtype=np.int64))


def words_of(name: str, tensor: torch.Tensor) -> Words:
    """The bit patterns of a tensor, without a copy where it is contiguous and on the CPU.

    Raises:
        ModelError: the dtype is not one that zeros can be counted in.
    """
    encoding = _ENCODINGS.get(tensor.dtype)
    if encoding is None:
        raise ModelError(
            f"expected weights in a floating-point or integer dtype, "
            f"found {str(tensor.dtype).removeprefix('torch.')} in {name}",
            hint="Evaluate a dequantized checkpoint",
        )
    tensor = tensor.detach().cpu().contiguous()
    flat = tensor.reshape(-1).view(torch.uint8).numpy().view(encoding.word)
    return Words(flat.reshape(tuple(tensor.shape)), encoding)


def flat_chunks(words: Words) -> Iterator[MaskChunk]:
    """The mask of a whole tensor in its stored order, as chunks of one row."""
    flat = words.array.reshape(1, -1)
    columns = min(_CHUNK, flat.shape[1])
    buffers = _Buffers(words.encoding, 1, columns)
    for start in range(0, flat.shape[1], max(columns, 1)):
        yield buffers.chunk(flat[:, start : start + columns])


def matrix_chunks(words: Words, matrix: npt.NDArray[Any], multiple: int) -> Iterator[MaskChunk]:
    """The mask of one matrix (out, in), some rows at a time.

    Args:
        words: the tensor that the matrix is a view of.
        matrix: (out, in), with any strides.
        multiple: each chunk but the last has a multiple of so many rows.
    """
    rows, columns = matrix.shape
    step = min(max(_CHUNK // max(columns, 1) // multiple, 1) * multiple, rows)
    buffers = _Buffers(words.encoding, step, columns)
    for start in range(0, rows, max(step, 1)):
        yield buffers.chunk(matrix[start : start + step])


class _Buffers:
    """Memory that is used again for each chunk, so that it stays in the cache."""

    def __init__(self, encoding: Encoding, rows: int, columns: int) -> None:
        self._encoding = encoding
        self._shifted = np.empty((rows, columns), encoding.word)
        self._nonzero = np.empty((rows, columns), np.bool_)

    def chunk(self, part: npt.NDArray[Any]) -> MaskChunk:
        rows, columns = part.shape
        shifted = self._shifted.reshape(-1)[: rows * columns].reshape(rows, columns)
        nonzero = self._nonzero.reshape(-1)[: rows * columns].reshape(rows, columns)
        if self._encoding.signed:
            np.add(part, part, out=shifted)  # shifts the sign out
        else:
            np.copyto(shifted, part)
        np.not_equal(shifted, 0, out=nonzero)
        if columns % 8:
            bits = np.packbits(nonzero, axis=1)
        else:
            bits = np.packbits(nonzero.reshape(-1)).reshape(rows, columns // 8)
        return MaskChunk(bits, nonzero, self._count_nonfinite(shifted))

    def _count_nonfinite(self, shifted: npt.NDArray[Any]) -> int:
        limit = self._encoding.limit
        if limit is None or not shifted.size:
            return 0
        if not self._encoding.signed:
            return int(np.count_nonzero(shifted == limit))
        if int(shifted.max()) < limit:
            return 0
        return int(np.count_nonzero(shifted >= limit))
