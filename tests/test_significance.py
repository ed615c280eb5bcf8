"""Intervals, tests and verdicts against statsmodels, scipy and simulation."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from prunescope.compare.significance import (
    Estimate,
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
from prunescope.compare.verdict import decide

P_VALUES = st.lists(st.floats(1e-9, 1.0), min_size=1, max_size=12)


def answers(seed: int, n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a = (rng.random(n) < 0.6).astype(float)
    b = np.where(rng.random(n) < 0.2, 1 - a, a)
    return a, b


@pytest.mark.parametrize("seed", range(5))
def test_the_paired_interval_and_its_p_value_equal_scipys(seed: int) -> None:
    a, b = answers(seed)
    ours = paired_difference(a, b)
    theirs = stats.ttest_rel(b, a)
    interval = theirs.confidence_interval(0.95)
    np.testing.assert_allclose(
        [ours.low, ours.high, ours.p_value],
        [interval.low, interval.high, theirs.pvalue],
        rtol=1e-12,
        atol=1e-13,
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_clustered_error_equals_statsmodels(seed: int) -> None:
    a, b = answers(seed)
    clusters = np.random.default_rng(seed).integers(0, 90, len(a))
    ours = paired_difference(a, b, clusters)
    fit = sm.OLS(b - a, np.ones(len(a))).fit(
        cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True
    )
    assert ours.clusters == len(set(clusters))
    np.testing.assert_allclose(ours.stderr, fit.bse[0], rtol=1e-12)
    np.testing.assert_allclose([ours.low, ours.high], fit.conf_int()[0], rtol=1e-12)


def test_clusters_of_one_document_change_nothing() -> None:
    a, b = answers(7)
    plain, clustered = paired_difference(a, b), paired_difference(a, b, np.arange(len(a)))
    assert clustered.stderr == pytest.approx(plain.stderr, rel=1e-12)
    assert (clustered.low, clustered.high) == pytest.approx((plain.low, plain.high), rel=1e-12)


def test_full_agreement_has_the_width_of_one_flipped_document() -> None:
    a, _ = answers(1, 200)
    one = a.copy()
    one[0] = 1 - one[0]
    agreed = paired_difference(a, a)
    assert agreed.value == 0
    assert agreed.stderr == pytest.approx(paired_difference(a, one).stderr, rel=1e-12)
    assert agreed.low < 0 < agreed.high


def test_two_documents_are_needed() -> None:
    with pytest.raises(ValueError, match="at least two documents, found 1"):
        paired_difference([1.0], [0.0])


@settings(deadline=None)
@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_equals_statsmodels_and_the_one_sided_binomial_test(lost: int, gained: int) -> None:
    two_sided, worse = mcnemar_exact(lost, gained)
    reference = mcnemar([[0, lost], [gained, 0]], exact=True).pvalue if lost + gained else 1.0
    # statsmodels doubles the tail beyond 1 when both sides are equal.
    assert two_sided == pytest.approx(min(1.0, reference), rel=0, abs=1e-12)
    assert two_sided == pytest.approx(min(1.0, reference), rel=1e-10, abs=1e-300)  # far tails
    one_sided = (
        stats.binomtest(lost, lost + gained, alternative="greater").pvalue if lost + gained else 1.0
    )
    assert worse == pytest.approx(one_sided, rel=0, abs=1e-12)
    assert worse == pytest.approx(one_sided, rel=1e-10, abs=1e-300)


@pytest.fixture(scope="module")
def settled_objects() -> Iterator[None]:
    """statsmodels' multipletests collects garbage at each call, which takes a tenth of a second
    among all that the tests have imported, unless that is set aside."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("settled_objects")
@settings(deadline=None, max_examples=60)
@given(P_VALUES)
def test_holm_equals_statsmodels(p_values: list[float]) -> None:
    expected = multipletests(p_values, method="holm")[1]
    np.testing.assert_allclose(holm(p_values), expected, rtol=1e-12)


@settings(deadline=None, max_examples=60)
@given(P_VALUES)
def test_fishers_combination_equals_scipys(p_values: list[float]) -> None:
    expected = stats.combine_pvalues(p_values, method="fisher").pvalue
    assert combine_fisher(p_values) == pytest.approx(expected, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("seed", range(5))
def test_equivalence_equals_statsmodels_two_one_sided_tests(seed: int) -> None:
    a, b = answers(seed)
    expected = ttost_paired(b, a, -0.05, 0.05)[0]
    assert equivalent(paired_difference(a, b), 0.05) == pytest.approx(expected, rel=1e-12)


def test_the_unpaired_difference_is_the_two_sample_z_test() -> None:
    ours = unpaired_difference(0.6, 0.55, 0.03, 0.04)
    z = stats.norm(loc=-0.05, scale=0.05)
    assert (ours.low, ours.high) == pytest.approx(z.interval(0.95), rel=1e-12)
    assert ours.p_value == pytest.approx(2 * stats.norm.sf(1.0), rel=1e-12)


def test_the_paired_interval_is_narrower_than_the_unpaired_one() -> None:
    a, b = answers(3)
    errors = [x.std(ddof=1) / math.sqrt(len(x)) for x in (a, b)]
    unpaired = unpaired_difference(a.mean(), b.mean(), *errors)
    assert paired_difference(a, b).stderr < 0.8 * unpaired.stderr


def test_flips_are_counted_by_kind() -> None:
    flips = count_flips([1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 0, 1, 2])
    assert flips is not None
    assert (flips.lost, flips.gained, flips.changed, flips.n) == (1, 1, 3, 5)
    assert flips.rate == 0.4
    assert count_flips([1, 0.5], [1, 0]) is None
    without = count_flips([1, 0], [0, 0], [0, -1], [0, 0])
    assert without is not None and without.changed is None


def test_the_mean_over_tasks_has_the_error_of_independent_tasks() -> None:
    rng = np.random.default_rng(5)
    parts = [paired_difference(*(rng.random((2, n)) < 0.5).astype(float)) for n in (100, 400, 1000)]
    mean = mean_of_estimates(parts)
    assert mean is not None
    assert mean.value == pytest.approx(np.mean([p.value for p in parts]), rel=1e-12)
    draws = [rng.normal(p.value, p.stderr, 200_000) for p in parts]
    assert mean.stderr == pytest.approx(np.mean(draws, axis=0).std(), rel=0.02)
    assert mean_of_estimates([]) is None


# --- simulation ---------------------------------------------------------------------------------


def simulate(n: int, q: float, delta: float, runs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts of lost and gained documents: ``q`` of them flip, with expected difference."""
    rng = np.random.default_rng(seed)
    lost, gained = (q - delta) / 2, (q + delta) / 2
    drawn = rng.multinomial(n, [lost, gained, 1 - q], size=runs)
    return drawn[:, 0], drawn[:, 1]


@pytest.mark.parametrize(("n", "q"), [(277, 0.15), (500, 0.3), (1172, 0.1), (3270, 0.2)])
def test_under_the_null_mcnemar_and_the_interval_hold_their_level(n: int, q: float) -> None:
    runs = 10_000
    lost, gained = simulate(n, q, 0.0, runs, seed=n)
    cache = {pair: mcnemar_exact(*pair)[0] for pair in set(zip(lost, gained, strict=True))}
    rejected = np.mean([cache[p] < 0.05 for p in zip(lost, gained, strict=True)])
    assert 0.02 < rejected <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)  # exact: cautious
    d = (gained - lost) / n
    stderr = np.sqrt(((lost + gained) / n - d**2) / (n - 1))
    covered = np.mean(np.abs(d) <= stats.t(n - 1).ppf(0.975) * stderr)
    assert abs(covered - 0.95) < 0.01
    # The same numbers come out of the documents themselves.
    k, m = int(lost[0]), int(gained[0])
    a = np.array([1.0] * k + [0.0] * (n - k))
    b = np.array([0.0] * k + [1.0] * m + [0.0] * (n - k - m))
    assert paired_difference(a, b).stderr == pytest.approx(stderr[0], rel=1e-12)


@pytest.mark.parametrize(("n", "q"), [(277, 0.2), (1172, 0.3), (3270, 0.15)])
def test_the_detectable_difference_is_found_four_times_in_five(n: int, q: float) -> None:
    flips = count_flips([1.0] * round(n * q) + [0.0] * (n - round(n * q)), [0.0] * n)
    assert flips is not None
    estimate = Estimate(0.0, 0.01, -0.02, 0.02, n - 1, n)
    delta = detectable_difference(estimate, flips)
    lost, gained = simulate(n, flips.rate, delta, 10_000, seed=n + 1)
    d = (gained - lost) / n
    stderr = np.sqrt(((lost + gained) / n - d**2) / (n - 1))
    power = np.mean(np.abs(d / stderr) > stats.t(n - 1).ppf(0.975))
    assert abs(power - 0.8) < 0.02


def test_equivalence_at_the_margin_errs_at_most_one_time_in_twenty() -> None:
    n, q, margin, runs = 3270, 0.2, 0.02, 10_000
    lost, gained = simulate(n, q, margin, runs, seed=11)
    d = (gained - lost) / n
    stderr = np.sqrt(((lost + gained) / n - d**2) / (n - 1))
    claims = [
        equivalent(Estimate(v, s, 0, 0, n - 1, n), margin) < 0.05
        for v, s in zip(d, stderr, strict=True)
    ]
    assert abs(np.mean(claims) - 0.05) < 0.01


# --- verdicts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "stderr", "verdict"),
    [
        (-0.05, 0.01, "worse"),
        (0.05, 0.01, "better"),
        (0.001, 0.002, "same"),
        (-0.006, 0.001, "same"),  # surely not zero, and surely of no consequence
        (-0.012, 0.01, "unclear"),
        (0.0, 0.02, "unclear"),
    ],
)
def test_verdicts(value: float, stderr: float, verdict: str) -> None:
    estimate = unpaired_difference(0.5, 0.5 + value, stderr, 0.0)
    p = estimate.p_value
    assert decide(estimate, p, 0.01, higher_is_better=True) == verdict
    turned = {"worse": "better", "better": "worse"}.get(verdict, verdict)
    assert decide(estimate, p, 0.01, higher_is_better=False) == turned
