"""One pass over a model's tensors: zeros, N:M groups, blocks, rows, columns and both hashes.

The weights are hashed by a second thread (hashlib lets go of the interpreter lock) while this one
counts, so that a checkpoint takes about as long as hashing it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from prunescope.evaluate.sparsity.aggregate import order_kinds
from prunescope.evaluate.sparsity.blocks import check_block
from prunescope.evaluate.sparsity.names import HEAD, ModelNames, is_token_embedding
from prunescope.evaluate.sparsity.patterns import common_pattern
from prunescope.evaluate.sparsity.structure import Stored, structure_of, zeros_of
from prunescope.records import (
    LayerSparsity,
    SparsityResult,
    TensorSparsity,
    ZeroCount,
    canonical_hash,
)

__all__ = ["Measurement", "hash_weights", "measure", "summarize"]

_Advance = Callable[[int], None]


@dataclass(frozen=True)
class Measurement:
    """What one pass over the weights found.

    Both hashes go over the tensors in the order of their names, so they don't depend on shards,
    file format or the order of reading. A stored copy of a tied matrix is left out, and so are
    stored constants (causal masks, rotary frequencies).
    """

    result: SparsityResult
    weights_sha256: str
    """Over names, dtypes, shapes and bytes."""
    mask_sha256: str
    """Over which weights of the decoder blocks' linear layers are zero (of all tensors, where no
    such layer is known)."""
    nonfinite: tuple[str, ...]
    """Names of the tensors that hold NaN or infinity."""


@dataclass(frozen=True)
class _Scanned:
    tensor: TensorSparsity
    weights: str
    """sha256 of the tensor's bytes."""


def measure(
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    block: tuple[int, int] = (16, 16),
    topk: int = 10,
    tied: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    advance: _Advance | None = None,
) -> Measurement:
    """Count zeros and recognize their structure in one pass.

    Args:
        tensors: (name, tensor) pairs as :func:`prunescope.evaluate.checkpoint.iter_tensors`
            yields them; at most two are held at once.
        block: rows and columns of a block.
        topk: a block with at most so many non-zeros is counted as a tier of its own.
        tied: name of a tensor -> name of the one that it shares its memory with. An output
            projection equal to the embedding, byte for byte, is recognized without it.
        config: the model's ``config.json``.
        advance: told the bytes of each tensor when it is done.

    Raises:
        ModelError: the linear layers hold packed integers, in which zeros cannot be counted.
        SettingError: ``block`` or ``topk`` is out of range.
    """
    check_block(block, topk)
    details = partial(structure_of, block=block, topk=topk)
    return _measurement(_run(tensors, details, advance, ModelNames(config)), tied or {})


def hash_weights(
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    tied: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    advance: _Advance | None = None,
) -> Measurement:
    """The hashes and zeros of :func:`measure`, equal to them, without groups, blocks and rows.

    Packed integers are hashed as well, but the zeros found in them mean nothing.
    """
    return _measurement(_run(tensors, zeros_of, advance, ModelNames(config)), tied or {})


def _measurement(scanned: list[_Scanned], tied: Mapping[str, str]) -> Measurement:
    settled = _settle_ties(scanned, tied)
    tensors = tuple(entry.tensor for entry in settled)
    weights, mask = _hashes(settled)
    return Measurement(
        result=summarize(tensors),
        weights_sha256=weights,
        mask_sha256=mask,
        nonfinite=tuple(tensor.name for tensor in tensors if tensor.nonfinite),
    )


def summarize(tensors: Iterable[TensorSparsity]) -> SparsityResult:
    """Add tensors up to the model, its layers and its module kinds, tied ones once."""
    tensors = tuple(tensors)
    counted = [tensor for tensor in tensors if tensor.tied_to is None]
    linear = [tensor for tensor in counted if tensor.linear]
    layers: dict[int, ZeroCount] = {}
    kinds: dict[str, ZeroCount] = {}
    for tensor in linear:
        count = ZeroCount(zeros=tensor.zeros, parameters=tensor.parameters)
        if tensor.layer is not None:
            layers[tensor.layer] = layers.get(tensor.layer, _NONE) + count
        kinds[tensor.kind or "other"] = kinds.get(tensor.kind or "other", _NONE) + count
    return SparsityResult(
        linear=_total(linear),
        total=_total(counted),
        layers=tuple(
            LayerSparsity(layer=layer, zeros=count.zeros, parameters=count.parameters)
            for layer, count in sorted(layers.items())
        ),
        kinds={kind: kinds[kind] for kind in order_kinds(set(kinds))},
        pattern=common_pattern(counted),
        tensors=tensors,
    )


_NONE = ZeroCount(zeros=0, parameters=0)


def _total(tensors: Iterable[TensorSparsity]) -> ZeroCount:
    return sum((ZeroCount(zeros=t.zeros, parameters=t.parameters) for t in tensors), _NONE)


# --- all tensors --------------------------------------------------------------------------------

_Details = Callable[[Stored], TensorSparsity]


def _run(
    tensors: Iterable[tuple[str, torch.Tensor]],
    details: _Details,
    advance: _Advance | None,
    names: ModelNames,
) -> list[_Scanned]:
    """Hash each tensor in one thread while its details are counted in this one."""
    found: list[TensorSparsity] = []
    digests: list[Future[str]] = []
    with ThreadPoolExecutor(1, thread_name_prefix="hash") as pool:
        for name, tensor in tensors:
            role = names.role(name, tensor.shape)
            if not role.buffer:
                stored = Stored.of(name, tensor, role)
                if digests:
                    digests[-1].result()  # at most two tensors are held at once
                digests.append(pool.submit(_digest, stored.words.array))
                found.append(details(stored))
            if advance is not None:
                advance(tensor.nbytes)
    scanned = [_Scanned(t, d.result()) for t, d in zip(found, digests, strict=True)]
    return sorted(scanned, key=lambda entry: entry.tensor.name)


def _digest(array: npt.NDArray[Any]) -> str:
    return hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()


def _settle_ties(scanned: list[_Scanned], tied: Mapping[str, str]) -> list[_Scanned]:
    """Mark each tensor that repeats another.

    An output projection repeats the token embedding when their bytes are equal: the rule of
    transformers, which ties two stored matrices only then. ``.bin`` files store both, safetensors
    files one.
    """
    by_name = {entry.tensor.name: entry for entry in scanned}
    embeddings = [entry for entry in scanned if is_token_embedding(entry.tensor.name)]
    settled = []
    for entry in scanned:
        source = tied.get(entry.tensor.name)
        if source not in by_name or source == entry.tensor.name:
            source = None
        if source is None and entry.tensor.kind == HEAD:
            source = next((e.tensor.name for e in embeddings if _same_bytes(e, entry)), None)
        if source is not None:
            tensor = entry.tensor.model_copy(update={"tied_to": source})
            entry = _Scanned(tensor, entry.weights)
        settled.append(entry)
    return settled


def _same_bytes(first: _Scanned, second: _Scanned) -> bool:
    one, two = first.tensor, second.tensor
    return (first.weights, one.dtype, one.shape) == (second.weights, two.dtype, two.shape)


def _hashes(scanned: list[_Scanned]) -> tuple[str, str]:
    """``weights_sha256`` and ``mask_sha256``."""
    counted = [entry for entry in scanned if entry.tensor.tied_to is None]
    labels = _labels([entry.tensor for entry in counted])
    linear = [entry for entry in counted if entry.tensor.linear] or counted
    weights = sorted(
        [labels[e.tensor.name], e.tensor.dtype, list(e.tensor.shape), e.weights] for e in counted
    )
    masks = sorted([e.tensor.name, list(e.tensor.shape), e.tensor.mask_sha256] for e in linear)
    return canonical_hash(weights), canonical_hash(masks)


def _labels(tensors: list[TensorSparsity]) -> dict[str, str]:
    """Tensor name -> name in the hash.

    Where one matrix serves as embedding and output projection, some files store it under the one
    name and some under the other: there it is called ``embedding``.
    """
    labels = {tensor.name: tensor.name for tensor in tensors}
    shared = [t.name for t in tensors if t.kind == HEAD and t.name.endswith(".weight")]
    shared += [tensor.name for tensor in tensors if is_token_embedding(tensor.name)]
    if len(shared) == 1:
        labels[shared[0]] = "embedding"
    return labels
