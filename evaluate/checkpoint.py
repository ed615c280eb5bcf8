"""A checkpoint's tensors, one after the other, without building the model.

Safetensors shards are mapped, read and let go again tensor by tensor, so that memory stays at
about one tensor whatever the checkpoint's size. ``.bin`` shards are read with ``weights_only``.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from prunescope.errors import ModelError

__all__ = ["CheckpointKind", "iter_model", "iter_tensors", "tensor_names"]

CheckpointKind = Literal["safetensors", "bin"]

_REOPEN_BYTES = 16 * 2**20
"""How much of a mapped shard may be resident before it is mapped afresh."""


def iter_tensors(files: Sequence[Path], kind: CheckpointKind) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of all shards in the order of the names.

    The tensors are on the CPU, as stored. A safetensors tensor is a view of the mapped file: it
    stays valid as long as it is held, and its pages are given back when it is dropped.

    Args:
        files: the shards, in any order.
        kind: how they are stored.

    Raises:
        ModelError: a shard is missing, damaged or cut off, or two shards hold the same name.
    """
    place = _locate(files, kind)
    reader = _SafetensorsReader() if kind == "safetensors" else _BinReader()
    for name in sorted(place):
        yield name, reader.read(place[name], name)


def tensor_names(files: Sequence[Path], kind: CheckpointKind) -> tuple[str, ...]:
    """The names of all tensors, sorted, from the shards' headers alone.

    Raises:
        ModelError: as :func:`iter_tensors`.
    """
    return tuple(sorted(_locate(files, kind)))


def iter_model(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of a model in memory in the order of the names.

    Gives every parameter once (a tied one under the name that comes first in the model, which is
    the embedding's) and the buffers that a checkpoint would store.
    """
    found: dict[str, torch.Tensor] = dict(model.named_parameters())
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, value in model.state_dict().items():
        if name not in parameters and isinstance(value, torch.Tensor):
            found[name] = value
    for name in sorted(found):
        yield name, found[name].detach()


def _locate(files: Sequence[Path], kind: CheckpointKind) -> dict[str, Path]:
    """Tensor name -> shard."""
    if not files:
        raise ModelError(
            "expected at least one weights file, found none", hint="Check the model folder"
        )
    place: dict[str, Path] = {}
    for path in files:
        names = _safetensors_names(path) if kind == "safetensors" else _load_bin(path).keys()
        for name in names:
            if name in place:
                raise ModelError(
                    f"expected each tensor in one shard, found {name} in {place[name]} and {path}",
                    hint="Remove the shard that does not belong to this checkpoint",
                )
            place[name] = path
    return place


def _damaged(path: Path, error: Exception) -> ModelError:
    reason = " ".join(str(error).split()).removesuffix(".") or type(error).__name__
    return ModelError(
        f"cannot read {path}: {reason}",
        hint="The file is missing, damaged or cut off: copy or download it again",
    )


def _open_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error


def _safetensors_names(path: Path) -> list[str]:
    return list(_open_safetensors(path).keys())


class _SafetensorsReader:
    """Keeps one shard mapped and maps it afresh when much of it has become resident."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file: Any = None
        self._read = 0

    def read(self, path: Path, name: str) -> torch.Tensor:
        from safetensors import SafetensorError

        if path != self._path or self._read > _REOPEN_BYTES:
            self._file = None
            self._file, self._path, self._read = _open_safetensors(path), path, 0
        try:
            tensor: torch.Tensor = self._file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise _damaged(path, error) from error
        self._read += tensor.nbytes
        return tensor


def _load_bin(path: Path) -> Mapping[str, torch.Tensor]:
    settings: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        try:
            content = torch.load(path, mmap=True, **settings)
        except RuntimeError:  # written before torch 1.6, which cannot be mapped
            content = torch.load(path, **settings)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"expected nothing but tensors in {path}, found what weights_only refuses to read",
            hint="The file is damaged, or would run code: get it again, best as safetensors",
        ) from error
    except Exception as error:  # a damaged pickle may raise anything
        raise _damaged(path, error) from error
    if not isinstance(content, Mapping):
        raise ModelError(
            f"expected a dictionary of tensors in {path}, found {type(content).__name__}",
            hint="Save the model with save_pretrained",
        )
    return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}


class _BinReader:
    """Keeps one shard open and maps it afresh when much of it has become resident."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._content: Mapping[str, torch.Tensor] = {}
        self._read = 0

    def read(self, path: Path, name: str) -> torch.Tensor:
        if path != self._path or self._read > _REOPEN_BYTES:
            self._content = {}
            self._content, self._path, self._read = _load_bin(path), path, 0
        tensor = self._content[name]
        self._read += tensor.nbytes
        return tensor
