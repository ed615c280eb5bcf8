"""The header of a GGUF file, read in milliseconds and without its vocabulary.

``gguf.GGUFReader`` builds a Python object for each token, which takes seconds.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunescope.errors import ModelError

__all__ = ["GgufHeader", "read_gguf_header"]

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"} | {
    10: "Q",
    11: "q",
    12: "d",
}
_STRING = 8
_ARRAY = 9


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says about itself."""

    metadata: dict[str, Any]
    """Scalars and strings; arrays are left out."""
    tensor_bytes: dict[str, int]
    """Tensor type (``F16``, ``Q4_1``, ...) -> bytes in tensors of that type."""

    @property
    def architecture(self) -> str | None:
        """llama.cpp's name of the architecture, for example ``llama``."""
        return self.metadata.get("general.architecture")

    @property
    def main_type(self) -> str | None:
        """The tensor type that most bytes have."""
        return max(self.tensor_bytes, key=self.tensor_bytes.__getitem__, default=None)


def read_gguf_header(path: Path) -> GgufHeader:
    """Read the metadata and the table of tensors, and check that the data is all there.

    Raises:
        ModelError: the file is truncated or damaged.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data).read(path)
    except (struct.error, ValueError, KeyError, IndexError, OverflowError) as error:
        raise ModelError(
            f"{path} is truncated or corrupt: its GGUF header cannot be read ({error})",
            hint="Download or copy the file again",
        ) from error


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.position = 4

    def read(self, path: Path) -> GgufHeader:
        version = self.scalar("I")
        if version not in (2, 3):
            raise ModelError(f"{path} has GGUF version {version}, versions 2 and 3 can be read")
        tensors, pairs = self.scalar("Q"), self.scalar("Q")
        metadata = {}
        for _ in range(pairs):
            key = self.string()
            value = self.value(self.scalar("I"))
            if value is not None:
                metadata[key] = value
        sizes: Counter[str] = Counter()
        end = 0
        for _ in range(tensors):
            kind, size, offset = self.tensor()
            sizes[kind] += size
            end = max(end, offset + size)
        alignment = int(metadata.get("general.alignment", 32))
        needed = math.ceil(self.position / alignment) * alignment + end
        if needed > len(self.data):
            raise ModelError(
                f"{path} is truncated: its header describes {needed:,} bytes, the file has"
                f" {len(self.data):,}",
                hint="Download or copy the file again",
            )
        return GgufHeader(metadata, dict(sizes))

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.position)
        self.position += struct.calcsize(f"<{code}")
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        start, self.position = self.position, self.position + length
        if self.position > len(self.data):
            raise ValueError("a string runs past the end")
        return self.data[start : self.position].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind == _STRING:
            for _ in range(count):
                length = self.scalar("Q")
                self.position += length
        elif kind == _ARRAY:
            for _ in range(count):
                self.value(_ARRAY)
        else:
            self.position += count * struct.calcsize(f"<{_SCALARS[kind]}")
        return None

    def tensor(self) -> tuple[str, int, int]:
        """Type, bytes and offset of the next tensor in the table."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        self.string()
        dimensions = self.scalar("I")
        count = math.prod(self.scalar("Q") for _ in range(dimensions))
        kind = GGMLQuantizationType(self.scalar("I"))
        block, block_bytes = GGML_QUANT_SIZES[kind]
        return kind.name, count // block * block_bytes, self.scalar("Q")
