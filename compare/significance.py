"""Is a difference between two evaluations real, or chance?

The documents of a task are a sample of the questions that could have been asked. Two models
answer the same documents, so their scores are compared document by document: the paired standard
error is far below that of two independent samples (Miller 2024, "Adding Error Bars to Evals",
arXiv:2411.00640, sections 3 and 4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

__all__ = [
    "Estimate",
    "Flips",
    "combine_fisher",
    "count_flips",
    "detectable_difference",
    "equivalent",
    "holm",
    "mcnemar_exact",
    "mean_of_estimates",
    "paired_difference",
    "unpaired_difference",
]


@dataclass(frozen=True)
class Estimate:
    """A difference pruned - original with its 95 % interval."""

    value: float
    stderr: float
    low: float
    high: float
    df: float
    """Degrees of freedom of the t distribution; infinity for the normal one."""
    n: int
    """Documents."""
    clusters: int | None = None
    """Groups of documents that share a passage, where the standard error is clustered."""

    @property
    def p_value(self) -> float:
        """Two-sided p value of no difference; 1 where there is neither difference nor error."""
        if self.stderr == 0:
            return 1.0 if self.value == 0 else 0.0
        return float(min(1.0, 2 * _t_tail(abs(self.value) / self.stderr, self.df)))


@dataclass(frozen=True)
class Flips:
    """How answers changed from the original to the pruned model.

    Accuracy can stay put while answers flip (Dutta et al. 2024, "Accuracy is Not All You Need",
    arXiv:2407.09141).
    """

    lost: int
    """Right in the original, wrong in the pruned model."""
    gained: int
    """Wrong in the original, right in the pruned model."""
    changed: int | None
    """Answers of any kind that changed, wrong to another wrong one too; None without choices."""
    n: int

    @property
    def rate(self) -> float:
        """Share of the documents whose correctness flipped."""
        return (self.lost + self.gained) / self.n if self.n else 0.0


def paired_difference(
    original: ArrayLike, pruned: ArrayLike, clusters: ArrayLike | None = None
) -> Estimate:
    """Mean difference of paired scores with its 95 % interval.

    Without clusters this is the paired t interval: SE = sd(d) / sqrt(n), n - 1 degrees of
    freedom. With clusters, SE = sqrt(G / (G - 1) * sum over clusters of (sum of d - mean(d))^2)
    / n and G - 1 degrees of freedom (Miller 2024, section 2.2, with the usual small-sample
    factor; the same as an intercept-only regression with cluster-robust errors).

    Right-or-wrong scores that agree on every document would have SE 0 and an interval without
    width: SE is then taken as if one document had flipped, 1 / n.

    Args:
        original: (n,) scores.
        pruned: (n,) scores of the same documents.
        clusters: (n,) the same value for documents that belong together.

    Raises:
        ValueError: there are fewer than two documents.
    """
    a, b = np.asarray(original, dtype=np.float64), np.asarray(pruned, dtype=np.float64)
    d = b - a
    n = len(d)
    if n < 2:
        raise ValueError(f"expected at least two documents, found {n}")
    mean = float(d.mean())
    groups = None
    if clusters is None:
        stderr, df = float(d.std(ddof=1)) / math.sqrt(n), n - 1
    else:
        _, numbers = np.unique(np.asarray(clusters), return_inverse=True)
        sums = np.bincount(numbers, weights=d - mean)
        groups = len(sums)
        df = max(groups - 1, 1)
        stderr = math.sqrt(groups / df * float(sums @ sums)) / n
    if not d.any() and _is_binary(a) and _is_binary(b):
        stderr = 1 / n
    return _estimate(mean, stderr, float(df), n, groups)


def unpaired_difference(
    original: float, pruned: float, original_stderr: float, pruned_stderr: float, n: int = 0
) -> Estimate:
    """Difference of two means by their standard errors, as if the samples were independent.

    For results without documents. The interval is wider than the paired one, since what makes a
    document hard for both models counts as noise.
    """
    stderr = math.hypot(original_stderr, pruned_stderr)
    return _estimate(pruned - original, stderr, math.inf, n, None)


def count_flips(
    original: ArrayLike,
    pruned: ArrayLike,
    original_choice: ArrayLike | None = None,
    pruned_choice: ArrayLike | None = None,
) -> Flips | None:
    """Count changed answers.

    Args:
        original: (n,) scores, 1 right or 0 wrong.
        pruned: (n,) likewise.
        original_choice: (n,) index of the chosen answer, negative where there is none.
        pruned_choice: (n,) likewise.

    Returns:
        None where the scores are not all 0 or 1.
    """
    a, b = np.asarray(original, dtype=np.float64), np.asarray(pruned, dtype=np.float64)
    if not (_is_binary(a) and _is_binary(b)):
        return None
    changed = None
    if original_choice is not None and pruned_choice is not None:
        x, y = np.asarray(original_choice), np.asarray(pruned_choice)
        if (x >= 0).all() and (y >= 0).all():
            changed = int((x != y).sum())
    return Flips(
        int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum()), changed, len(a)
    )


def mcnemar_exact(lost: int, gained: int) -> tuple[float, float]:
    """Exact McNemar test: under no difference a flip goes either way with equal chance.

    Source: McNemar 1947, Psychometrika 12; the exact form is the binomial test of
    ``lost`` among ``lost + gained`` at one half.

    Returns:
        The two-sided p value, and the one-sided one of the pruned model being worse.
    """
    flips = lost + gained
    if flips == 0:
        return 1.0, 1.0
    two_sided = min(1.0, 2 * float(special.bdtr(min(lost, gained), flips, 0.5)))
    worse = 1.0 if lost == 0 else float(special.bdtrc(lost - 1, flips, 0.5))
    return two_sided, worse


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of p values for testing several tasks at once.

    Source: Holm 1979, Scandinavian Journal of Statistics 6. The k-th smallest of m is multiplied
    by m - k + 1, made monotone, and capped at 1.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, highest)
    return adjusted


def combine_fisher(p_values: Sequence[float]) -> float:
    """Fisher's combination of independent p values: -2 sum(ln p) is chi-squared, 2m degrees.

    Source: Fisher 1932, Statistical Methods for Research Workers, section 21.1. The p values of
    an exact test are coarse, which makes the combination cautious.
    """
    if not p_values:
        return 1.0
    if min(p_values) <= 0:
        return 0.0
    statistic = -2 * math.fsum(math.log(p) for p in p_values)
    return float(special.chdtrc(2 * len(p_values), statistic))


def detectable_difference(estimate: Estimate, flips: Flips | None, power: float = 0.8) -> float:
    """The smallest true difference that this many documents would have shown.

    At a two-sided level of 5 % with the given power. For right-or-wrong answers it solves
    Connor 1987 (Biometrics 43), sqrt(n) * delta = z_a * sqrt(q) + z_b * sqrt(q - delta^2), for
    delta, q being the share of flipped documents; else, and with clusters, it is
    (z_a + z_b) * SE.
    """
    z_a, z_b = float(special.ndtri(0.975)), float(special.ndtri(power))
    if flips is None or estimate.clusters is not None or not flips.n:
        return (z_a + z_b) * estimate.stderr
    n, q = flips.n, max(flips.rate, 1 / flips.n)
    root = math.sqrt(max(0.0, z_a**2 * n * q - (n + z_b**2) * (z_a**2 - z_b**2) * q))
    return min(q, (z_a * math.sqrt(n * q) + root) / (n + z_b**2))


def equivalent(estimate: Estimate, margin: float) -> float:
    """Two one-sided tests: the p value of "the difference is at least ``margin`` either way".

    Source: Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15. Below 0.05 the
    two models are the same to within the margin.
    """
    if estimate.stderr == 0:
        return 0.0 if abs(estimate.value) < margin else 1.0
    return _t_tail((margin - abs(estimate.value)) / estimate.stderr, estimate.df)


def mean_of_estimates(estimates: Sequence[Estimate]) -> Estimate | None:
    """The plain mean of independent differences, with the interval that follows from theirs.

    SE = sqrt(sum of SE_t^2) / T: the tasks are fixed, their documents are the sample.
    """
    if not estimates:
        return None
    count = len(estimates)
    value = math.fsum(e.value for e in estimates) / count
    stderr = math.sqrt(math.fsum(e.stderr**2 for e in estimates)) / count
    return _estimate(value, stderr, math.inf, sum(e.n for e in estimates), None)


def _estimate(value: float, stderr: float, df: float, n: int, clusters: int | None) -> Estimate:
    quantile = special.ndtri(0.975) if math.isinf(df) else special.stdtrit(df, 0.975)
    half = float(quantile) * stderr
    return Estimate(value, stderr, value - half, value + half, df, n, clusters)


def _t_tail(t: float, df: float) -> float:
    """P(T > t)."""
    return float(special.ndtr(-t) if math.isinf(df) else special.stdtr(df, -t))


def _is_binary(values: NDArray[np.float64]) -> bool:
    return bool(((values == 0) | (values == 1)).all())
