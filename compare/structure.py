"""Where a model's zeros are: by decoder block and module kind, and what its blocks look like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prunescope.records import BlockTiers, SparsityResult, TensorSparsity, ZeroCount, read_tensors

__all__ = ["TIERS", "Structure", "read_structure", "structure_of", "tier_counts"]

TIERS = {
    "empty": "empty",
    "at_most_topk": "at most {topk} left",
    "two_four": "2:4",
    "dense": "dense",
    "other": "other",
}
"""Field of :class:`~prunescope.records.BlockTiers` -> what a tier is called."""


@dataclass(frozen=True)
class Structure:
    """The linear layers of the decoder blocks, tied weights once."""

    layers: tuple[int, ...]
    """Indices of the decoder blocks, ascending."""
    kinds: tuple[str, ...]
    """Module kinds in the order of a decoder block."""
    cells: Mapping[tuple[int, str], ZeroCount]
    """(decoder block, module kind) -> zeros and parameters."""
    tiers: Mapping[int, BlockTiers]
    """Decoder block -> its blocks of weights; empty where they were not looked at."""

    @property
    def sparse(self) -> bool:
        """Whether more than one weight in a thousand is zero."""
        zeros = sum(count.zeros for count in self.cells.values())
        return zeros > 0.001 * sum(count.parameters for count in self.cells.values())


def read_structure(directory: Path) -> Structure | None:
    """The structure of a record directory; None where it keeps no tensors.

    Raises:
        RecordError: ``sparsity.json`` is damaged.
    """
    if not (directory / "sparsity.json").is_file():
        return None
    return structure_of(read_tensors(directory))


def structure_of(sparsity: SparsityResult | None) -> Structure | None:
    """Add up the tensors of a sparsity result; None where it has none."""
    if sparsity is None:
        return None
    cells: dict[tuple[int, str], ZeroCount] = {}
    tiers: dict[int, BlockTiers] = {}
    for tensor in sparsity.tensors:
        if not _counts(tensor) or tensor.layer is None:
            continue
        place = (tensor.layer, tensor.kind or "other")
        count = ZeroCount(zeros=tensor.zeros, parameters=tensor.parameters)
        cells[place] = cells[place] + count if place in cells else count
        if tensor.blocks is not None:
            known = tiers.get(tensor.layer)
            tiers[tensor.layer] = _sum(known, tensor.blocks) if known else tensor.blocks
    if not cells:
        return None
    found = {kind for _, kind in cells}
    kinds = [kind for kind in sparsity.kinds if kind in found]
    kinds += sorted(found - set(kinds))
    layers = sorted({layer for layer, _ in cells})
    return Structure(tuple(layers), tuple(kinds), cells, tiers)


def tier_counts(tiers: BlockTiers) -> dict[str, int]:
    """Title of each tier -> how many blocks are in it, each block in one."""
    return {
        title.format(topk=tiers.topk): int(getattr(tiers, name)) for name, title in TIERS.items()
    }


def _counts(tensor: TensorSparsity) -> bool:
    return tensor.linear and tensor.tied_to is None and tensor.parameters > 0


def _sum(a: BlockTiers, b: BlockTiers) -> BlockTiers:
    fields = (*TIERS, "ragged")
    return a.model_copy(update={name: getattr(a, name) + getattr(b, name) for name in fields})
