"""What the figures allow one to say: better, worse, same, or unclear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from prunescope.compare.delta import Comparison, Row
from prunescope.compare.pairing import PairedTask, pair_samples, read_samples
from prunescope.compare.significance import (
    Estimate,
    Flips,
    combine_fisher,
    count_flips,
    detectable_difference,
    equivalent,
    holm,
    mcnemar_exact,
    mean_of_estimates,
    paired_difference,
    unpaired_difference,
)

__all__ = [
    "DEFAULT_MARGIN",
    "Method",
    "SuiteStatistics",
    "TaskStatistics",
    "Verdict",
    "decide",
    "judge",
    "paired_task",
    "suite_statistics",
    "task_statistics",
]

Verdict = Literal["better", "worse", "same", "unclear"]
Method = Literal["paired", "clustered", "unpaired"]

DEFAULT_MARGIN = 0.01
"""Differences below one point are held to be of no consequence."""

LEVEL = 0.05


@dataclass(frozen=True)
class TaskStatistics:
    """One task's difference, judged."""

    task: str
    method: Method
    estimate: Estimate
    flips: Flips | None
    """None without documents, or where they are not simply right or wrong."""
    p_mcnemar: float | None
    """Exact, two-sided."""
    p_worse: float | None
    """Exact, one-sided: the pruned model is worse."""
    p_value: float
    """What the verdict uses: McNemar's where documents are independent, else from the interval."""
    p_holm: float
    """``p_value`` adjusted for the number of tasks."""
    p_same: float
    """Two one-sided tests against the margin."""
    detectable: float
    """Smallest difference that this task could have shown (80 % power)."""
    verdict: Verdict


@dataclass(frozen=True)
class SuiteStatistics:
    """All comparable tasks together."""

    tasks: tuple[TaskStatistics, ...]
    margin: float
    mean: Estimate
    """Plain mean of the tasks' differences."""
    lost: int
    gained: int
    p_pooled: float | None
    """Exact McNemar over the flips of all tasks; None where no task has them."""
    p_fisher: float
    """Fisher's combination of the tasks' p values."""
    p_same: float
    verdict: Verdict


def decide(estimate: Estimate, p_value: float, margin: float, *, higher_is_better: bool) -> Verdict:
    """One verdict from the difference and its p value.

    "Same" comes first: a difference that is surely within the margin is of no consequence, even
    where it is surely not zero.
    """
    if equivalent(estimate, margin) < LEVEL:
        return "same"
    if p_value < LEVEL and estimate.value != 0:
        return "better" if (estimate.value > 0) == higher_is_better else "worse"
    return "unclear"


def task_statistics(
    row: Row, pair: PairedTask | None, margin: float = DEFAULT_MARGIN
) -> TaskStatistics | None:
    """Judge one task by itself (``p_holm`` is its own p value).

    Args:
        row: the task's figures and standard errors.
        pair: its documents in both evaluations; None where a side keeps none.
        margin: differences below it are of no consequence, a fraction.

    Returns:
        None where there is no difference, or nothing to tell its error from.
    """
    if not row.comparable or row.original is None or row.pruned is None:
        return None
    flips: Flips | None = None
    estimate = None if pair is None else _paired_estimate(row, pair)
    if pair is not None and estimate is not None:
        flips = _flips(row, pair)
        method: Method = "paired" if estimate.clusters is None else "clustered"
    else:
        method = "unpaired"
        estimate = _unpaired_estimate(row)
    if estimate is None:
        return None
    exact = (None, None) if flips is None else mcnemar_exact(flips.lost, flips.gained)
    independent = exact[0] is not None and method == "paired"
    p_value = exact[0] if independent and exact[0] is not None else estimate.p_value
    return TaskStatistics(
        task=row.label,
        method=method,
        estimate=estimate,
        flips=flips,
        p_mcnemar=exact[0],
        p_worse=exact[1],
        p_value=p_value,
        p_holm=p_value,
        p_same=equivalent(estimate, margin),
        detectable=detectable_difference(estimate, flips),
        verdict=decide(estimate, p_value, margin, higher_is_better=row.metric.better != "lower"),
    )


def suite_statistics(
    comparison: Comparison,
    original_dir: Path | None,
    pruned_dir: Path | None,
    margin: float = DEFAULT_MARGIN,
) -> SuiteStatistics | None:
    """Judge every comparable task, and all of them together.

    Args:
        comparison: decides which tasks are comparable.
        original_dir: record directory with the original's documents; None where there is none.
        pruned_dir: likewise for the pruned model.
        margin: differences below it are of no consequence, a fraction.

    Returns:
        None where no task is comparable or has an error estimate.
    """
    rows = [row for row in comparison.tasks if row.comparable]
    return judge([(row, paired_task(row.label, original_dir, pruned_dir)) for row in rows], margin)


def judge(
    pairs: Sequence[tuple[Row, PairedTask | None]], margin: float = DEFAULT_MARGIN
) -> SuiteStatistics | None:
    """Judge tasks whose documents are already paired."""
    single = [(row, task_statistics(row, pair, margin)) for row, pair in pairs]
    known = [(row, task) for row, task in single if task is not None]
    mean = mean_of_estimates([task.estimate for _, task in known])
    if mean is None:
        return None
    adjusted = holm([task.p_value for _, task in known])
    tasks = tuple(
        replace(
            task,
            p_holm=p_holm,
            verdict=decide(
                task.estimate, p_holm, margin, higher_is_better=row.metric.better != "lower"
            ),
        )
        for (row, task), p_holm in zip(known, adjusted, strict=True)
    )
    flips = [task.flips for task in tasks if task.flips is not None]
    lost, gained = sum(f.lost for f in flips), sum(f.gained for f in flips)
    return SuiteStatistics(
        tasks=tasks,
        margin=margin,
        mean=mean,
        lost=lost,
        gained=gained,
        p_pooled=mcnemar_exact(lost, gained)[0] if flips else None,
        p_fisher=combine_fisher([task.p_value for task in tasks]),
        p_same=equivalent(mean, margin),
        verdict=decide(mean, mean.p_value, margin, higher_is_better=True),
    )


def paired_task(task: str, original_dir: Path | None, pruned_dir: Path | None) -> PairedTask | None:
    """The documents of a task in two record directories; None where a side keeps none."""
    if original_dir is None or pruned_dir is None:
        return None
    a, b = read_samples(original_dir, task), read_samples(pruned_dir, task)
    return None if a is None or b is None else pair_samples(a, b)


def _paired_estimate(row: Row, pair: PairedTask) -> Estimate | None:
    scores = pair.scores(row.key)
    if scores is None:
        return None
    known = np.isfinite(scores[0]) & np.isfinite(scores[1])
    if known.sum() < 2:
        return None
    clusters = pair.clusters()
    return paired_difference(
        scores[0][known], scores[1][known], None if clusters is None else clusters[known]
    )


def _flips(row: Row, pair: PairedTask) -> Flips | None:
    scores = pair.scores(row.key)
    if scores is None or row.metric.better != "higher":
        return None
    known = np.isfinite(scores[0]) & np.isfinite(scores[1])
    a, b = pair.predictions()
    # ``predicted`` is the likeliest choice, which is the answer that ``acc`` marks.
    choices = (a[known], b[known]) if row.key == "acc" else (None, None)
    return count_flips(scores[0][known], scores[1][known], *choices)


def _unpaired_estimate(row: Row) -> Estimate | None:
    errors = (row.original_stderr, row.pruned_stderr)
    if row.original is None or row.pruned is None or errors[0] is None or errors[1] is None:
        return None
    if not (math.isfinite(errors[0]) and math.isfinite(errors[1])):
        return None
    return unpaired_difference(row.original, row.pruned, errors[0], errors[1])
