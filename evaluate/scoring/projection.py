"""From tokens to log-probabilities without ever holding the logits of every position.

A causal language model ends in a projection onto the vocabulary. Its output for a batch is the
largest tensor of an evaluation by far, and only a few positions of it are read: so the model is
run up to its last hidden state, and the positions that are read are projected in chunks.
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

CHUNK_LOGITS = {"cpu": 2**23, "cuda": 2**27}
"""Logits that are held at once: on a CPU few enough to stay near its caches."""


@dataclass(frozen=True)
class Head:
    """What a model does after its last hidden state."""

    module: nn.Module
    """The projection onto the vocabulary, its bias included."""
    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits of ``hidden``: (positions, width) to (positions, vocabulary), float32."""
        logits: Tensor = self.module(hidden)
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
    """int64, the most probable token; where asked for greedy flags only, the target or -1."""


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
        if _same(head(hidden), wanted):
            return head
    return None


def _candidates(module: nn.Module, config: Any) -> Iterator[Head]:
    """Forms of the logits in the architectures of transformers, the particular ones first."""
    text = config.get_text_config()
    if cap := getattr(text, "final_logit_softcapping", None):  # Gemma 2 and 3
        yield Head(module, softcap=float(cap))
    if scale := getattr(text, "logit_scale", None):  # Cohere
        yield Head(module, scale=float(scale))
    if divisor := getattr(text, "logits_scaling", None):  # Granite
        yield Head(module, scale=1.0 / float(divisor))
    yield Head(module)


def _same(found: Tensor, wanted: Tensor) -> bool:
    """Equal up to rounding in the model's dtype; NaN equals NaN, so that broken models pass."""
    if found.shape != wanted.shape:
        return False
    tolerance = 1e-4 if wanted.dtype == torch.float32 else 1e-2
    reference = wanted.float().to(found.device)
    scale = float(reference.abs().nan_to_num(0.0, 0.0, 0.0).max())
    return torch.allclose(found, reference, rtol=0.0, atol=scale * tolerance, equal_nan=True)


def score_positions(
    head: Head,
    hidden: Tensor,
    targets: Tensor,
    rows: Tensor | None = None,
    *,
    greedy_only: bool = False,
) -> TokenScores:
    """Log-probabilities of target tokens, by log-sum-exp minus the target's logit.

    Args:
        head: from :func:`find_head`.
        hidden: (positions, width), the hidden states that are read.
        targets: (tokens,), what each reading predicts.
        rows: (tokens,), nondecreasing, on the CPU: which row of ``hidden`` predicts each target;
            by default one target a row.
        greedy_only: leave ``top1`` at -1 where the target is not the most probable token, which
            saves a search through the vocabulary.
    """
    return _score_chunks(head, hidden, targets, rows, greedy_only)


def score_logits(logits: Tensor, targets: Tensor, rows: Tensor | None = None) -> TokenScores:
    """The same from logits, (positions, vocabulary), for models without a :class:`Head`."""
    return _score_chunks(_float_copy, logits, targets, rows, greedy_only=False)


def _float_copy(logits: Tensor) -> Tensor:
    return logits.to(torch.float32, copy=True)


def _score_chunks(
    project: Callable[[Tensor], Tensor],
    inputs: Tensor,
    targets: Tensor,
    rows: Tensor | None,
    greedy_only: bool,
) -> TokenScores:
    if rows is None:
        rows = torch.arange(len(inputs))
    width = getattr(getattr(project, "module", None), "out_features", inputs.shape[-1])
    step = max(1, CHUNK_LOGITS.get(inputs.device.type, CHUNK_LOGITS["cuda"]) // int(width))
    edges = torch.searchsorted(rows, torch.arange(0, len(inputs) + step, step)).tolist()
    chunks = []
    for index, start in enumerate(range(0, len(inputs), step)):
        span = slice(edges[index], edges[index + 1])
        logits = project(inputs[start : start + step])
        chunks.append(_score_chunk(logits, targets[span], rows[span] - start, greedy_only))
    return TokenScores(
        torch.cat([chunk.logprob for chunk in chunks]), torch.cat([chunk.top1 for chunk in chunks])
    )


def _score_chunk(logits: Tensor, targets: Tensor, rows: Tensor, greedy_only: bool) -> TokenScores:
    """Scores of one chunk; ``logits`` is overwritten."""
    targets, rows = targets.to(logits.device), rows.to(logits.device)
    chosen = logits[rows, targets]
    if greedy_only:
        largest = logits.amax(-1)
        top1 = torch.full_like(targets, -1)
        # A target that ties with another token is greedy only if it comes first, as for argmax.
        maybe = (chosen >= largest[rows]).nonzero().squeeze(-1)
        if len(maybe):
            top1[maybe] = logits[rows[maybe]].argmax(-1)
    else:
        largest, top = logits.max(-1)
        top1 = top[rows]
    total = logits.sub_(largest.unsqueeze(-1)).exp_().sum(-1)
    normalizer = largest.double() + total.double().log()
    return TokenScores(chosen.double() - normalizer[rows], top1)
