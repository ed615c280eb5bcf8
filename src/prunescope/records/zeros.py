"""Exact zeros in a model's stored weights, from the whole model down to one tensor."""

from __future__ import annotations

from pydantic import Field

from prunescope.records.config import Frozen

__all__ = [
    "BlockTiers",
    "LayerSparsity",
    "SparsityResult",
    "TensorSparsity",
    "ZeroCount",
]


class ZeroCount(Frozen):
    """Exact zeros among parameters."""

    zeros: int
    parameters: int
    share: float | None = None
    """The share where only it is known (imported results); the counts are 0 then."""

    @property
    def known(self) -> bool:
        """Whether anything was counted."""
        return self.parameters > 0 or self.share is not None

    @property
    def fraction(self) -> float:
        """Share of the parameters that are exactly zero; 0.0 where there are none."""
        if self.share is not None:
            return self.share
        return self.zeros / self.parameters if self.parameters else 0.0

    def __add__(self, other: ZeroCount) -> ZeroCount:
        return ZeroCount(
            zeros=self.zeros + other.zeros, parameters=self.parameters + other.parameters
        )


class BlockTiers(Frozen):
    """Blocks of a weight matrix, each counted once in the order of the fields."""

    block: tuple[int, int]
    """Rows and columns of a block."""
    topk: int
    empty: int = 0
    at_most_topk: int = 0
    """At most ``topk`` weights left."""
    two_four: int = 0
    """Every group of four along the input dimension has at most two weights left."""
    dense: int = 0
    """No zero at all."""
    other: int = 0
    ragged: int = 0
    """Blocks at an edge that are smaller than a whole one; counted in the tiers as well."""


class TensorSparsity(Frozen):
    """One stored weight tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    zeros: int
    parameters: int
    layer: int | None = None
    """Index of the decoder block it belongs to."""
    kind: str | None = None
    """``q``, ``k``, ``v``, ``o``, ``gate``, ``up``, ``down``, ..., ``embedding``, ``norm``."""
    linear: bool = False
    """Whether it is the weight of a linear layer inside a decoder block."""
    tied_to: str | None = None
    """Name of the tensor that it shares its memory with, and which is counted in its place."""
    mask_sha256: str | None = None
    nm_groups: dict[str, int] = Field(default_factory=dict)
    """``"2:4"`` -> groups that comply (all-zero groups included)."""
    nm_total: dict[str, int] = Field(default_factory=dict)
    """``"2:4"`` -> groups in all; a ragged last group counts as one."""
    nm_empty: dict[str, int] = Field(default_factory=dict)
    """``"2:4"`` -> groups that are all zero."""
    pattern: str | None = None
    """The tightest N:M pattern that holds in all groups."""
    blocks: BlockTiers | None = None
    rows: int | None = None
    """Rows (output neurons) of a matrix, of all experts together where they are stacked."""
    columns: int | None = None
    """Columns (input features) of a matrix, of all experts together where they are stacked."""
    empty_rows: int | None = None
    """Rows (output neurons) that are all zero."""
    empty_columns: int | None = None
    """Columns (input features) that are all zero."""
    heads: int | None = None
    """Slices of an attention projection that belong to one head (rows of q, k and v, columns of
    o), where the config tells the heads' size."""
    empty_heads: int | None = None
    """Slices of one head that are all zero."""
    nonfinite: int = 0
    """NaN or infinite weights."""


class LayerSparsity(Frozen):
    """The linear layers of one decoder block."""

    layer: int
    zeros: int
    parameters: int


class SparsityResult(Frozen):
    """Exact zeros in the stored weights.

    ``linear`` counts the linear layers inside the decoder blocks (wanda's ``check_sparsity``,
    the headline figure), ``total`` every parameter once (tied weights once).
    """

    linear: ZeroCount
    total: ZeroCount
    layers: tuple[LayerSparsity, ...] = ()
    kinds: dict[str, ZeroCount] = Field(default_factory=dict)
    """Module kind -> count, over the linear layers of the decoder blocks."""
    pattern: str | None = None
    """N:M pattern that holds in every pruned linear layer of the decoder blocks, if one does."""
    tensors: tuple[TensorSparsity, ...] = ()
    """One entry a tensor. Empty in ``record.json``; whole in ``sparsity.json``."""
