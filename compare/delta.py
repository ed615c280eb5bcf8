"""What changed between two evaluations: differences, relative changes, and why there is none.

Everything here is pure: two records in, numbers out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from prunescope.compare.comparability import (
    ProtocolDifference,
    comparable,
    protocol_differences,
    unchecked,
)
from prunescope.errors import RecordError
from prunescope.metrics import (
    ACC,
    PERPLEXITY,
    SPARSITY,
    Metric,
    mlflow_metric_name,
    perplexity_title,
    task_metric,
)
from prunescope.records import DEFAULT_TASKS, EvalRecord, RunRef, ZeroCount

if TYPE_CHECKING:
    from prunescope.compare.analysis import Analysis
    from prunescope.compare.structure import Structure

__all__ = [
    "Comparison",
    "Row",
    "compare_records",
    "comparison_metrics",
    "delta_metrics",
    "ordered_tasks",
]


@dataclass(frozen=True)
class Row:
    """One figure of both evaluations."""

    label: str
    """Task name, ``AVERAGE``, or what the figure is called (``WikiText2 PPL (2048)``)."""
    metric: Metric
    original: float | None
    pruned: float | None
    difference: float | None
    """pruned - original; None where it may not or cannot be taken."""
    relative: float | None
    """difference / original, a fraction; None as for the difference, and where the original is
    0."""
    reason: str | None = None
    """Why something is missing, with both sides' values where they differ."""
    key: str = ""
    """Key of the metric in the record (``acc``, ``exact_match.strict-match``), or the corpus."""
    original_stderr: float | None = None
    pruned_stderr: float | None = None
    mismatch: bool = False
    """Whether the difference was taken though the two figures are not comparable."""

    @property
    def comparable(self) -> bool:
        """Whether there is a difference that may be used."""
        return self.difference is not None and not self.mismatch

    @property
    def better(self) -> bool | None:
        """Whether the pruned model is better here; None where it is neither, or not known."""
        return None if self.difference is None else self.metric.is_better(self.difference)


@dataclass(frozen=True)
class Comparison:
    """An original and a pruned evaluation, row by row."""

    original: EvalRecord
    pruned: EvalRecord
    perplexity: tuple[Row, ...]
    """One row a corpus that either run has."""
    sparsity: tuple[Row, ...]
    """Linear layers of the decoder blocks first, then all parameters; fractions from 0 to 1."""
    tasks: tuple[Row, ...]
    """The primary metric of each task, groups left out."""
    average: Row
    """Plain mean over the tasks that both runs have, comparably and as finite numbers."""
    averaged: int
    """Over how many of ``tasks`` the average was taken."""
    groups: tuple[Row, ...]
    """The primary metric of lm-eval's groups, which aggregate tasks."""
    further: tuple[Row, ...]
    """The tasks' other metrics (``acc_norm`` ...)."""
    protocol_differences: tuple[ProtocolDifference, ...]
    notes: tuple[str, ...]
    """What a reader must know: breakages, settings taken on trust."""
    created_at: datetime
    original_run: RunRef | None = None
    pruned_run: RunRef | None = None
    analysis: Analysis | None = None
    """What the documents and tokens tell, where they were looked at."""
    structure: Structure | None = None
    """Where the pruned model's zeros are, where its tensors were looked at."""


def compare_records(
    original: EvalRecord,
    pruned: EvalRecord,
    *,
    now: datetime | None = None,
    allow_mismatch: bool = False,
    original_run: RunRef | None = None,
    pruned_run: RunRef | None = None,
) -> Comparison:
    """Compare two finished evaluations.

    Args:
        original: what is compared against.
        pruned: what is judged.
        now: time of the comparison, with its zone; the present local time when None.
        allow_mismatch: take differences of figures that are not comparable too. Such rows are
            marked, and used in no average, verdict or logged metric.
        original_run: where the original was tracked, for links.
        pruned_run: where the pruned model was tracked, for links.

    Raises:
        RecordError: one of the evaluations did not finish.
    """
    for side, record in (("original", original), ("pruned", pruned)):
        _require_finished(side, record)
    rows = _Rows(original, pruned, allow_mismatch)
    names = ordered_tasks(original, pruned)
    single = [name for name in names if not _is_group(name, original, pruned)]
    tasks = tuple(rows.task(name) for name in single)
    average, averaged = _average(tasks)
    return Comparison(
        original=original,
        pruned=pruned,
        perplexity=rows.perplexities(),
        sparsity=_sparsity_rows(original, pruned),
        tasks=tasks,
        average=average,
        averaged=averaged,
        groups=tuple(rows.task(name) for name in names if name not in single),
        further=tuple(row for name in names for row in rows.further(name)),
        protocol_differences=protocol_differences(original, pruned),
        notes=(*_troubles(original, pruned), *_trust(names, original, pruned)),
        created_at=now or datetime.now().astimezone(),
        original_run=original_run,
        pruned_run=pruned_run,
    )


def delta_metrics(comparison: Comparison) -> dict[str, float]:
    """The figures that a run with a baseline carries in MLflow, finite ones only.

    Returns:
        ``delta/mean_points``: change of the mean accuracy, percentage points;
        ``delta/ppl_ratio``: pruned perplexity / original perplexity, of the first comparable
        corpus.
    """
    found: dict[str, float] = {}
    if comparison.average.difference is not None:
        found["delta/mean_points"] = 100 * comparison.average.difference
    for row in comparison.perplexity:
        if row.comparable and row.relative is not None:
            found["delta/ppl_ratio"] = 1 + row.relative
            break
    return {name: value for name, value in found.items() if math.isfinite(value)}


def comparison_metrics(comparison: Comparison) -> dict[str, float]:
    """What a comparison's own run carries: :func:`delta_metrics`, and the tasks one by one.

    Returns:
        Besides those ``delta/points/TASK``: change of the primary metric, percentage points,
        finite ones only.
    """
    found = delta_metrics(comparison)
    for row in comparison.tasks:
        if row.comparable and row.difference is not None and math.isfinite(row.difference):
            found[mlflow_metric_name("delta", "points", row.label)] = 100 * row.difference
    return found


def ordered_tasks(*records: EvalRecord) -> list[str]:
    """All tasks of the records: the seven of the pruning papers in their order, then others."""
    names = dict.fromkeys(name for record in records for name in record.tasks)
    return [n for n in DEFAULT_TASKS if n in names] + [n for n in names if n not in DEFAULT_TASKS]


# --- rows ---------------------------------------------------------------------------------------


def _row(
    label: str,
    metric: Metric,
    original: float | None,
    pruned: float | None,
    reason: str | None,
    *,
    key: str = "",
    stderr: tuple[float | None, float | None] = (None, None),
    allow_mismatch: bool = False,
) -> Row:
    """Take the difference, unless there is a reason against it or a side is no number."""
    difference = relative = None
    no_number = _no_number(original, pruned)
    mismatch = reason is not None and no_number is None and allow_mismatch
    reason = reason or no_number
    if (reason is None or mismatch) and original is not None and pruned is not None:
        difference = pruned - original
        if original == 0:
            reason = reason or "a change relative to 0 is not defined"
        else:
            relative = difference / original
    return Row(
        label, metric, original, pruned, difference, relative, reason, key, *stderr, mismatch
    )


def _no_number(original: float | None, pruned: float | None) -> str | None:
    reasons = []
    for side, value in (("original", original), ("pruned", pruned)):
        if value is None:
            reasons.append(f"the {side} run has no value")
        elif not math.isfinite(value):
            reasons.append(f"the {side} run's value is {value}")
    return "; ".join(reasons) or None


@dataclass(frozen=True)
class _Rows:
    """Makes the rows of two records."""

    original: EvalRecord
    pruned: EvalRecord
    allow_mismatch: bool

    def task(self, name: str) -> Row:
        """The primary metric of a task."""
        key = next(r.tasks[name].primary for r in self._both() if name in r.tasks)
        return self._metric(name, name, key)

    def further(self, name: str) -> Iterable[Row]:
        """The metrics of a task that are primary on neither side."""
        results = [r.tasks[name] for r in self._both() if name in r.tasks]
        primary = {result.primary for result in results}
        for key in dict.fromkeys(key for result in results for key in result.metrics):
            if key not in primary:
                _, dot, filter_name = key.partition(".")
                label = f"{name} ({filter_name})" if dot else name
                yield self._metric(label, name, key)

    def perplexities(self) -> tuple[Row, ...]:
        """One row a corpus that either side has."""
        return tuple(
            self._perplexity(corpus)
            for corpus in dict.fromkeys((*self.original.perplexity, *self.pruned.perplexity))
        )

    def _both(self) -> tuple[EvalRecord, EvalRecord]:
        return self.original, self.pruned

    def _metric(self, label: str, name: str, key: str) -> Row:
        a, b = (record.tasks.get(name) for record in self._both())
        known = [t.higher_is_better[key] for t in (a, b) if t and key in t.higher_is_better]
        return _row(
            label,
            task_metric(key, known[0] if known else None),
            a.metrics.get(key) if a else None,
            b.metrics.get(key) if b else None,
            comparable("task", name, self.original, self.pruned),
            key=key,
            stderr=(a.stderr.get(key) if a else None, b.stderr.get(key) if b else None),
            allow_mismatch=self.allow_mismatch,
        )

    def _perplexity(self, corpus: str) -> Row:
        sides = [record.perplexity.get(corpus) for record in self._both()]
        a, b = (None if side is None else side.perplexity for side in sides)
        return _row(
            perplexity_title(corpus, *(side.seqlen for side in sides if side is not None)),
            PERPLEXITY,
            a,
            b,
            comparable("perplexity", corpus, self.original, self.pruned),
            key=corpus,
            allow_mismatch=self.allow_mismatch,
        )


def _average(tasks: tuple[Row, ...]) -> tuple[Row, int]:
    """Plain mean of both sides over the rows that have a difference."""
    pairs = [
        (row.original, row.pruned)
        for row in tasks
        if row.comparable and row.original is not None and row.pruned is not None
    ]
    if not pairs:
        reason = "no task is comparable" if tasks else "no task was evaluated"
        return Row("AVERAGE", ACC, None, None, None, None, reason), 0
    means = [math.fsum(side) / len(pairs) for side in zip(*pairs, strict=True)]
    return _row("AVERAGE", ACC, means[0], means[1], None), len(pairs)


def _sparsity_rows(original: EvalRecord, pruned: EvalRecord) -> tuple[Row, ...]:
    a, b = original.sparsity, pruned.sparsity
    if a is None and b is None:
        return ()
    linear = (a.linear if a else None, b.linear if b else None)
    total = (a.total if a else None, b.total if b else None)
    return (
        _sparsity_row("Sparsity", "linear", *linear),
        _sparsity_row("Sparsity (all parameters)", "total", *total),
    )


def _sparsity_row(label: str, key: str, a: ZeroCount | None, b: ZeroCount | None) -> Row:
    """A row without a relative change: against a dense original it would say nothing."""
    original, pruned = (count.fraction if count and count.known else None for count in (a, b))
    difference = None if original is None or pruned is None else pruned - original
    reason = _no_number(original, pruned)
    return Row(label, SPARSITY, original, pruned, difference, None, reason, key)


# --- notes --------------------------------------------------------------------------------------


def _troubles(original: EvalRecord, pruned: EvalRecord) -> list[str]:
    found = []
    for side, record in (("original", original), ("pruned", pruned)):
        for broken in record.broken:
            place = f"{broken.where} ({broken.stage})"
            found.append(f"The {side} run is broken: {broken.what} first seen in {place}")
        found.extend(f"Alarm, {side}: {alarm.message}" for alarm in record.alarms)
    return found


def _trust(names: list[str], original: EvalRecord, pruned: EvalRecord) -> list[str]:
    """One note for each set of settings that could not be compared, with the rows it concerns."""
    taken: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        taken.setdefault(unchecked("task", name, original, pruned), []).append(name)
    for corpus in original.perplexity:
        label = f"{corpus} perplexity"
        taken.setdefault(unchecked("perplexity", corpus, original, pruned), []).append(label)
    return [
        f"Not recorded in both runs, taken to be equal: {', '.join(what)} ({', '.join(rows)})"
        for what, rows in taken.items()
        if what
    ]


def _is_group(name: str, original: EvalRecord, pruned: EvalRecord) -> bool:
    return any(record.tasks[name].group for record in (original, pruned) if name in record.tasks)


def _require_finished(side: str, record: EvalRecord) -> None:
    if record.status != "finished":
        why = f": {record.error.type}: {record.error.message}" if record.error else ""
        raise RecordError(
            f"expected a finished evaluation as the {side}, found "
            f"{record.model.name} ({record.record_id[:8]}) {record.status}{why}",
            hint="Repeat its `prunescope eval` command, which goes on where it stopped",
        )
