"""Score requests as branches off a cached prefix, for models that take no mask of ours.

The prefixes of several clusters go through the model together, padded on the left; then each
branch goes through with a copy of its prefix's keys and values. Only ordinary two-dimensional
attention masks are used, so that position biases (ALiBi) come out right as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from prunescope.evaluate.scoring.packed import BatchScores, Prefix, Score, sum_readings
from prunescope.evaluate.scoring.projection import Head, last_hidden_state
from prunescope.evaluate.scoring.trees import Cluster, Inputs, find_clusters

__all__ = ["BranchedEngine"]

CACHE_SHARE = 8
"""Cached tokens that are copied for the branches of a pass, in token budgets."""


class BranchedEngine:
    """Scores through a model that takes a two-dimensional mask and a cache."""

    name = "cached prefixes"

    def __init__(self, model: Any, head: Head, device: torch.device) -> None:
        self._model = model
        self._head = head
        self._device = device
        self._takes_positions = (
            "position_ids" in inspect.signature(model.base_model.forward).parameters
        )

    def score(
        self, inputs: Inputs, budget: int, known: Collection[int] = ()
    ) -> Iterator[BatchScores]:
        """Scores, a batch of about ``budget`` tokens at a time, longest prefixes first.

        Args:
            inputs: what is to be scored.
            budget: tokens a batch.
            known: requests that take part in planning alone; a batch of them is passed over.
        """
        answered = [all(r.index in known for r in readers) for readers in inputs.requests]
        clusters = sorted(find_clusters(inputs), key=lambda cluster: -cluster.prefix)
        for bare, group in groupby(clusters, key=lambda cluster: cluster.prefix == 0):
            if bare:
                branches = [(i, 0, 0) for cluster in group for i in cluster.members]
                yield from self._score_branches(inputs, branches, None, budget, answered)
            else:
                for batch in _cluster_batches(list(group), budget):
                    if not all(answered[i] for cluster in batch for i in cluster.members):
                        yield from self._score_clusters(inputs, batch, budget, answered)

    def _score_clusters(
        self,
        inputs: Inputs,
        clusters: Sequence[Cluster],
        budget: int,
        answered: Sequence[bool],
    ) -> Iterator[BatchScores]:
        prefixes = [inputs.tokens[cluster.members[0]][: cluster.prefix] for cluster in clusters]
        past = self._compute_prefixes(prefixes)
        branches = [
            (member, row, cluster.prefix)
            for row, cluster in enumerate(clusters)
            for member in cluster.members
        ]
        computed = sum(len(prefix) for prefix in prefixes)
        for scores in self._score_branches(inputs, branches, past, budget, answered):
            yield BatchScores(scores.scores, scores.tokens + computed)
            computed = 0

    @torch.inference_mode()
    def _compute_prefixes(self, prefixes: Sequence[Sequence[int]]) -> Prefix:
        from transformers import DynamicCache

        width = max(len(prefix) for prefix in prefixes)
        ids = torch.zeros(len(prefixes), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prefix in enumerate(prefixes):
            ids[row, width - len(prefix) :] = torch.tensor(prefix)
            mask[row, width - len(prefix) :] = 1
        cache = DynamicCache()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        self._forward(ids, mask, positions, past_key_values=cache, use_cache=True)
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _score_branches(
        self,
        inputs: Inputs,
        branches: Sequence[tuple[int, int, int]],
        past: Prefix | None,
        budget: int,
        answered: Sequence[bool],
    ) -> Iterator[BatchScores]:
        """Branches are (input, row of the cache, length of the prefix)."""
        cached = past[0][0].shape[-2] if past else 0
        ordered = sorted(branches, key=lambda branch: branch[2] - len(inputs.tokens[branch[0]]))
        start = 0
        while start < len(ordered):
            width = len(inputs.tokens[ordered[start][0]]) - ordered[start][2]
            most = min(budget // width, CACHE_SHARE * budget // (cached + width))
            part = ordered[start : start + max(1, most)]
            start += len(part)
            if all(answered[i] for i, _, _ in part):
                continue
            scores = self._score_batch(inputs, part, past, cached, width)
            tokens = sum(len(inputs.tokens[i]) - prefix for i, _, prefix in part)
            yield BatchScores(scores, tokens)

    @torch.inference_mode()
    def _score_batch(
        self,
        inputs: Inputs,
        branches: Sequence[tuple[int, int, int]],
        past: Prefix | None,
        cached: int,
        width: int,
    ) -> dict[int, Score]:
        ids = torch.zeros(len(branches), width, dtype=torch.long)
        mask = torch.zeros(len(branches), cached + width, dtype=torch.long)
        positions = torch.zeros_like(ids)
        readings: list[tuple[int, int, int]] = []
        for row, (member, _, prefix) in enumerate(branches):
            tokens = inputs.tokens[member][prefix:]
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, cached - prefix : cached + len(tokens)] = 1
            positions[row] = prefix + torch.arange(width)
            for request in inputs.requests[member]:
                first = row * width + request.start - prefix
                readings.extend(
                    (first + step, target, request.index)
                    for step, target in enumerate(request.targets)
                )
        # Padding may not run past the model's last position.
        positions.clamp_(max=max(len(inputs.tokens[member]) for member, _, _ in branches) - 1)
        extra: dict[str, Any] = {"use_cache": False}
        if past is not None:
            rows = torch.tensor([row for _, row, _ in branches], device=self._device)
            extra = {"past_key_values": _selected(past, rows), "use_cache": True}
        hidden = self._forward(ids, mask, positions, **extra)
        return sum_readings(self._head, hidden.flatten(0, 1), sorted(readings))

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, **extra: Any) -> Tensor:
        if self._takes_positions:
            extra["position_ids"] = positions.to(self._device)
        return last_hidden_state(
            self._model,
            input_ids=ids.to(self._device),
            attention_mask=mask.to(self._device),
            **extra,
        )


def _cluster_batches(clusters: Sequence[Cluster], budget: int) -> Iterator[Sequence[Cluster]]:
    start = 0
    while start < len(clusters):
        count = max(1, budget // clusters[start].prefix)
        yield clusters[start : start + count]
        start += count


def _selected(past: Prefix, rows: Tensor) -> Any:
    """A cache with the given rows of ``past``; the model may add to it."""
    from transformers import DynamicCache

    cache = DynamicCache()
    for i, (keys, values) in enumerate(past):
        places = rows.to(keys.device)
        cache.update(keys.index_select(0, places), values.index_select(0, places), i)
    return cache
