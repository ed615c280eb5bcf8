"""Look at weight files without loading them: are they whole, and what do they hold?"""

from __future__ import annotations

import json
import struct
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunescope.errors import ModelError
from prunescope.evaluate.loading.gguf_header import read_gguf_header

__all__ = [
    "check_weight_file",
    "dtype_in_config",
    "read_json",
    "read_safetensors_header",
    "shard_files",
    "stored_dtype",
]

_LFS_POINTER = b"version https://git-lfs"
_DOWNLOAD_AGAIN = "Download or copy the file again"

_DTYPE_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I8": "int8",
    "U8": "uint8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "BOOL": "bool",
}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint.

    Raises:
        ModelError: the file cannot be read, or holds something else.
    """
    try:
        _refuse_pointer(path)
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}", hint=_DOWNLOAD_AGAIN) from error
    if not isinstance(value, dict):
        raise ModelError(f"expected a JSON object in {path}, found {type(value).__name__}")
    return value


def shard_files(index: Path) -> tuple[Path, ...]:
    """The weight files that an index (``model.safetensors.index.json``) names, sorted.

    Raises:
        ModelError: the index is damaged, or a file that it names is missing.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} names no weight files (weight_map)", hint=_DOWNLOAD_AGAIN)
    files = tuple(index.parent / name for name in sorted(set(map(str, weight_map.values()))))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelError(
            f"{_names(missing)} of the {len(files)} weight files that {index} names"
            f" {'is' if len(missing) == 1 else 'are'} missing",
            hint="Download or copy the missing files into the folder",
        )
    return files


def check_weight_file(path: Path) -> None:
    """Refuse a weight file that is empty, truncated, a Git LFS pointer or of another format.

    Only the header is read, so that a broken checkpoint is found before anything is loaded.

    Raises:
        ModelError: names the file and says what is wrong with it.
    """
    try:
        _refuse_pointer(path)
        if path.stat().st_size == 0:
            raise ModelError(f"{path} is empty", hint=_DOWNLOAD_AGAIN)
        if path.suffix == ".safetensors":
            read_safetensors_header(path)
        elif path.suffix == ".gguf":
            _check_magic(path, b"GGUF", "GGUF")
            read_gguf_header(path)
        else:
            _check_torch_file(path)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error


def read_safetensors_header(path: Path) -> dict[str, dict[str, Any]]:
    """Tensor name -> its entry in the header: ``dtype``, ``shape``, ``data_offsets``.

    The length of the header and of the data is compared with the size of the file.

    Raises:
        ModelError: the file is truncated or damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > size - 8:
            raise ModelError(
                f"{path} is truncated or not a safetensors file: its header should take"
                f" {length:,} bytes, the file has {size:,}",
                hint=_DOWNLOAD_AGAIN,
            )
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        complete = int(end) + length + 8
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(
            f"{path} is corrupt: its safetensors header cannot be read ({error})",
            hint=_DOWNLOAD_AGAIN,
        ) from error
    if complete != size:
        raise ModelError(
            f"{path} is {'truncated' if size < complete else 'corrupt'}: its header describes"
            f" {complete:,} bytes, the file has {size:,}",
            hint=_DOWNLOAD_AGAIN,
        )
    found: dict[str, dict[str, Any]] = header
    return found


def stored_dtype(files: tuple[Path, ...]) -> str | None:
    """dtype that most of the weights in safetensors files have, by bytes; None without any."""
    sizes: Counter[str] = Counter()
    for file in files:
        if file.suffix == ".safetensors":
            for entry in read_safetensors_header(file).values():
                first, last = entry["data_offsets"]
                sizes[str(entry["dtype"])] += last - first
    if not sizes:
        return None
    name = sizes.most_common(1)[0][0]
    return _DTYPE_NAMES.get(name, name.lower())


def dtype_in_config(config: Mapping[str, Any]) -> str | None:
    """dtype that a ``config.json`` names, under its new or its old key."""
    value = config.get("dtype") or config.get("torch_dtype")
    return value.removeprefix("torch.") if isinstance(value, str) else None


def _refuse_pointer(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ModelError(
                f"{path} is a Git LFS pointer, not the file itself",
                hint="Run 'git lfs pull' in that repository",
            )


def _check_magic(path: Path, magic: bytes, kind: str) -> None:
    with path.open("rb") as file:
        found = file.read(len(magic))
    if found != magic:
        raise ModelError(
            f"{path} is not a {kind} file: it begins with {found!r}", hint=_DOWNLOAD_AGAIN
        )


def _check_torch_file(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(2)
    # torch.save writes a zip archive, and wrote a bare pickle (protocol 2) before torch 1.6.
    if start == b"PK" and not zipfile.is_zipfile(path):
        raise ModelError(f"{path} is truncated: its archive has no end", hint=_DOWNLOAD_AGAIN)
    if start not in (b"PK", b"\x80\x02"):
        raise ModelError(
            f"{path} is not a PyTorch checkpoint: it begins with {start!r}", hint=_DOWNLOAD_AGAIN
        )


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
