"""How far a model's next-token distributions are from an original's, token by token.

KL(original || model) in nats over the vocabulary, for each scored token of the perplexity corpus,
as llama.cpp's ``llama-perplexity --kl-divergence`` defines it. The original is either loaded
beside the model, or known by the k largest log-probabilities a token that its evaluation kept:
then all other tokens make one bucket, and the divergence over the k + 1 buckets is a lower bound
of the true one (the log-sum inequality; Cover and Thomas, Elements of Information Theory, 2.7).

The watchers here see each batch of windows while perplexity is measured, so the model runs once.
Both vocabularies are projected in chunks of positions, and sums are taken in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from prunescope.errors import SettingError
from prunescope.evaluate.scoring.projection import Head, find_head, last_hidden_state

if TYPE_CHECKING:
    from prunescope.evaluate.loading import LoadedModel

__all__ = [
    "PERCENTILES",
    "DivergenceStatistics",
    "KeptReference",
    "LoadedReference",
    "TokenDivergence",
    "TopkKeeper",
    "bucket_divergence",
    "full_divergence",
    "statistics",
    "top_buckets",
]

PAIR_LOGITS = {"cpu": 2**22, "cuda": 2**26}
"""Logits of each model that are held at once."""
PROBE_TOKENS = 16
PERCENTILES = (0.0, 1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 99.9, 100.0)

Project = Callable[[Tensor], Tensor]
"""From what is kept of positions to their logits, float32."""


# --- one chunk of positions -----------------------------------------------------------------------


def full_divergence(original: Tensor, model: Tensor) -> tuple[Tensor, Tensor]:
    """KL(original || model) from logits over the whole vocabulary.

    Args:
        original: (positions, vocabulary), float32.
        model: likewise.

    Returns:
        (positions,) float64, nats, never below 0; and (positions,) bool, whether the most
        probable token is the same.
    """
    highest, first = original.max(-1, keepdim=True)
    highest_model, second = model.max(-1, keepdim=True)
    shifted, shifted_model = original - highest, model - highest_model
    weights = shifted.exp()
    total = weights.sum(-1, dtype=torch.float64)
    total_model = shifted_model.exp().sum(-1, dtype=torch.float64)
    # A token of probability 0 adds nothing, whatever the other model says of it.
    terms = shifted.sub_(shifted_model).mul_(weights).masked_fill_(weights == 0, 0.0)
    mean = terms.sum(-1, dtype=torch.float64) / total
    divergence = mean - total.log() + total_model.log()
    return divergence.clamp_min(0.0), (first == second).squeeze(-1)


def top_buckets(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k most probable tokens, and all others as one bucket.

    Args:
        logits: (positions, vocabulary), float32.
        k: at most the size of the vocabulary.

    Returns:
        Tokens (positions, k), their log-probabilities (positions, k) float64, the most probable
        first, and the tail's log-probability (positions,), ``-inf`` where nothing is left.
    """
    tokens = logits.topk(k, dim=-1).indices
    logprobs, tail = _buckets(logits, tokens)
    return tokens, logprobs, tail


def _buckets(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of ``tokens`` (positions, k) and of everything else (positions,)."""
    chosen = logits.gather(-1, tokens).double()
    normalizer = _log_sum_exp(logits)
    rest = _log_sum_exp(logits.scatter(-1, tokens, -math.inf))
    return chosen - normalizer.unsqueeze(-1), rest - normalizer


def _log_sum_exp(logits: Tensor) -> Tensor:
    highest = logits.amax(-1, keepdim=True)
    # Where nothing is left, -inf - -inf would be NaN.
    base = torch.where(highest == -math.inf, torch.zeros_like(highest), highest)
    total = (logits - base).exp_().sum(-1, dtype=torch.float64)
    return base.squeeze(-1).double() + total.log()


def bucket_divergence(
    tokens: Tensor, logprobs: Tensor, tail: Tensor, model: Tensor
) -> tuple[Tensor, Tensor]:
    """KL over k + 1 buckets from what :func:`top_buckets` gave of the original.

    Args:
        tokens: (positions, k).
        logprobs: (positions, k).
        tail: (positions,).
        model: (positions, vocabulary), the model's logits, float32.

    Returns:
        As :func:`full_divergence`; a lower bound of it.
    """
    found, found_tail = _buckets(model, tokens)
    p = torch.cat([logprobs.double(), tail.double().unsqueeze(-1)], -1)
    q = torch.cat([found, found_tail.unsqueeze(-1)], -1)
    terms = (p.exp() * (p - q)).masked_fill(p == -math.inf, 0.0)
    return terms.sum(-1).clamp_min(0.0), tokens[:, 0] == model.argmax(-1)


# --- watchers of the windows ----------------------------------------------------------------------


@dataclass(frozen=True)
class TokenDivergence:
    """One entry a scored token."""

    kl: np.ndarray
    """(windows, seqlen - 1), float64, nats."""
    same_top: np.ndarray
    """(windows, seqlen - 1), bool."""


@dataclass
class _Parts:
    """Batches by their first window: one that is repeated in smaller pieces is replaced."""

    found: dict[int, tuple[np.ndarray, ...]] = field(default_factory=dict)

    def put(self, first: int, windows: int, *tensors: Tensor) -> None:
        shaped = (t.reshape(windows, -1, *t.shape[1:]) for t in tensors)
        self.found[first] = tuple(t.cpu().numpy() for t in shaped)

    def joined(self) -> list[np.ndarray]:
        ordered = [self.found[first] for first in sorted(self.found)]
        return [np.concatenate(parts) for parts in zip(*ordered, strict=True)]


class LoadedReference:
    """The original's model, loaded beside the one that is measured."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._head: Head | None = None
        self._probed = False
        self._parts = _Parts()

    @torch.inference_mode()
    def see(self, first: int, windows: Tensor, project: Project, inputs: Tensor) -> None:
        """Compare a batch of windows.

        Args:
            first: index of the batch's first window.
            windows: (batch, seqlen), tokens.
            project: from ``inputs`` to the measured model's logits.
            inputs: (batch * (seqlen - 1), width), the positions that predict a token.

        Raises:
            SettingError: the two vocabularies differ in size.
        """
        original, project_original = self._original(windows.to(self._loaded.device))
        found = []
        for part in _chunks(inputs, project):
            mine = project_original(original[part]).to(inputs.device)
            theirs = project(inputs[part])
            if mine.shape != theirs.shape:
                raise SettingError(
                    f"the original predicts {mine.shape[-1]:,} tokens, this model "
                    f"{theirs.shape[-1]:,}: their distributions cannot be compared",
                    hint="Leave --kl-reference out, or name the original of this very model",
                )
            found.append(full_divergence(mine, theirs))
        self._parts.put(first, len(windows), *_cat(found))

    def _original(self, windows: Tensor) -> tuple[Tensor, Project]:
        """The original's side of ``inputs`` and ``project``."""
        model = self._loaded.model
        if not self._probed:
            self._head = find_head(model, windows[:1, :PROBE_TOKENS])
            self._probed = True
        if self._head is None:
            logits: Tensor = model(input_ids=windows, use_cache=False).logits
            return logits[:, :-1].flatten(0, 1), _as_float
        hidden = last_hidden_state(model, input_ids=windows, use_cache=False)
        return hidden[:, :-1].flatten(0, 1), self._head.logits

    def result(self) -> TokenDivergence:
        """What all windows gave."""
        return TokenDivergence(*self._parts.joined())


class KeptReference:
    """The original as its evaluation kept it: :data:`prunescope.records.TOPK_ARRAYS`."""

    def __init__(self, kept: Mapping[str, np.ndarray]) -> None:
        self._kept = kept
        self._parts = _Parts()

    @torch.inference_mode()
    def see(self, first: int, windows: Tensor, project: Project, inputs: Tensor) -> None:
        """Compare a batch of windows; see :meth:`LoadedReference.see`.

        Raises:
            SettingError: the original's evaluation predicted other tokens.
        """
        rows = slice(first, first + len(windows))
        target = torch.from_numpy(self._kept["target"][rows])
        if not torch.equal(target.long(), windows[:, 1:].cpu().long()):
            raise SettingError(
                "the original's kept log-probabilities are of other tokens than this model "
                f"predicts, first in window {first} or after",
                hint="The two tokenizers differ: name the original's model with --kl-reference",
            )
        tokens, logprobs = (self._flat(name, rows, inputs) for name in ("token", "logprob"))
        tail = torch.from_numpy(self._kept["tail"][rows]).flatten().to(inputs.device)
        found = [
            bucket_divergence(
                tokens[part].long(), logprobs[part], tail[part], project(inputs[part])
            )
            for part in _chunks(inputs, project)
        ]
        self._parts.put(first, len(windows), *_cat(found))

    def _flat(self, name: str, rows: slice, inputs: Tensor) -> Tensor:
        return torch.from_numpy(self._kept[name][rows]).flatten(0, 1).to(inputs.device)

    def result(self) -> TokenDivergence:
        """What all windows gave."""
        return TokenDivergence(*self._parts.joined())


class TopkKeeper:
    """Keeps each token's k largest log-probabilities, for later evaluations to compare with."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._parts = _Parts()

    @torch.inference_mode()
    def see(self, first: int, windows: Tensor, project: Project, inputs: Tensor) -> None:
        """Keep what a batch of windows gives; see :meth:`LoadedReference.see`.

        Raises:
            SettingError: the vocabulary has fewer than k tokens.
        """
        found = []
        for part in _chunks(inputs, project):
            logits = project(inputs[part])
            if self._k > logits.shape[-1]:
                raise SettingError(
                    f"--keep-topk {self._k} is more than the {logits.shape[-1]:,} tokens that "
                    "the model predicts"
                )
            tokens, logprobs, tail = top_buckets(logits, self._k)
            found.append((tokens.int(), logprobs.float(), tail.float()))
        self._parts.put(first, len(windows), *_cat(found), windows[:, 1:].flatten().int())

    def arrays(self) -> dict[str, np.ndarray]:
        """What :data:`prunescope.records.TOPK_ARRAYS` lists."""
        token, logprob, tail, target = self._parts.joined()
        return {"token": token, "logprob": logprob, "tail": tail, "target": target}


def _as_float(logits: Tensor) -> Tensor:
    return logits.to(torch.float32, copy=True)


def _chunks(inputs: Tensor, project: Project) -> Iterator[slice]:
    """Slices of positions whose logits fit into memory."""
    width = project(inputs[:1]).shape[-1]
    most = PAIR_LOGITS.get(inputs.device.type, PAIR_LOGITS["cuda"])
    step = max(1, most // width)
    for start in range(0, len(inputs), step):
        yield slice(start, start + step)


def _cat(parts: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]


# --- statistics -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class DivergenceStatistics:
    """Figures over all tokens; NaN where a distribution was not finite."""

    mean: float
    stderr_tokens: float | None
    """Standard error over the tokens, as if they were independent (what llama.cpp gives)."""
    stderr_windows: float | None
    """Standard error over the windows' means; None with fewer than two."""
    percentiles: dict[str, float]
    same_top: float
    same_top_stderr: float | None


def statistics(found: TokenDivergence) -> DivergenceStatistics:
    """Mean, errors and percentiles of the tokens' divergences."""
    kl = found.kl
    tokens = kl.size
    per_window = kl.mean(axis=1)
    share = float(found.same_top.mean())
    quantiles = np.percentile(kl, PERCENTILES) if np.isfinite(kl).all() else None
    return DivergenceStatistics(
        mean=float(kl.mean()),
        stderr_tokens=_stderr(kl.ravel()),
        stderr_windows=_stderr(per_window),
        percentiles={
            f"{percent:g}": math.nan if quantiles is None else float(quantiles[index])
            for index, percent in enumerate(PERCENTILES)
        },
        same_top=share,
        same_top_stderr=math.sqrt(share * (1 - share) / (tokens - 1)) if tokens > 1 else None,
    )


def _stderr(values: np.ndarray) -> float | None:
    if values.size < 2:
        return None
    with np.errstate(invalid="ignore"):
        return float(values.std(ddof=1)) / math.sqrt(values.size)
