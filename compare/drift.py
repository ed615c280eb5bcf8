"""What two runs' records tell about their masks: the same, kept, or pruned weights come back.

A record holds each tensor's zeros and the hash of its mask. Equal hashes are equal masks, fewer
zeros are zeros that came back, and where the masks differ with as many zeros or more, only the
two checkpoints themselves can tell (``prunescope sparsity A --against B``).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from prunescope.records import SparsityResult, TensorSparsity, ZeroCount

__all__ = ["DriftCount", "MaskDrift", "TensorPair", "mask_drift"]

_Key = TypeVar("_Key", bound=Hashable)
_NONE = ZeroCount(zeros=0, parameters=0)


@dataclass(frozen=True)
class TensorPair:
    """A linear layer of a decoder block in both runs."""

    first: TensorSparsity
    second: TensorSparsity

    @property
    def comparable(self) -> bool:
        """Whether the masks can be laid over each other: their shapes are equal."""
        return self.first.shape == self.second.shape

    @property
    def same_mask(self) -> bool | None:
        """Whether the same weights are zero; None where a hash is missing."""
        if not self.comparable or self.first.zeros != self.second.zeros:
            return False
        if self.first.zeros in (0, self.first.parameters):
            return True
        if self.first.mask_sha256 is None or self.second.mask_sha256 is None:
            return None
        return self.first.mask_sha256 == self.second.mask_sha256

    @property
    def kept(self) -> bool | None:
        """Whether every zero of the first is one in the second; None where counts cannot tell."""
        if not self.comparable:
            return None
        if self.first.zeros == 0 or self.second.zeros == self.second.parameters:
            return True
        if self.second.zeros < self.first.zeros:
            return False
        if self.first.zeros == self.second.zeros:
            return self.same_mask  # as many zeros in other places: some have come back
        return None

    @property
    def returned_at_least(self) -> int:
        """Fewest zeros that must have come back."""
        if not self.comparable:
            return 0
        lost = max(0, self.first.zeros - self.second.zeros)
        return max(lost, 1) if self.kept is False else lost


@dataclass(frozen=True)
class DriftCount:
    """Some linear layers together."""

    tensors: int
    changed: int
    """Layers whose masks are known to differ."""
    same_mask: bool | None
    """Whether all masks are equal; None where a hash is missing."""
    first: ZeroCount
    second: ZeroCount
    returned_at_least: int
    """Fewest zeros that must have come back."""
    kept: bool | None
    """Whether every zero of the first is one in the second; None where counts cannot tell."""


@dataclass(frozen=True)
class MaskDrift:
    """The linear layers of the decoder blocks of two runs."""

    total: DriftCount
    kinds: dict[str, DriftCount]
    layers: dict[int, DriftCount]
    shapes: tuple[TensorPair, ...]
    """Layers whose shape changed: structured pruning."""
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    @property
    def same_mask(self) -> bool | None:
        """Whether all layers are there in both and have the same mask; None where a hash is
        missing."""
        if self.shapes or self.only_first or self.only_second:
            return False
        return self.total.same_mask

    @property
    def kept(self) -> bool | None:
        """Whether the second run's mask contains the first's; None where that is not known."""
        if self.total.kept is False:
            return False
        if self.shapes or self.only_first or self.only_second:
            return None
        return self.total.kept


def mask_drift(first: SparsityResult, second: SparsityResult) -> MaskDrift | None:
    """Compare the masks of two runs by their counts and hashes.

    Args:
        first, second: with their tensors, as ``sparsity.json`` holds them.

    Returns:
        None where a result has no tensors.
    """
    ours, theirs = _linear(first), _linear(second)
    if not ours or not theirs:
        return None
    pairs = [TensorPair(ours[name], theirs[name]) for name in ours if name in theirs]
    comparable = [pair for pair in pairs if pair.comparable]
    by_layer = _group(
        (pair.first.layer, pair) for pair in comparable if pair.first.layer is not None
    )
    return MaskDrift(
        total=_count(comparable),
        kinds=_group((pair.first.kind or "other", pair) for pair in comparable),
        layers=dict(sorted(by_layer.items())),
        shapes=tuple(pair for pair in pairs if not pair.comparable),
        only_first=tuple(name for name in ours if name not in theirs),
        only_second=tuple(name for name in theirs if name not in ours),
    )


def _linear(result: SparsityResult) -> dict[str, TensorSparsity]:
    return {t.name: t for t in result.tensors if t.linear and t.tied_to is None}


def _group(pairs: Iterable[tuple[_Key, TensorPair]]) -> dict[_Key, DriftCount]:
    together: dict[_Key, list[TensorPair]] = {}
    for key, pair in pairs:
        together.setdefault(key, []).append(pair)
    return {key: _count(members) for key, members in together.items()}


def _count(pairs: list[TensorPair]) -> DriftCount:
    return DriftCount(
        tensors=len(pairs),
        changed=sum(pair.same_mask is False for pair in pairs),
        same_mask=_all([pair.same_mask for pair in pairs]),
        first=_zeros(pairs, lambda pair: pair.first),
        second=_zeros(pairs, lambda pair: pair.second),
        returned_at_least=sum(pair.returned_at_least for pair in pairs),
        kept=_all([pair.kept for pair in pairs]),
    )


def _zeros(pairs: list[TensorPair], side: Callable[[TensorPair], TensorSparsity]) -> ZeroCount:
    counts = (ZeroCount(zeros=t.zeros, parameters=t.parameters) for t in map(side, pairs))
    return sum(counts, _NONE)


def _all(answers: list[bool | None]) -> bool | None:
    """False where one is, None where one is not known or there are none, else True."""
    if False in answers:
        return False
    return None if not answers or None in answers else True
