"""Two perplexities of the same text compared token by token.

Both models predicted the same tokens, so most of what makes a token hard cancels. The list of
figures is llama.cpp's (``llama-perplexity --kl-divergence``, tools/perplexity/perplexity.cpp),
which takes tokens to be independent; a bootstrap over whole windows checks that.
"""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prunescope.errors import RecordError
from prunescope.records import TOKENS_ARRAYS, tokens_path

__all__ = [
    "PERCENTILES",
    "Measured",
    "TokenComparison",
    "TokenLogProbs",
    "WindowLoss",
    "compare_tokens",
    "read_tokens",
]

Floats = NDArray[np.float64]

PERCENTILES = (0.0, 0.1, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 99.9, 100.0)
_OPTIONAL = frozenset({"window_start", "window_end"})
RESAMPLES = 2000
_Z = 1.959963984540054  # the normal distribution's 97.5 % quantile


@dataclass(frozen=True)
class TokenLogProbs:
    """``tokens/<corpus>.npz`` of a record; see :data:`prunescope.records.TOKENS_ARRAYS`."""

    logprob: NDArray[np.float32]
    target: NDArray[np.int32]
    top1: NDArray[np.int32]
    window_nll: Floats
    window_start: NDArray[np.int64] | None = None
    window_end: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Measured:
    """A figure and its standard error."""

    value: float
    stderr: float

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return self.value - _Z * self.stderr

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return self.value + _Z * self.stderr


@dataclass(frozen=True)
class WindowLoss:
    """A window of the text, and how much worse the pruned model predicts it."""

    window: int
    first_token: int
    """Where the window begins in the tokenized corpus."""
    last_token: int
    original_nll: float
    """Mean cross-entropy, nats per token."""
    pruned_nll: float
    first_character: int | None = None
    """Where the window begins in the text of the corpus; None where it was not recorded."""
    last_character: int | None = None


@dataclass(frozen=True)
class TokenComparison:
    """Paired figures over the tokens of a corpus."""

    corpus: str
    tokens: int
    windows: int
    log_ratio: Measured
    """ln(pruned perplexity / original perplexity)."""
    ratio: Measured
    difference: Measured
    """Pruned perplexity - original perplexity."""
    correlation: float
    """Correlation of the two models' log-probabilities over the tokens; NaN where one is
    constant."""
    bootstrap_ratio: tuple[float, float] | None
    """95 % interval of the ratio from resampling whole windows; None with fewer than two."""
    mean_dp: Measured
    """Mean change of the right token's probability, a fraction."""
    rms_dp: Measured
    """Root mean square of that change."""
    percentiles: dict[float, float]
    """Percent -> percentile of that change."""
    same_top: Measured
    """Share of the tokens where both models' most probable token is the same."""
    worst: tuple[WindowLoss, ...]
    """The windows that lost most, worst first."""


def read_tokens(directory: Path, corpus: str) -> TokenLogProbs | None:
    """Read the tokens of a corpus from a record directory.

    Returns:
        None where the record keeps none.

    Raises:
        RecordError: the file is damaged.
    """
    path = tokens_path(directory, corpus)
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            wanted = [name for name in TOKENS_ARRAYS if name in archive or name not in _OPTIONAL]
            return TokenLogProbs(**{name: archive[name] for name in wanted})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RecordError(
            f"the tokens of {corpus} at {path} cannot be read: {error}",
            hint="Evaluate the model again with --force",
        ) from error


def compare_tokens(
    corpus: str, original: TokenLogProbs, pruned: TokenLogProbs, *, worst: int = 5
) -> TokenComparison | str:
    """Compare two models' log-probabilities of the same tokens.

    Uncertainties follow by the delta method with the covariance: with x and y the two mean
    cross-entropies, var(y - x) = var(x) + var(y) - 2 cov(x, y), the ratio's error is
    exp(y - x) times its root, and the difference's is the root of
    (e^y)^2 var(y) + (e^x)^2 var(x) - 2 e^x e^y cov(x, y).

    Returns:
        The comparison, or why there is none.
    """
    if original.target.shape != pruned.target.shape:
        shapes = f"original {original.target.shape}, pruned {pruned.target.shape}"
        return f"other windows: {shapes}"
    if not np.array_equal(original.target, pruned.target):
        return "the two runs predicted other tokens"
    x = -original.logprob.astype(np.float64).ravel()
    y = -pruned.logprob.astype(np.float64).ravel()
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return "log-probabilities are not finite"
    if len(x) < 2:
        return "fewer than two tokens"
    ratio, difference, log_ratio = _ratio(x, y, original.window_nll, pruned.window_nll)
    dp = np.exp(-y) - np.exp(-x)
    square = _mean(dp**2)
    rms = math.sqrt(square.value)
    windows, predicted = original.target.shape
    return TokenComparison(
        corpus=corpus,
        tokens=len(x),
        windows=windows,
        log_ratio=log_ratio,
        ratio=ratio,
        difference=difference,
        correlation=_correlation(x, y),
        bootstrap_ratio=_bootstrap(pruned.window_nll - original.window_nll),
        mean_dp=_mean(dp),
        rms_dp=Measured(rms, 0.5 * square.stderr / rms if rms else 0.0),
        percentiles=dict(zip(PERCENTILES, np.percentile(dp, PERCENTILES).tolist(), strict=True)),
        same_top=_share(original.top1.ravel() == pruned.top1.ravel()),
        worst=_worst(original, pruned, predicted + 1, worst),
    )


def _ratio(
    x: Floats, y: Floats, x_windows: Floats, y_windows: Floats
) -> tuple[Measured, Measured, Measured]:
    """Ratio, difference and log ratio of the perplexities.

    The values come from the windows' means in float64, so that they are the records' own; the
    errors from the tokens.
    """
    ppl_x, ppl_y = math.exp(x_windows.mean()), math.exp(y_windows.mean())
    log_ratio = float(y_windows.mean() - x_windows.mean())
    cov = np.cov(np.stack([x, y]), ddof=0) / (len(x) - 1)
    log_error = math.sqrt(max(0.0, cov[0, 0] + cov[1, 1] - 2 * cov[0, 1]))
    variance = ppl_y**2 * cov[1, 1] + ppl_x**2 * cov[0, 0] - 2 * ppl_x * ppl_y * cov[0, 1]
    return (
        Measured(math.exp(log_ratio), math.exp(log_ratio) * log_error),
        Measured(ppl_y - ppl_x, math.sqrt(max(0.0, variance))),
        Measured(log_ratio, log_error),
    )


def _mean(values: Floats) -> Measured:
    return Measured(float(values.mean()), float(values.std()) / math.sqrt(len(values) - 1))


def _share(hits: NDArray[np.bool_]) -> Measured:
    share = float(hits.mean())
    return Measured(share, math.sqrt(share * (1 - share) / (len(hits) - 1)))


def _correlation(x: Floats, y: Floats) -> float:
    if x.std() == 0 or y.std() == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def _bootstrap(increase: Floats) -> tuple[float, float] | None:
    """Percentile interval of the ratio; windows are drawn with replacement from a fixed seed."""
    count = len(increase)
    if count < 2:
        return None
    drawn = np.random.default_rng(0).integers(0, count, size=(RESAMPLES, count))
    low, high = np.percentile(increase[drawn].mean(axis=1), [2.5, 97.5])
    return math.exp(low), math.exp(high)


def _worst(
    original: TokenLogProbs, pruned: TokenLogProbs, seqlen: int, count: int
) -> tuple[WindowLoss, ...]:
    x, y = original.window_nll, pruned.window_nll
    order = np.argsort(-(y - x), kind="stable")[:count]
    return tuple(
        WindowLoss(
            int(w),
            int(w) * seqlen,
            int(w) * seqlen + seqlen - 1,
            float(x[w]),
            float(y[w]),
            *_characters(original if original.window_start is not None else pruned, int(w)),
        )
        for w in order
        if y[w] > x[w]
    )


def _characters(side: TokenLogProbs, window: int) -> tuple[int | None, int | None]:
    if side.window_start is None or side.window_end is None:
        return None, None
    return int(side.window_start[window]), int(side.window_end[window]) - 1
