"""From tokens to log-probabilities without ever holding the logits of every position.

A causal language model ends in a projection onto the vocabulary. Its output for a batch is the
largest tensor of an evaluation by far, and only a few positions of it are read: so the model is
run up to its last hidden state, and the positions that are read are projected part by part. Each
part covers some columns of the vocabulary, so that the weights are read from memory once for all
positions; the parts' log-sum-exps are joined as in online softmax (Milakov and Gimelshein 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "Head",
    "TokenScores",
    "find_head",
    "last_hidden_state",
    "score_logits",
    "score_positions",
]

PART_LOGITS = {"cpu": 2**20, "cuda": 2**26}
"""Logits that are held at once: on a CPU few enough to stay in its caches."""
COLUMNS = (512, 8192)
"""Fewest and most columns of the vocabulary in a part."""


@dataclass(frozen=True)
class Head:
    """What a model does after its last hidden state."""

    module: nn.Module
    """The projection onto the vocabulary, its bias included."""
    scale: float = 1.0
    softcap: float | None = None
    weights: tuple[Tensor, Tensor | None] | None = None
    """The module's matrix and bias, where using them is the same as calling it."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of ``hidden``: (positions, width) to (positions, vocabulary), float32."""
        return self._finish(self.module(hidden))

    def parts(self, hidden: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The same, some columns at a time: the first column's number and the logits."""
        if self.weights is None:
            yield 0, self.logits(hidden)
            return
        matrix, bias = self.weights
        hidden = hidden.to(matrix.device)
        step = min(max(_limit(matrix.device) // max(1, len(hidden)), COLUMNS[0]), COLUMNS[1])
        for start in range(0, len(matrix), step):
            some = None if bias is None else bias[start : start + step]
            logits = nn.functional.linear(hidden, matrix[start : start + step], some)
            yield start, self._finish(logits)

    def _finish(self, logits: Tensor) -> Tensor:
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits.float()


@dataclass(frozen=True)
class TokenScores:
    """What is kept of the logits, one entry a scored token."""

    logprob: Tensor
    """float64, natural logarithm of the target's probability."""
    top1: Tensor
    """int64, the most probable token, the first of several that tie."""


def last_hidden_state(model: Any, **inputs: Any) -> Tensor:
    """Last hidden state, (batch, length, width), after the final norm and before the logits."""
    hidden: Tensor = model.base_model(**inputs)[0]
    return hidden


@torch.inference_mode()
def find_head(model: Any, input_ids: Tensor) -> Head | None:
    """How this model turns its last hidden state into logits, tried out on ``input_ids``.

    Returns:
        None where no known form gives the model's own logits.
    """
    module = model.get_output_embeddings()
    if module is None or model.base_model is model:
        return None
    wanted = model(input_ids=input_ids, use_cache=False).logits[0]
    hidden = last_hidden_state(model, input_ids=input_ids, use_cache=False)[0]
    for head in _candidates(module, model.config):
        if _same(torch.cat([part for _, part in head.parts(hidden)], dim=-1), wanted):
            return head
    return None


def _candidates(module: nn.Module, config: Any) -> Iterator[Head]:
    """Forms of the logits in the architectures of transformers, the particular ones first."""
    text = config.get_text_config()
    weights: list[tuple[Tensor, Tensor | None] | None] = [None]
    if type(module) is nn.Linear and not module.weight.is_meta:  # meta: offloaded until called
        weights.insert(0, (module.weight, module.bias))
    for matrix in weights:
        if cap := getattr(text, "final_logit_softcapping", None):  # Gemma 2 and 3
            yield Head(module, softcap=float(cap), weights=matrix)
        if scale := getattr(text, "logit_scale", None):  # Cohere
            yield Head(module, scale=float(scale), weights=matrix)
        if divisor := getattr(text, "logits_scaling", None):  # Granite
            yield Head(module, scale=1.0 / float(divisor), weights=matrix)
        yield Head(module, weights=matrix)


def _same(found: Tensor, wanted: Tensor) -> bool:
    """Equal up to rounding in the model's dtype; NaN equals NaN, so that broken models pass."""
    if found.shape != wanted.shape:
        return False
    tolerance = 1e-4 if wanted.dtype == torch.float32 else 1e-2
    reference = wanted.float().to(found.device)
    scale = float(reference.abs().nan_to_num(0.0, 0.0, 0.0).max())
    return torch.allclose(found, reference, rtol=0.0, atol=scale * tolerance, equal_nan=True)


def score_positions(
    head: Head, hidden: Tensor, targets: Tensor, rows: Tensor | None = None
) -> TokenScores:
    """Log-probabilities of target tokens, by log-sum-exp minus the target's logit.

    Args:
        head: from :func:`find_head`.
        hidden: (positions, width), the hidden states that are read.
        targets: (tokens,), what each reading predicts.
        rows: (tokens,), nondecreasing, on the CPU: which row of ``hidden`` predicts each target;
            by default one target a row.
    """
    if rows is None:
        rows = torch.arange(len(hidden))
    if head.weights is None:
        return _score_chunks(head.logits, hidden, targets, rows)
    sums = _OnlineSums(len(hidden), targets, rows, head.weights[0].device)
    for start, logits in head.parts(hidden):
        sums.add(start, logits)
    return sums.scores()


def score_logits(logits: Tensor, targets: Tensor) -> TokenScores:
    """The same from logits, (positions, vocabulary), for models without a :class:`Head`."""

    def copy(part: Tensor) -> Tensor:
        return part.to(torch.float32, copy=True)

    return _score_chunks(copy, logits, targets, torch.arange(len(logits)))


def _score_chunks(
    project: Callable[[Tensor], Tensor], inputs: Tensor, targets: Tensor, rows: Tensor
) -> TokenScores:
    """Some positions at a time, each with its whole vocabulary."""
    step = max(1, 16 * _limit(inputs.device) // 100_000)
    starts = range(0, len(inputs), step)
    edges = torch.searchsorted(rows, torch.tensor([*starts, len(inputs)])).tolist()
    chunks = []
    for i, start in enumerate(starts):
        span = slice(edges[i], edges[i + 1])
        logits = project(inputs[start : start + step])
        sums = _OnlineSums(len(logits), targets[span], rows[span] - start, logits.device)
        sums.add(0, logits)
        chunks.append(sums.scores())
    return TokenScores(
        torch.cat([chunk.logprob for chunk in chunks]), torch.cat([chunk.top1 for chunk in chunks])
    )


def _limit(device: torch.device) -> int:
    return PART_LOGITS.get(device.type, PART_LOGITS["cuda"])


class _OnlineSums:
    """Log-sum-exp, target logits and most probable tokens, gathered part by part."""

    def __init__(self, positions: int, targets: Tensor, rows: Tensor, device: torch.device) -> None:
        self._order = targets.argsort().cpu()
        self._targets = targets.cpu()[self._order].contiguous()
        self._rows = rows.cpu()[self._order]
        self._chosen = torch.zeros(len(targets), dtype=torch.float64, device=device)
        self._largest = torch.full((positions,), float("-inf"), device=device)
        self._total = torch.zeros(positions, dtype=torch.float64, device=device)
        self._top1 = torch.zeros(positions, dtype=torch.long, device=device)

    def add(self, start: int, logits: Tensor) -> None:
        """Take in the logits of the tokens from ``start`` on; they are overwritten."""
        edges = torch.tensor([start, start + logits.shape[1]])
        first, last = torch.searchsorted(self._targets, edges).tolist()
        if last > first:
            rows = self._rows[first:last].to(logits.device)
            columns = (self._targets[first:last] - start).to(logits.device)
            self._chosen[first:last] = logits[rows, columns].double()
        here = logits.amax(-1)
        higher = (here > self._largest).nonzero().squeeze(-1)
        if len(higher):
            self._top1[higher] = start + logits[higher].argmax(-1)
        # A finite shift keeps a part that is all minus infinity from becoming NaN.
        largest = torch.maximum(self._largest, here).clamp_(min=torch.finfo(here.dtype).min)
        self._total *= (self._largest - largest).double().exp_()
        self._total += logits.sub_(largest.unsqueeze(-1)).exp_().sum(-1)
        self._largest = largest

    def scores(self) -> TokenScores:
        """What was gathered, in the order of the targets."""
        rows = self._rows.to(self._total.device)
        normalizer = self._largest.double() + self._total.log()
        back = self._order.argsort().to(self._total.device)
        return TokenScores((self._chosen - normalizer[rows])[back], self._top1[rows][back])
