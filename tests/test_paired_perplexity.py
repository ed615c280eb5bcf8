"""llama.cpp's list of figures, re-derived token by token, and the bootstrap that checks it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from support.records import EXAMPLES, original_record, pruned_record, token_arrays, write_example

from prunescope.compare.paired_perplexity import (
    TokenComparison,
    TokenLogProbs,
    compare_tokens,
    read_tokens,
)
from prunescope.errors import RecordError
from prunescope.records import tokens_path


def tokens(name: str) -> TokenLogProbs:
    return TokenLogProbs(**token_arrays(EXAMPLES[name]))  # type: ignore[arg-type]


def made(windows: int, length: int, seed: int, harm: float) -> tuple[TokenLogProbs, TokenLogProbs]:
    rng = np.random.default_rng(seed)
    nll = rng.gamma(2.0, 1.5, (windows, length))
    worse = nll + rng.normal(harm, 0.5, nll.shape).clip(-nll)
    target = rng.integers(0, 500, nll.shape).astype(np.int32)

    def side(values: np.ndarray) -> TokenLogProbs:
        top = np.where(values < 2, target, 0).astype(np.int32)
        return TokenLogProbs(
            (-values).astype(np.float32), target, top, values.astype(np.float32).mean(axis=1)
        )

    return side(nll), side(worse)


def compared(a: TokenLogProbs, b: TokenLogProbs) -> TokenComparison:
    found = compare_tokens("wikitext2", a, b)
    assert isinstance(found, TokenComparison)
    return found


def test_figures_equal_llama_cpps_sums_over_tokens() -> None:
    """The accumulators of llama.cpp's kl_divergence(), one token after another."""
    a, b = tokens("original"), tokens("pruned")
    nll = nll2 = base = base2 = both = dp = dp2 = dp4 = 0.0
    same = count = 0
    for lp, lq, s, t in zip(
        a.logprob.ravel(), b.logprob.ravel(), a.top1.ravel(), b.top1.ravel(), strict=True
    ):
        x, y = -float(lp), -float(lq)
        base, base2, nll, nll2, both = base + x, base2 + x * x, nll + y, nll2 + y * y, both + x * y
        change = math.exp(-y) - math.exp(-x)
        dp, dp2, dp4 = dp + change, dp2 + change**2, dp4 + change**4
        same, count = same + int(s == t), count + 1

    def mean_and_error(total: float, squares: float) -> tuple[float, float]:
        mean = total / count
        return mean, math.sqrt((squares / count - mean**2) / (count - 1))

    log_q, log_q_error = mean_and_error(nll, nll2)
    log_p, log_p_error = mean_and_error(base, base2)
    cov = (both / count - (nll / count) * (base / count)) / (count - 1)
    log_error = math.sqrt(log_q_error**2 + log_p_error**2 - 2 * cov)
    q, p = math.exp(log_q), math.exp(log_p)
    difference_error = math.sqrt((q * log_q_error) ** 2 + (p * log_p_error) ** 2 - 2 * q * p * cov)
    mse, mse_error = mean_and_error(dp2, dp4)

    ours = compared(a, b)
    assert ours.tokens == count == 186
    for measured, value, error in (
        (ours.log_ratio, log_q - log_p, log_error),
        (ours.ratio, math.exp(log_q - log_p), math.exp(log_q - log_p) * log_error),
        (ours.difference, q - p, difference_error),
        (ours.mean_dp, *mean_and_error(dp, dp2)),
        (ours.rms_dp, math.sqrt(mse), 0.5 / math.sqrt(mse) * mse_error),
        (ours.same_top, same / count, math.sqrt(same / count * (1 - same / count) / (count - 1))),
    ):
        assert measured.value == pytest.approx(value, rel=1e-9)
        assert measured.stderr == pytest.approx(error, rel=1e-7)
    assert ours.correlation == pytest.approx(cov / (log_q_error * log_p_error), rel=1e-9)


def test_percentiles_interpolate_between_sorted_changes() -> None:
    a, b = tokens("original"), tokens("pruned")
    changes = sorted(
        math.exp(q) - math.exp(p)
        for p, q in zip(
            a.logprob.astype(float).ravel(), b.logprob.astype(float).ravel(), strict=True
        )
    )
    ours = compared(a, b).percentiles
    for percent, value in ours.items():
        place = percent / 100 * (len(changes) - 1)
        low = int(place)
        high = min(low + 1, len(changes) - 1)
        expected = changes[low] + (place - low) * (changes[high] - changes[low])
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_ratio_and_difference_are_those_of_the_records() -> None:
    ours = compared(tokens("original"), tokens("pruned"))
    a = original_record().perplexity["wikitext2"].perplexity
    b = pruned_record().perplexity["wikitext2"].perplexity
    assert ours.ratio.value == pytest.approx(b / a, rel=1e-12)
    assert ours.difference.value == pytest.approx(b - a, rel=1e-12)


def test_swapping_the_sides_inverts_the_ratio() -> None:
    a, b = tokens("original"), tokens("pruned")
    there, back = compared(a, b), compared(b, a)
    assert back.ratio.value == pytest.approx(1 / there.ratio.value, rel=1e-12)
    assert back.log_ratio.stderr == pytest.approx(there.log_ratio.stderr, rel=1e-12)
    assert back.correlation == pytest.approx(there.correlation, rel=1e-12)


def test_the_bootstrap_over_windows_agrees_where_tokens_are_independent() -> None:
    ours = compared(*made(windows=160, length=63, seed=3, harm=0.2))
    assert ours.bootstrap_ratio is not None
    width = ours.bootstrap_ratio[1] - ours.bootstrap_ratio[0]
    assert width == pytest.approx(ours.ratio.high - ours.ratio.low, rel=0.15)
    assert ours.bootstrap_ratio[0] < ours.ratio.value < ours.bootstrap_ratio[1]


def test_the_interval_covers_the_true_ratio_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        shape = (8, 50)
        nll = rng.normal(3.0, 1.0, shape)
        worse = nll + rng.normal(0.1, 0.3, shape)
        zero = np.zeros(shape, np.int32)
        a, b = (
            TokenLogProbs((-v).astype(np.float32), zero, zero, v.mean(axis=1)) for v in (nll, worse)
        )
        log_ratio = compared(a, b).log_ratio
        covered += log_ratio.low <= 0.1 <= log_ratio.high
    assert 0.92 <= covered / 400 <= 0.98


def test_a_model_against_itself_has_no_difference_at_all() -> None:
    ours = compared(tokens("original"), tokens("original"))
    assert (ours.ratio.value, ours.ratio.stderr) == (1.0, pytest.approx(0.0, abs=1e-8))
    assert ours.difference.value == 0
    assert ours.correlation == pytest.approx(1.0)
    assert ours.same_top.value == 1.0
    assert ours.rms_dp.value == 0.0
    assert ours.worst == ()


def test_the_worst_windows_come_first_with_their_place_in_the_text() -> None:
    a, b = made(windows=12, length=31, seed=9, harm=0.3)
    ours = compared(a, b)
    increase = b.window_nll - a.window_nll
    assert [w.window for w in ours.worst] == list(np.argsort(-increase)[:5])
    first = ours.worst[0]
    assert (first.first_token, first.last_token) == (first.window * 32, first.window * 32 + 31)
    assert first.pruned_nll - first.original_nll == pytest.approx(increase.max())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("other-window", r"other windows: original \(6, 31\), pruned \(3, 63\)"),
        ("broken", "log-probabilities are not finite"),
    ],
)
def test_tokens_that_cannot_be_compared_say_why(name: str, reason: str) -> None:
    import re

    found = compare_tokens("wikitext2", tokens("original"), tokens(name))
    assert isinstance(found, str) and re.fullmatch(reason, found)


def test_other_tokens_are_not_compared() -> None:
    a, b = made(2, 10, 0, 0.0)
    shifted = TokenLogProbs(b.logprob, b.target + 1, b.top1, b.window_nll)
    assert compare_tokens("c4", a, shifted) == "the two runs predicted other tokens"


def test_what_was_written_is_read_and_damage_is_one_clear_error(tmp_path: Path) -> None:
    write_example(tmp_path, "pruned")
    found = read_tokens(tmp_path, "wikitext2")
    assert found is not None
    np.testing.assert_array_equal(found.logprob, tokens("pruned").logprob)
    assert read_tokens(tmp_path, "c4") is None
    tokens_path(tmp_path, "wikitext2").write_bytes(b"PK broken")
    with pytest.raises(RecordError, match=r"tokens of wikitext2 at .* cannot be read"):
        read_tokens(tmp_path, "wikitext2")
