"""What became of one checkpoint's zeros in another, weight by weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from prunescope.evaluate.sparsity.masks import bits_set
from prunescope.evaluate.sparsity.names import ModelNames
from prunescope.evaluate.sparsity.structure import Stored

__all__ = ["CheckpointDrift", "Overlap", "TensorDrift", "measure_drift"]

_Key = TypeVar("_Key", int, str)
_Tensors = Iterable[tuple[str, torch.Tensor]]


@dataclass(frozen=True)
class Overlap:
    """The zeros of one mask against another's."""

    parameters: int = 0
    kept: int = 0
    """Zero in both."""
    returned: int = 0
    """Zero in the first, not in the second: pruned weights that came back."""
    new: int = 0
    """Zero in the second alone."""

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(
            self.parameters + other.parameters,
            self.kept + other.kept,
            self.returned + other.returned,
            self.new + other.new,
        )


@dataclass(frozen=True)
class TensorDrift:
    """One linear layer of a decoder block in both checkpoints."""

    name: str
    layer: int | None
    kind: str
    overlap: Overlap


@dataclass(frozen=True)
class CheckpointDrift:
    """The linear layers of the decoder blocks of two checkpoints."""

    tensors: tuple[TensorDrift, ...]
    shapes: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    """Name, first shape, second shape of the layers that cannot be laid over each other."""
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    @property
    def total(self) -> Overlap:
        """All layers together."""
        return sum((tensor.overlap for tensor in self.tensors), Overlap())

    @property
    def mask_kept(self) -> bool | None:
        """Whether the second mask contains the first: no zero came back.

        None where none did, but some layers could not be compared (or there are none).
        """
        if self.total.returned:
            return False
        if self.shapes or self.only_first or self.only_second or not self.tensors:
            return None
        return True

    def by_kind(self) -> dict[str, Overlap]:
        """Module kind -> overlap."""
        return _sums((tensor.kind, tensor.overlap) for tensor in self.tensors)

    def by_layer(self) -> dict[int, Overlap]:
        """Index of the decoder block -> overlap."""
        pairs = ((t.layer, t.overlap) for t in self.tensors if t.layer is not None)
        return dict(sorted(_sums(pairs).items()))


def measure_drift(
    first: _Tensors,
    second: _Tensors,
    *,
    first_config: Mapping[str, Any] | None = None,
    second_config: Mapping[str, Any] | None = None,
    advance: Callable[[int], None] | None = None,
) -> CheckpointDrift:
    """Lay the second checkpoint's zeros over the first's.

    Args:
        first, second: (name, tensor) pairs in the order of the names, as
            :func:`prunescope.evaluate.checkpoint.iter_tensors` yields them.
        first_config, second_config: each model's ``config.json``.
        advance: told the bytes of each tensor of both when it is done.

    Raises:
        ModelError: a dtype in which zeros cannot be counted.
    """
    tensors: list[TensorDrift] = []
    shapes: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    only: tuple[list[str], list[str]] = ([], [])
    tell = advance or _ignore
    pairs = _pairs(
        _linear(first, ModelNames(first_config), tell),
        _linear(second, ModelNames(second_config), tell),
    )
    for one, two in pairs:
        if one is None or two is None:
            for side, stored in zip(only, (one, two), strict=True):
                if stored is not None:
                    side.append(stored.name)
        elif one.shape != two.shape:
            shapes.append((one.name, one.shape, two.shape))
        else:
            tensors.append(TensorDrift(one.name, one.role.layer, one.role.kind, _overlap(one, two)))
    return CheckpointDrift(tuple(tensors), tuple(shapes), tuple(only[0]), tuple(only[1]))


def _ignore(amount: int) -> None:
    """Nobody listens."""


def _linear(tensors: _Tensors, names: ModelNames, tell: Callable[[int], None]) -> Iterator[Stored]:
    for name, tensor in tensors:
        role = names.role(name, tensor.shape)
        if role.linear:
            yield Stored.of(name, tensor, role)
        tell(tensor.nbytes)


def _pairs(
    first: Iterator[Stored], second: Iterator[Stored]
) -> Iterator[tuple[Stored | None, Stored | None]]:
    """Merge two streams in the order of the names; None where one has no such tensor."""
    one, two = next(first, None), next(second, None)
    while one is not None or two is not None:
        if two is None or (one is not None and one.name < two.name):
            yield one, None
            one = next(first, None)
        elif one is None or two.name < one.name:
            yield None, two
            two = next(second, None)
        else:
            yield one, two
            one, two = next(first, None), next(second, None)


def _overlap(one: Stored, two: Stored) -> Overlap:
    first_zeros = second_zeros = one.words.array.size
    returned = 0
    for first, second in zip(one.chunks(), two.chunks(), strict=True):
        first_zeros -= bits_set(first.bits)
        second_zeros -= bits_set(second.bits)
        returned += bits_set(second.bits & ~first.bits)
    kept = first_zeros - returned
    return Overlap(one.words.array.size, kept, returned, second_zeros - kept)


def _sums(pairs: Iterable[tuple[_Key, Overlap]]) -> dict[_Key, Overlap]:
    sums: dict[_Key, Overlap] = {}
    for key, overlap in pairs:
        sums[key] = sums.get(key, Overlap()) + overlap
    return sums
