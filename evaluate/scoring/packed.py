"""Score requests as packed rows: trees side by side in one sequence, told apart by the mask."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from prunescope.evaluate.scoring.blocks import BlockedAttention, cut_blocks
from prunescope.evaluate.scoring.masks import MaskForm, RowInputs, row_inputs
from prunescope.evaluate.scoring.projection import Head, last_hidden_state, score_positions
from prunescope.evaluate.scoring.trees import Group, Inputs, Layout, Row, lay_out, plan

__all__ = [
    "BatchScores",
    "PackedEngine",
    "Prefix",
    "Score",
    "sum_readings",
]

Score = tuple[float, bool]
"""Loglikelihood in nats, and whether the continuation is the model's greedy one."""
Prefix = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, (1, heads, length, width)."""

WIDTHS = (128, 192, 256, 384, 512, 768, 1024)
"""Row widths to choose among, tokens."""
SAMPLE = 4000
"""Inputs that the width is chosen on."""


@dataclass(frozen=True)
class BatchScores:
    """What one pass through the model gave."""

    scores: dict[int, Score]
    """Request index -> score."""
    tokens: int
    """Tokens that were computed, padding not counted."""


class PackedEngine:
    """Scores through a model that takes a ready-made attention mask and position ids."""

    name = "packed rows"

    def __init__(self, model: Any, head: Head, form: MaskForm, device: torch.device) -> None:
        self._model = model
        self._head = head
        self._form = form
        self._device = device
        self._dtype: torch.dtype = model.dtype
        self._attention_cost = _attention_cost(model)
        # Many small attention calls are cheap on a CPU; a GPU would rather pad a few large ones.
        self._in_blocks = device.type == "cpu" and model.config._attn_implementation == "sdpa"

    def score(
        self, inputs: Inputs, budget: int, known: Collection[int] = ()
    ) -> Iterator[BatchScores]:
        """Scores, a batch of about ``budget`` tokens at a time, longest rows first.

        Args:
            inputs: what is to be scored.
            budget: tokens a batch.
            known: requests that take part in planning alone; a batch of them is passed over.
        """
        width = budget if self._in_blocks else min(self._choose_width(inputs, budget), budget)
        for group in plan(inputs, width, sequential=self._in_blocks):
            past: Prefix | None = None
            prefix_tokens = len(group.prefix)
            for rows in _batches(group.rows, 1 if self._in_blocks else budget):
                if known and all(request in known for request in _readers(inputs, rows)):
                    continue
                if prefix_tokens:
                    past = self._compute_prefix(group.prefix)
                scores = self._score_rows(inputs, group, rows, past)
                tokens = sum(row.size for row in rows) + prefix_tokens
                prefix_tokens = 0
                yield BatchScores(scores, tokens)

    def _choose_width(self, inputs: Inputs, budget: int) -> int:
        """The width at which planning promises the least work."""
        if len(inputs) > SAMPLE:
            inputs = Inputs(chain.from_iterable(inputs.requests[:SAMPLE]))
        costs = {width: self._cost(inputs, width, budget) for width in WIDTHS}
        return min(costs, key=lambda width: costs[width])

    def _cost(self, inputs: Inputs, width: int, budget: int) -> float:
        """Work in units of one token through the linear layers."""
        cost = 0.0
        for group in plan(inputs, width):
            prefix = len(group.prefix)
            cost += prefix * (1 + self._attention_cost * prefix)
            for rows in _batches(group.rows, budget):
                size = rows[0].size
                cost += len(rows) * size * (1 + self._attention_cost * (prefix + size))
        return cost

    @torch.inference_mode()
    def _compute_prefix(self, prefix: tuple[int, ...]) -> Prefix:
        from transformers import DynamicCache

        layout = Layout(list(prefix), list(range(len(prefix))), [(0, len(prefix), [])])
        inputs = row_inputs([layout], 0, self._form, self._device, self._dtype)
        cache = DynamicCache()
        last_hidden_state(self._model, **inputs.arguments(), past_key_values=cache, use_cache=True)
        return [(layer.keys, layer.values) for layer in cache.layers]

    @torch.inference_mode()
    def _score_rows(
        self, inputs: Inputs, group: Group, rows: Sequence[Row], past: Prefix | None
    ) -> dict[int, Score]:
        offset = len(group.prefix)
        layouts = [lay_out(inputs, row, offset) for row in rows]
        batch = row_inputs(layouts, offset, self._form, self._device, self._dtype)
        with self._attention(layouts[0], offset, batch) if self._in_blocks else nullcontext():
            hidden = last_hidden_state(
                self._model,
                **batch.arguments(),
                past_key_values=_expanded(past, len(rows)),
                use_cache=past is not None,
            )
        width = hidden.shape[1]
        readings = [
            (i * width + reading.node, reading.target, reading.request)
            for i, layout in enumerate(layouts)
            for reading in layout.readings
        ]
        return sum_readings(self._head, hidden.flatten(0, 1), readings)

    def _attention(self, layout: Layout, offset: int, batch: RowInputs) -> BlockedAttention:
        return BlockedAttention(cut_blocks(layout, offset), offset, batch.masks())


def sum_readings(
    head: Head, hidden: Tensor, readings: Sequence[tuple[int, int, int]]
) -> dict[int, Score]:
    """Add up the log-probabilities of each request's targets.

    Args:
        head: from hidden states to logits.
        hidden: (positions, width).
        readings: (position, target token, request), sorted by position.
    """
    places, targets, requests = zip(*readings, strict=True)
    positions, rows = torch.unique_consecutive(torch.tensor(places), return_inverse=True)
    wanted = torch.tensor(targets)
    scores = score_positions(head, hidden[positions.to(hidden.device)], wanted, rows)
    logprobs = scores.logprob.tolist()
    greedy = (scores.top1.cpu() == wanted).tolist()
    sums: dict[int, Score] = {}
    for request, logprob, best in zip(requests, logprobs, greedy, strict=True):
        total, all_best = sums.get(request, (0.0, True))
        sums[request] = (total + logprob, all_best and best)
    return sums


def _readers(inputs: Inputs, rows: Sequence[Row]) -> Iterator[int]:
    """The requests that the rows answer."""
    for row in rows:
        for member in row.members:
            yield from (request.index for request in inputs.requests[member])


def _batches(rows: Sequence[Row], budget: int) -> Iterator[Sequence[Row]]:
    start = 0
    while start < len(rows):
        count = max(1, budget // rows[start].size)
        yield rows[start : start + count]
        start += count


def _expanded(past: Prefix | None, rows: int) -> Any:
    """A cache that holds the prefix for each row; the model may add to it."""
    from transformers import DynamicCache

    if past is None:
        return None
    cache = DynamicCache()
    for i, (keys, values) in enumerate(past):
        cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), i)
    return cache


def _attention_cost(model: Any) -> float:
    """Work of looking at one more key, relative to a token's work in the linear layers.

    The multiplications alone would give 2; on a CPU a softmax over them makes it 3.
    """
    text = model.config.get_text_config()
    layers = getattr(text, "num_hidden_layers", 1)
    embeddings = {id(p) for p in model.get_input_embeddings().parameters()}
    body = sum(p.numel() for p in model.base_model.parameters() if id(p) not in embeddings)
    return float(3 * layers * getattr(text, "hidden_size", 1) / max(body, 1))
