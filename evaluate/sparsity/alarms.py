"""What about the weights contradicts what a run is said to be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from prunescope.errors import SettingError
from prunescope.evaluate.sparsity.names import EMBEDDING, NORM
from prunescope.evaluate.sparsity.patterns import PATTERNS, PRUNED, holds
from prunescope.metrics import format_percent
from prunescope.records import Alarm, EvalRecord, SparsityResult, TensorSparsity

__all__ = [
    "SAME_NATS",
    "STRAY",
    "TARGET_TOLERANCE",
    "check_pattern",
    "find_alarms",
    "same_answers",
]

TARGET_TOLERANCE = 0.01
"""How far sparsity may be from its target: one point."""

STRAY = {EMBEDDING: 0.05, NORM: 0.01}
"""Share of zeros that is not by chance. Rounding to float16 makes a few, and a detour through
8-bit quantization about 1 % of an embedding (SmolLM2-135M from its GGUF file: 1.03 %)."""

SAME_NATS = 1e-4
"""Loglikelihoods closer than this are the same but for floating-point noise."""


def check_pattern(pattern: str) -> str:
    """The pattern in its usual spelling, for example ``2:4``.

    Raises:
        SettingError: it is not one of the patterns that are counted.
    """
    known = pattern.strip()
    if known not in PATTERNS:
        raise SettingError(
            f"expected one of the patterns {', '.join(PATTERNS)}, found {pattern!r}",
            hint="Leave --pattern out for another one",
        )
    return known


def find_alarms(
    record: EvalRecord,
    *,
    sparsity: SparsityResult | None = None,
    baseline: EvalRecord | None = None,
    answers_unchanged: bool | None = None,
) -> tuple[Alarm, ...]:
    """Everything that contradicts the record's labels, or that is wrong whatever they say.

    Args:
        record: the evaluation, with its labels.
        sparsity: its sparsity with the tensors, where the record itself has none.
        baseline: the original that it is compared with.
        answers_unchanged: what :func:`same_answers` found against the baseline.
    """
    found = [*_against_baseline(record, baseline, answers_unchanged)]
    sparsity = sparsity or record.sparsity
    if sparsity is not None:
        found += _against_labels(record, sparsity)
        found += _whatever_labels(sparsity)
    return tuple(found)


def same_answers(directory: Path, baseline: Path, *, tolerance: float = SAME_NATS) -> bool | None:
    """Whether all loglikelihoods of two record directories are equal.

    Args:
        directory, baseline: record directories, or folders with their ``samples``.
        tolerance: largest difference that counts as equal, nats.

    Returns:
        True or False over the documents that both scored, None where there are none.
    """
    import numpy as np
    import pyarrow.parquet as pq

    compared = False
    for path in sorted((directory / "samples").glob("*.parquet")):
        other = baseline / "samples" / path.name
        if not other.exists():
            continue
        columns = ["doc_sha256", "loglikelihoods"]
        ours, theirs = (
            dict(zip(*(table[column].to_pylist() for column in columns), strict=True))
            for table in (pq.read_table(file, columns=columns) for file in (path, other))
        )
        for document in ours.keys() & theirs.keys():
            one, two = ours[document], theirs[document]
            if not one or not two:
                continue
            compared = True
            if len(one) != len(two) or not np.allclose(one, two, rtol=0, atol=tolerance):
                return False
    return True if compared else None


def _against_baseline(
    record: EvalRecord, baseline: EvalRecord | None, answers_unchanged: bool | None
) -> Iterator[Alarm]:
    if baseline is None or record.labels.role != "pruned":
        return
    weights = record.model.weights_sha256
    if weights is not None and weights == baseline.model.weights_sha256:
        yield Alarm(
            code="weights-unchanged",
            message=f"the pruned weights are identical to those of {baseline.model.name} "
            f"(weights_sha256 {weights[:12]})",
        )
    if answers_unchanged:
        yield Alarm(
            code="answers-unchanged",
            message=f"every loglikelihood equals that of {baseline.model.name}: "
            "the same weights may have been evaluated twice",
        )


def _against_labels(record: EvalRecord, sparsity: SparsityResult) -> Iterator[Alarm]:
    labels = record.labels
    fraction = sparsity.linear.fraction
    if labels.role == "pruned" and fraction < PRUNED:
        yield Alarm(
            code="not-pruned",
            message="the run is called pruned, but the linear layers are only "
            f"{format_percent(fraction)} zero",
        )
    target = labels.target_sparsity
    # rounded: 0.51 - 0.50 is a little more than 0.01 in binary
    if target is not None and round(abs(fraction - target), 9) > TARGET_TOLERANCE:
        yield Alarm(
            code="target-missed",
            message=f"the linear layers are {format_percent(fraction)} zero, "
            f"the target was {format_percent(target)}",
        )
    if labels.pattern is not None:
        yield from _pattern_broken(sparsity.tensors, labels.pattern)


def _pattern_broken(tensors: Sequence[TensorSparsity], pattern: str) -> Iterator[Alarm]:
    # routers are linear layers by definition, but no method prunes them
    linear = [t for t in tensors if t.linear and t.tied_to is None and t.kind != "router"]
    broken = _in_order(tensor for tensor in linear if not holds(tensor, pattern))
    if broken:
        first = broken[0]
        total = first.nm_total.get(pattern, 0)
        violating = total - first.nm_groups.get(pattern, 0)
        yield Alarm(
            code="pattern-broken",
            message=f"{pattern} does not hold in {len(broken)} of {len(linear)} linear layers, "
            f"first in {first.name} ({violating:,} of {total:,} groups)",
        )


def _whatever_labels(sparsity: SparsityResult) -> Iterator[Alarm]:
    counted = [tensor for tensor in sparsity.tensors if tensor.tied_to is None]
    nonfinite = _in_order(tensor for tensor in counted if tensor.nonfinite)
    if nonfinite:
        first = nonfinite[0]
        yield Alarm(
            code="nonfinite-weights",
            message=f"{_tensors(len(nonfinite))} NaN or infinity, "
            f"first {first.name} ({first.nonfinite:,} weights)",
        )
    stray = _in_order(tensor for tensor in counted if _has_stray_zeros(tensor))
    if stray:
        first = stray[0]
        share = format_percent(first.zeros / first.parameters)
        yield Alarm(
            code="zeros-outside",
            message="zeros in embeddings or norms, which pruning leaves alone: "
            f"{_tensors(len(stray))} them, first {first.name} ({share})",
        )
    yield from _all_zero(sparsity)


def _has_stray_zeros(tensor: TensorSparsity) -> bool:
    share = STRAY.get(tensor.kind or "")
    if share is None or tensor.zeros == tensor.parameters:
        return False  # a norm stored as its distance from one may be all zero
    # whole rows of zeros are padding and tokens that never occurred
    columns = tensor.shape[-1] if tensor.shape else 1
    zeros = tensor.zeros - (tensor.empty_rows or 0) * columns
    return zeros > share * tensor.parameters


def _all_zero(sparsity: SparsityResult) -> Iterator[Alarm]:
    blocks = [c.layer for c in sparsity.layers if c.parameters and c.zeros == c.parameters]
    tensors = _in_order(
        tensor
        for tensor in sparsity.tensors
        if tensor.linear
        and tensor.parameters
        and tensor.zeros == tensor.parameters
        and tensor.layer not in blocks
    )
    if blocks:
        yield Alarm(
            code="all-zero",
            message=f"100% zero: all linear layers of decoder block {_list(blocks)}",
        )
    if tensors:
        more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
        yield Alarm(code="all-zero", message=f"100% zero: {tensors[0].name}{more}")


def _list(numbers: Sequence[int], most: int = 5) -> str:
    shown = ", ".join(str(number) for number in numbers[:most])
    return f"{shown} and {len(numbers) - most} more" if len(numbers) > most else shown


def _tensors(count: int) -> str:
    return "1 tensor holds" if count == 1 else f"{count} tensors hold"


def _in_order(tensors: Iterable[TensorSparsity]) -> list[TensorSparsity]:
    """Tensors in the order of the decoder blocks, those outside of them first."""
    return sorted(tensors, key=lambda t: (-1 if t.layer is None else t.layer, t.name))
