"""Perplexity by the protocol of GPTQ, SparseGPT and wanda, in little memory.

The text is tokenized once with the tokenizer's defaults and cut into floor(N / seqlen) windows
that do not overlap. Each window's mean cross-entropy over its seqlen - 1 predicted tokens is
taken, and perplexity is exp(mean over windows). The vocabulary projection is computed in chunks
of positions, and log-probabilities as log-sum-exp minus the target's logit, because log_softmax
in float32 is 2e-5 off on a vocabulary of 49,000.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch

from prunescope.errors import SettingError
from prunescope.evaluate.progress import Progress
from prunescope.evaluate.scoring.memory import (
    check_batch_size,
    free_memory,
    is_out_of_memory,
    out_of_memory_error,
)
from prunescope.evaluate.scoring.projection import (
    Head,
    TokenScores,
    find_head,
    last_hidden_state,
    score_logits,
    score_positions,
)
from prunescope.records import Breakage, PerplexityResult

if TYPE_CHECKING:
    from prunescope.evaluate.loading import LoadedModel

__all__ = ["PerplexityMeasurement", "WindowWatcher", "default_seqlen", "measure_perplexity"]

DEFAULT_SEQLEN = 2048
AUTO_WINDOWS = {"cpu": 1, "cuda": 8}
"""Windows a batch to begin with; a CPU gains nothing from more than one."""
PROBE_TOKENS = 16


@dataclass(frozen=True)
class PerplexityMeasurement:
    """What the windows of one corpus gave."""

    result: PerplexityResult
    arrays: dict[str, np.ndarray]
    """One entry a scored token, see :data:`prunescope.records.TOKENS_ARRAYS`."""
    broken: Breakage | None
    """The first window with NaN or infinity."""


class WindowWatcher(Protocol):
    """Sees each batch of windows as it is scored, for example to compare it with another model."""

    def see(
        self,
        first: int,
        windows: torch.Tensor,
        project: Callable[[torch.Tensor], torch.Tensor],
        inputs: torch.Tensor,
    ) -> None:
        """A batch; one that did not fit into memory comes again in smaller pieces.

        Args:
            first: index of the batch's first window.
            windows: (batch, seqlen), tokens.
            project: from rows of ``inputs`` to logits, float32, which may be overwritten.
            inputs: (batch * (seqlen - 1), width), one row a predicted token.
        """


def default_seqlen(max_length: int) -> int:
    """Window length in tokens where the user gives none: 2048, or the model's maximum."""
    return min(DEFAULT_SEQLEN, max_length)


def measure_perplexity(
    loaded: LoadedModel,
    text: str,
    *,
    corpus: str,
    seqlen: int,
    nsamples: int | None,
    batch_size: int | Literal["auto"],
    progress: Progress,
    watchers: Sequence[WindowWatcher] = (),
) -> PerplexityMeasurement:
    """Perplexity of ``text``, every predicted token's log-probability, and where it broke.

    Args:
        loaded: the model and its tokenizer.
        text: the whole corpus.
        corpus: its name, for the record and for messages.
        seqlen: window length, tokens.
        nsamples: only the first ``nsamples`` windows; None: all of them.
        batch_size: windows that go through the model at once. Out of memory halves it.
        progress: hears one step a window.
        watchers: see every batch of windows.

    Raises:
        SettingError: ``seqlen`` is below 2 or more than the model takes, ``nsamples`` or
            ``batch_size`` is below 1, the corpus is shorter than one window, or memory does not
            take one window.
    """
    _check_settings(loaded, seqlen, nsamples, batch_size)
    tokens, offsets = _tokenize(loaded, text)
    count = len(tokens) // seqlen
    if count == 0:
        raise SettingError(
            f"{corpus} has {len(tokens)} tokens, fewer than one window of {seqlen}",
            hint=f"Use --seqlen {max(2, len(tokens) // 2)} or less, or a longer corpus",
        )
    count = min(count, nsamples or count)
    windows = torch.tensor(tokens[: count * seqlen], dtype=torch.long).view(count, seqlen)
    progress.start("perplexity", corpus, total=count)
    try:
        scores = _score_windows(loaded, windows, batch_size, progress, watchers)
    finally:
        progress.finish()
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    found = _measurement(windows, scores, corpus, digest, len(tokens))
    if offsets is not None:
        found.arrays.update(_window_places(offsets, count, seqlen))
    return found


def _tokenize(loaded: LoadedModel, text: str) -> tuple[list[int], np.ndarray | None]:
    """The text's tokens, and the characters that each stands for, (tokens, 2), where known."""
    tokenizer = loaded.tokenizer
    known = bool(getattr(tokenizer, "is_fast", False))
    # verbose=False: a text longer than the model's maximum is what we want here.
    found = tokenizer(text, verbose=False, **({"return_offsets_mapping": True} if known else {}))
    offsets = np.asarray(found["offset_mapping"], dtype=np.int64) if known else None
    return list(found["input_ids"]), offsets


def _window_places(offsets: np.ndarray, count: int, seqlen: int) -> dict[str, np.ndarray]:
    """Where each window begins and ends in the text, characters; special tokens have no place."""
    start, end = np.moveaxis(offsets[: count * seqlen].reshape(count, seqlen, 2), -1, 0)
    last = end.max(axis=1)
    first = np.where(end > start, start, last[:, None]).min(axis=1)
    return {"window_start": first, "window_end": last}


def _check_settings(
    loaded: LoadedModel, seqlen: int, nsamples: int | None, batch_size: int | Literal["auto"]
) -> None:
    if seqlen < 2:
        raise SettingError(
            f"a perplexity window must have at least 2 tokens, not {seqlen}",
            hint="Give --seqlen 2048, for example",
        )
    if seqlen > loaded.max_length:
        raise SettingError(
            f"a perplexity window of {seqlen} tokens is longer than the model's maximum of "
            f"{loaded.max_length}",
            hint=f"Use --seqlen {loaded.max_length} or less",
        )
    if nsamples is not None and nsamples < 1:
        raise SettingError(
            f"the number of perplexity windows must be at least 1, not {nsamples}",
            hint="Give --nsamples 128, for example, or leave it out",
        )
    check_batch_size(batch_size)


@torch.inference_mode()
def _score_windows(
    loaded: LoadedModel,
    windows: torch.Tensor,
    batch_size: int | Literal["auto"],
    progress: Progress,
    watchers: Sequence[WindowWatcher],
) -> TokenScores:
    """Scores of every predicted token, (windows, seqlen - 1) each, on the CPU."""
    device = torch.device(loaded.device)
    size = AUTO_WINDOWS.get(device.type, 1) if batch_size == "auto" else batch_size
    head = find_head(loaded.model, windows[:1, :PROBE_TOKENS].to(device))
    logprobs, tops = [], []
    for scores in _in_batches(loaded, head, windows, size, progress, watchers):
        logprobs.append(scores.logprob.view(-1, windows.shape[1] - 1).cpu())
        tops.append(scores.top1.view(-1, windows.shape[1] - 1).cpu())
    return TokenScores(torch.cat(logprobs), torch.cat(tops))


def _in_batches(
    loaded: LoadedModel,
    head: Head | None,
    windows: torch.Tensor,
    size: int,
    progress: Progress,
    watchers: Sequence[WindowWatcher],
) -> Iterator[TokenScores]:
    """Scores batch by batch; out of memory halves the batch and goes on."""
    start = 0
    while start < len(windows):
        batch = windows[start : start + size]
        scores = None
        try:
            scores = _score_batch(loaded, head, batch.to(loaded.device), start, watchers)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if scores is None:
            free_memory()
            if len(batch) == 1:
                raise out_of_memory_error(f"one perplexity window of {batch.shape[1]} tokens")
            size = len(batch) // 2
            progress.say(f"out of memory: perplexity goes on with {size} windows at a time")
            continue
        yield scores
        start += len(batch)
        progress.advance(len(batch))


def _score_batch(
    loaded: LoadedModel,
    head: Head | None,
    batch: torch.Tensor,
    first: int,
    watchers: Sequence[WindowWatcher],
) -> TokenScores:
    targets = batch[:, 1:].flatten()
    if head is None:
        logits = loaded.model(input_ids=batch, use_cache=False).logits[:, :-1].flatten(0, 1)
        for watcher in watchers:
            watcher.see(first, batch, _float_copy, logits)
        return score_logits(logits, targets)
    hidden = last_hidden_state(loaded.model, input_ids=batch, use_cache=False)
    inputs = hidden[:, :-1].flatten(0, 1)
    for watcher in watchers:
        watcher.see(first, batch, head.logits, inputs)
    return score_positions(head, inputs, targets)


def _float_copy(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.float32, copy=True)


def _measurement(
    windows: torch.Tensor, scores: TokenScores, corpus: str, digest: str, corpus_tokens: int
) -> PerplexityMeasurement:
    count, seqlen = windows.shape
    logprob = scores.logprob.numpy()
    window_nll = -logprob.mean(axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(window_nll.mean())
        perplexity = float(np.exp(mean))
        spread = float(window_nll.std(ddof=1)) / math.sqrt(count) if count > 1 else None
    result = PerplexityResult(
        corpus=corpus,
        corpus_sha256=digest,
        perplexity=perplexity,
        mean_nll=mean,
        stderr_nll=spread,
        seqlen=seqlen,
        windows=count,
        tokens=count * (seqlen - 1),
        corpus_tokens=corpus_tokens,
    )
    arrays = {
        "logprob": logprob.astype(np.float32),
        "target": windows[:, 1:].numpy().astype(np.int32),
        "top1": scores.top1.numpy().astype(np.int32),
        "window_nll": window_nll,
    }
    return PerplexityMeasurement(result, arrays, _first_broken(logprob, corpus))


def _first_broken(logprob: np.ndarray, corpus: str) -> Breakage | None:
    bad = ~np.isfinite(logprob).all(axis=1)
    if not bad.any():
        return None
    index = int(bad.argmax())
    what = "NaN logits" if np.isnan(logprob[index]).any() else "infinite loss"
    return Breakage(stage="perplexity", where=f"{corpus} window {index}", what=what)
