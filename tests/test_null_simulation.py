"""Ten thousand simulated pairs: each test errs as often as it says, and finds what it should."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest
from scipy import stats

from prunescope.compare.significance import (
    Estimate,
    combine_fisher,
    count_flips,
    detectable_difference,
    holm,
    mcnemar_exact,
    mean_of_estimates,
    paired_difference,
    unpaired_difference,
)

PAIRS = 10_000
SLACK = 3 * math.sqrt(0.05 * 0.95 / PAIRS)
"""Three standard errors of a rate of 5 % over so many pairs."""

exact = lru_cache(maxsize=None)(mcnemar_exact)


def simulated(n: int, q: float, delta: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(PAIRS, n) scores of an original and of a pruned model: documents of all difficulties, a
    share ``q`` of which flips, with the expected difference ``delta``."""
    rng = np.random.default_rng(seed)
    original = rng.random((PAIRS, n), dtype=np.float32) < 0.5
    draw = rng.random((PAIRS, n), dtype=np.float32)
    flips = np.where(original, draw < q - delta, draw < q + delta)
    return original, original ^ flips


def estimates(a: np.ndarray, b: np.ndarray) -> list[Estimate]:
    return [paired_difference(x, y) for x, y in zip(a, b, strict=True)]


def mcnemar_p(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    counts = zip((a & ~b).sum(1).tolist(), (~a & b).sum(1).tolist(), strict=True)
    found = np.array([exact(*pair) for pair in counts])
    return found[:, 0], found[:, 1]


@pytest.mark.parametrize(("n", "q"), [(277, 0.15), (500, 0.3), (1172, 0.1)])
def test_under_the_null_mcnemar_and_the_interval_hold_their_level(n: int, q: float) -> None:
    a, b = simulated(n, q, 0.0, seed=n)
    two_sided, worse = mcnemar_p(a, b)
    # An exact test of counts errs less often than it may, never more often.
    assert 0.02 < (two_sided < 0.05).mean() <= 0.05 + SLACK
    assert 0.02 < (worse < 0.05).mean() <= 0.05 + SLACK
    found = estimates(a, b)
    outside = np.mean([not e.low <= 0 <= e.high for e in found])
    assert abs(outside - 0.05) < 0.01
    assert outside == np.mean([e.p_value < 0.05 for e in found])


def test_under_the_null_of_a_small_effect_the_interval_covers_it() -> None:
    a, b = simulated(500, 0.2, -0.06, seed=5)
    covered = np.mean([e.low <= -0.06 <= e.high for e in estimates(a, b)])
    assert abs(covered - 0.95) < 0.01


def test_under_the_null_the_clustered_interval_holds_its_level_and_the_plain_one_does_not() -> None:
    """Passages of five questions, whose answers flip together."""
    groups, size = 80, 5
    rng = np.random.default_rng(3)
    sign = rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.8, 0.1], size=(PAIRS, groups))
    change = np.repeat(sign, size, axis=1)
    change[rng.random(change.shape) < 0.1] = 0.0
    original = np.where(change < 0, 1.0, 0.0)
    clusters = np.repeat(np.arange(groups), size)
    outside = {"clustered": 0, "plain": 0}
    for a, b in zip(original, original + change, strict=True):
        for name, kinds in (("clustered", clusters), ("plain", None)):
            e = paired_difference(a, b, kinds)
            outside[name] += not e.low <= 0 <= e.high
    assert abs(outside["clustered"] / PAIRS - 0.05) < 0.012
    assert outside["plain"] / PAIRS > 0.2


def test_under_the_null_holm_errs_anywhere_in_the_suite_at_most_one_time_in_twenty() -> None:
    tasks = [mcnemar_p(*simulated(n, 0.2, 0.0, seed=n))[0] for n in (150, 201, 277, 500)]
    whole = np.stack(tasks, axis=1)
    any_adjusted = np.mean([min(holm(row)) < 0.05 for row in whole.tolist()])
    assert 0.01 < any_adjusted <= 0.05 + SLACK
    assert (whole.min(axis=1) < 0.05).mean() > 0.09  # what it protects from
    assert 0.01 < np.mean([combine_fisher(row) < 0.05 for row in whole.tolist()]) <= 0.05 + SLACK


def test_under_the_null_the_suites_mean_and_the_unpaired_difference_hold_their_level() -> None:
    parts = [simulated(n, 0.2, 0.0, seed=n) for n in (201, 277)]
    paired = [estimates(*part) for part in parts]
    means = [mean_of_estimates(row) for row in zip(*paired, strict=True)]
    assert abs(np.mean([m is not None and m.p_value < 0.05 for m in means]) - 0.05) < 0.01
    rng = np.random.default_rng(9)
    a, b = (rng.binomial(400, 0.6, PAIRS) / 400 for _ in range(2))
    errors = [np.sqrt(x * (1 - x) / 399) for x in (a, b)]
    z = [unpaired_difference(*row).p_value < 0.05 for row in zip(a, b, *errors, strict=True)]
    assert abs(np.mean(z) - 0.05) < 0.01


@pytest.mark.parametrize(("n", "q"), [(277, 0.2), (1172, 0.3)])
def test_a_known_effect_is_found_as_often_as_computed(n: int, q: float) -> None:
    known = count_flips([1.0] * round(n * q) + [0.0] * (n - round(n * q)), [0.0] * n)
    assert known is not None
    delta = detectable_difference(Estimate(0.0, 0.01, -0.02, 0.02, n - 1, n), known)
    a, b = simulated(n, known.rate, -delta, seed=n + 1)
    found = np.mean([e.p_value < 0.05 for e in estimates(a, b)])
    assert abs(found - 0.8) < 0.02
    # McNemar's exact test, by summing over every count of flips and every way they can go.
    flips = np.arange(n + 1)
    weight = stats.binom.pmf(flips, n, known.rate)
    power = sum(
        weight[m] * stats.binom.pmf(k, m, (known.rate + delta) / (2 * known.rate))
        for m in flips
        if weight[m] > 1e-12
        for k in range(m + 1)
        if exact(k, m - k)[0] < 0.05
    )
    assert abs((mcnemar_p(a, b)[0] < 0.05).mean() - power) < 0.015
    assert 0.74 < power < 0.8
