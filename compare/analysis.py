"""Everything that two record directories can tell beyond the records' own figures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from prunescope.compare.delta import Comparison, compare_records
from prunescope.compare.divergence import (
    ChoiceDivergence,
    Collapse,
    DocumentLoss,
    FlipGroup,
    choice_divergence,
    collapse,
    flips_by_field,
    flips_by_margin,
    worst_documents,
)
from prunescope.compare.drift import MaskDrift, mask_drift
from prunescope.compare.paired_perplexity import TokenComparison, compare_tokens, read_tokens
from prunescope.compare.pairing import PairedTask
from prunescope.compare.structure import read_structure
from prunescope.compare.verdict import (
    DEFAULT_MARGIN,
    SuiteStatistics,
    judge,
    paired_task,
    suite_statistics,
)
from prunescope.records import RunRef, read_record, read_tensors

__all__ = ["Analysis", "TaskGroups", "analyse", "compare_directories"]

DENSE = 0.001
"""Sparsities below this share of zeros are those of a dense model."""


@dataclass(frozen=True)
class TaskGroups:
    """Flips among the kinds of a task's documents."""

    task: str
    by: str
    """What sorts them: a field of the documents."""
    groups: tuple[FlipGroup, ...]


@dataclass(frozen=True)
class Analysis:
    """What the documents and tokens of two evaluations tell."""

    suite: SuiteStatistics | None
    tokens: tuple[TokenComparison, ...] = ()
    divergences: tuple[ChoiceDivergence, ...] = ()
    margins: tuple[TaskGroups, ...] = ()
    """Flips by how sure the original was, least sure first."""
    fields: tuple[TaskGroups, ...] = ()
    collapses: tuple[Collapse, ...] = ()
    worst: tuple[DocumentLoss, ...] = ()
    masks: MaskDrift | None = None
    """Whether pruned weights came back; None where the original is dense or not known."""
    noise: SuiteStatistics | None = None
    """The original against a second run of itself: what changes without any pruning."""
    notes: tuple[str, ...] = ()


def compare_directories(
    original_dir: Path,
    pruned_dir: Path,
    *,
    margin: float = DEFAULT_MARGIN,
    allow_mismatch: bool = False,
    noise_dir: Path | None = None,
    now: datetime | None = None,
    original_run: RunRef | None = None,
    pruned_run: RunRef | None = None,
) -> Comparison:
    """Compare two record directories, documents and tokens included as far as they keep them.

    Args:
        original_dir: record directory of the original.
        pruned_dir: record directory of the pruned model.
        margin: differences of accuracy below it are of no consequence, a fraction.
        allow_mismatch: as in :func:`prunescope.compare.delta.compare_records`.
        noise_dir: a second run of the original (other batch size, dtype or seed).
        now: time of the comparison, with its zone; the present local time when None.
        original_run: where the original was tracked, for links.
        pruned_run: where the pruned model was tracked, for links.

    Raises:
        RecordError: a record, its documents or its tokens cannot be read, or it did not finish.
    """
    comparison = compare_records(
        read_record(original_dir),
        read_record(pruned_dir),
        now=now,
        allow_mismatch=allow_mismatch,
        original_run=original_run,
        pruned_run=pruned_run,
    )
    analysis = analyse(comparison, original_dir, pruned_dir, margin=margin)
    if noise_dir is not None:
        second = compare_records(comparison.original, read_record(noise_dir), now=now)
        suite = suite_statistics(second, original_dir, noise_dir, margin)
        analysis = replace(analysis, noise=suite)
    return replace(comparison, analysis=analysis, structure=read_structure(pruned_dir))


def analyse(
    comparison: Comparison,
    original_dir: Path | None,
    pruned_dir: Path | None,
    *,
    margin: float = DEFAULT_MARGIN,
) -> Analysis:
    """Pair the documents and tokens of a comparison's comparable rows, and judge them.

    Args:
        comparison: decides which rows are comparable.
        original_dir: where the original's documents and tokens are; None where there are none.
        pruned_dir: likewise for the pruned model.
        margin: differences of accuracy below it are of no consequence, a fraction.

    Raises:
        RecordError: documents or tokens cannot be read.
    """
    rows = [row for row in comparison.tasks if row.comparable]
    pairs = [(row, paired_task(row.label, original_dir, pruned_dir)) for row in rows]
    found = [(row.key, pair) for row, pair in pairs if pair is not None and len(pair)]
    tokens, notes = _tokens(comparison, original_dir, pruned_dir)
    margins = [
        TaskGroups(pair.task, "margin", groups)
        for key, pair in found
        if (groups := flips_by_margin(pair, key))
    ]
    return Analysis(
        suite=judge(pairs, margin),
        tokens=tokens,
        divergences=tuple(d for _, pair in found if (d := choice_divergence(pair)) is not None),
        margins=tuple(margins),
        fields=tuple(kinds for key, pair in found if (kinds := _by_field(pair, key))),
        collapses=tuple(c for _, pair in found for c in collapse(pair)),
        worst=worst_documents(pair for _, pair in found),
        masks=_masks(original_dir, pruned_dir),
        notes=(*notes, *_unmatched([pair for _, pair in found])),
    )


def _by_field(pair: PairedTask, key: str) -> TaskGroups | None:
    found = flips_by_field(pair, key)
    return TaskGroups(pair.task, found[0], found[1]) if found and found[1] else None


def _tokens(
    comparison: Comparison, original_dir: Path | None, pruned_dir: Path | None
) -> tuple[tuple[TokenComparison, ...], list[str]]:
    compared, notes = [], []
    for row in comparison.perplexity:
        if not row.comparable or original_dir is None or pruned_dir is None:
            continue
        a, b = read_tokens(original_dir, row.key), read_tokens(pruned_dir, row.key)
        if a is None or b is None:
            continue
        result = compare_tokens(row.key, a, b)
        if isinstance(result, str):
            notes.append(f"{row.label} is not compared token by token: {result}")
        else:
            compared.append(result)
    return tuple(compared), notes


def _masks(original_dir: Path | None, pruned_dir: Path | None) -> MaskDrift | None:
    """The drift of an original's mask that is itself sparse, for example before fine-tuning."""
    if original_dir is None or pruned_dir is None:
        return None
    if not all((folder / "sparsity.json").is_file() for folder in (original_dir, pruned_dir)):
        return None
    drift = mask_drift(read_tensors(original_dir), read_tensors(pruned_dir))
    dense = drift is None or drift.total.first.fraction < DENSE
    return None if dense else drift


def _unmatched(pairs: list[PairedTask]) -> list[str]:
    return [
        f"{pair.task}: {len(pair)} documents are in both runs "
        f"(original {len(pair.original)}, pruned {len(pair.pruned)})"
        for pair in pairs
        if not pair.complete
    ]
