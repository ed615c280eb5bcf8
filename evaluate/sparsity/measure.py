"""One pass over a model's tensors: zeros, N:M groups, blocks, rows, columns and both hashes.

The weights are hashed by a second thread (hashlib lets go of the interpreter lock) while this one
counts, so that a checkpoint takes about as long as hashing it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from prunescope.errors import ModelError
from prunescope.evaluate.sparsity.blocks import BlockCounter, add_tiers, check_block
from prunescope.evaluate.sparsity.masks import Words, flat_chunks, matrix_chunks, words_of
from prunescope.evaluate.sparsity.names import (
    EMBEDDING,
    HEAD,
    ModelNames,
    TensorRole,
    is_token_embedding,
)
from prunescope.evaluate.sparsity.patterns import common_pattern, count_groups, tightest
from prunescope.records import (
    BlockTiers,
    LayerSparsity,
    SparsityResult,
    TensorSparsity,
    ZeroCount,
    canonical_hash,
)

__all__ = ["Measurement", "WeightHashes", "hash_weights", "measure", "summarize"]

Advance = Callable[[int], None]

_PACKED = frozenset({torch.uint8, torch.int16, torch.int32, torch.int64})


@dataclass(frozen=True)
class WeightHashes:
    """What identifies a model's weights.

    Both hashes go over the tensors in the order of their names, so they don't depend on shards,
    file format or the order of reading. A stored copy of a tied matrix is left out, and so are
    stored constants (causal masks, rotary frequencies).
    """

    weights_sha256: str
    """Over names, dtypes, shapes and bytes."""
    mask_sha256: str
    """Over which weights of the decoder blocks' linear layers are zero (of all tensors, where no
    such layer is known)."""


@dataclass(frozen=True)
class Measurement:
    """What one pass over the weights found."""

    result: SparsityResult
    weights_sha256: str
    mask_sha256: str
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
    advance: Advance | None = None,
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
    scan = _Scan(ModelNames(config), block, topk)
    scanned = _settle_ties(_run(tensors, scan.details, advance, ModelNames(config)), tied or {})
    hashes = _hashes(scanned)
    details = tuple(entry.tensor for entry in scanned)
    return Measurement(
        result=summarize(details),
        weights_sha256=hashes.weights_sha256,
        mask_sha256=hashes.mask_sha256,
        nonfinite=tuple(tensor.name for tensor in details if tensor.nonfinite),
    )


def hash_weights(
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    tied: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None,
    advance: Advance | None = None,
) -> WeightHashes:
    """The two hashes of :func:`measure` without the rest. Packed integers are hashed as well."""
    names = ModelNames(config)
    return _hashes(_settle_ties(_run(tensors, _mask_only, advance, names), tied or {}))


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
        kinds=kinds,
        pattern=common_pattern(counted),
        tensors=tensors,
    )


_NONE = ZeroCount(zeros=0, parameters=0)


def _total(tensors: Iterable[TensorSparsity]) -> ZeroCount:
    return sum((ZeroCount(zeros=t.zeros, parameters=t.parameters) for t in tensors), _NONE)


# --- one tensor ---------------------------------------------------------------------------------


def _mask_only(name: str, words: Words, tensor: torch.Tensor, role: TensorRole) -> TensorSparsity:
    """The mask's hash and the zeros, without structure."""
    digest = hashlib.sha256()
    zeros, nonfinite = words.array.size, 0
    matrices = _matrices(words, role)
    chunks = (
        (chunk for matrix in matrices for chunk in matrix_chunks(words, matrix, 1))
        if matrices
        else flat_chunks(words)
    )
    for chunk in chunks:
        digest.update(chunk.bits.data)
        zeros -= int(np.bitwise_count(chunk.bits).sum(dtype=np.int64))
        nonfinite += chunk.nonfinite
    return TensorSparsity(
        name=name,
        shape=tuple(tensor.shape),
        dtype=_dtype_name(tensor),
        zeros=zeros,
        parameters=words.array.size,
        layer=role.layer,
        kind=role.kind,
        linear=role.linear,
        mask_sha256=digest.hexdigest(),
        nonfinite=nonfinite,
    )


@dataclass(frozen=True)
class _Scan:
    names: ModelNames
    block: tuple[int, int]
    topk: int

    def details(
        self, name: str, words: Words, tensor: torch.Tensor, role: TensorRole
    ) -> TensorSparsity:
        """Everything about one tensor."""
        if tensor.dtype in _PACKED and tensor.dim() >= 2 and role.layer is not None:
            raise ModelError(
                f"expected weights as numbers, found packed {_dtype_name(tensor)} in {name}",
                hint="Evaluate a dequantized checkpoint, or leave out the sparsity stage",
            )
        matrices = _matrices(words, role)
        if not matrices:
            return _mask_only(name, words, tensor, role)
        return self._structure(name, words, tensor, role, matrices)

    def _structure(
        self,
        name: str,
        words: Words,
        tensor: torch.Tensor,
        role: TensorRole,
        matrices: tuple[npt.NDArray[Any], ...],
    ) -> TensorSparsity:
        digest = hashlib.sha256()
        histogram = torch.zeros(256, dtype=torch.int64)
        blocks: BlockTiers | None = None
        nonfinite = empty_rows = empty_columns = 0
        rows = sum(matrix.shape[0] for matrix in matrices)
        columns = matrices[0].shape[1]
        for matrix in matrices:
            counter = BlockCounter(self.block, self.topk, columns)
            used = np.zeros((columns + 7) // 8, np.uint8)
            for chunk in matrix_chunks(words, matrix, self.block[0]):
                digest.update(chunk.bits.data)
                histogram += torch.bincount(torch.from_numpy(chunk.bits.reshape(-1)), minlength=256)
                counter.add(chunk)
                used |= np.bitwise_or.reduce(chunk.bits, axis=0)
                nonfinite += chunk.nonfinite
            empty_rows += counter.empty_rows
            empty_columns += columns - int(np.bitwise_count(used).sum(dtype=np.int64))
            tiers = counter.result()
            blocks = add_tiers(blocks, tiers) if blocks else tiers
        counts = histogram.numpy()
        bits_set = int(counts @ np.bitwise_count(np.arange(256, dtype=np.uint8)).astype(np.int64))
        groups = count_groups(counts, rows, columns) if role.linear else {}
        return TensorSparsity(
            name=name,
            shape=tuple(tensor.shape),
            dtype=_dtype_name(tensor),
            zeros=words.array.size - bits_set,
            parameters=words.array.size,
            layer=role.layer,
            kind=role.kind,
            linear=role.linear,
            mask_sha256=digest.hexdigest(),
            nm_groups={pattern: count.complying for pattern, count in groups.items()},
            nm_total={pattern: count.total for pattern, count in groups.items()},
            nm_empty={pattern: count.empty for pattern, count in groups.items()},
            pattern=tightest(groups),
            blocks=blocks if role.linear else None,
            empty_rows=empty_rows,
            empty_columns=empty_columns,
            nonfinite=nonfinite,
        )


def _matrices(words: Words, role: TensorRole) -> tuple[npt.NDArray[Any], ...]:
    """The matrices (out, in) of a linear layer or an embedding: one, or one an expert.

    None for other tensors and for those without a weight.
    """
    array = words.array
    if not array.size or not (role.linear or (role.kind == EMBEDDING and array.ndim == 2)):
        return ()
    stack = array if array.ndim == 3 else array[None]
    return tuple(matrix.T if role.transposed else matrix for matrix in stack)


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


# --- all tensors --------------------------------------------------------------------------------

_Details = Callable[[str, Words, torch.Tensor, TensorRole], TensorSparsity]


def _run(
    tensors: Iterable[tuple[str, torch.Tensor]],
    details: _Details,
    advance: Advance | None,
    names: ModelNames,
) -> list[_Scanned]:
    """Hash each tensor in one thread while its details are counted in this one."""
    found: list[TensorSparsity] = []
    digests: list[Future[str]] = []
    with ThreadPoolExecutor(1, thread_name_prefix="hash") as pool:
        for name, tensor in tensors:
            role = names.role(name, tensor.shape)
            if not role.buffer:
                words = words_of(name, tensor)
                if digests:
                    digests[-1].result()  # at most two tensors are held at once
                digests.append(pool.submit(_digest, words.array))
                found.append(details(name, words, tensor, role))
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


def _hashes(scanned: list[_Scanned]) -> WeightHashes:
    counted = [entry for entry in scanned if entry.tensor.tied_to is None]
    labels = _labels([entry.tensor for entry in counted])
    linear = [entry for entry in counted if entry.tensor.linear] or counted
    weights = sorted(
        [labels[e.tensor.name], e.tensor.dtype, list(e.tensor.shape), e.weights] for e in counted
    )
    masks = sorted([e.tensor.name, list(e.tensor.shape), e.tensor.mask_sha256] for e in linear)
    return WeightHashes(canonical_hash(weights), canonical_hash(masks))


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
