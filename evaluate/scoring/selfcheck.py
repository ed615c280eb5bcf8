"""Try each way of scoring on a handful of the run's own requests before trusting it.

Architectures differ in what they make of a ready-made mask, of position ids and of a cache, and
some ignore them without a word. So the first requests are scored both ways: by the engine, and
one by one through the model's ordinary forward pass.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch

from prunescope.evaluate.scoring.packed import Score
from prunescope.evaluate.scoring.trees import Inputs, Request

__all__ = ["pick_sample", "reference_scores", "tolerance", "worst_excess"]

SPOTS = 4
"""Places in the sorted inputs that the sample is taken from."""
NEIGHBOURS = 3
"""Inputs at each place: neighbours share prefixes, which is what has to be checked."""


def pick_sample(requests: Sequence[Request]) -> list[Request]:
    """At most a dozen requests: the longest, the shortest and some between, with neighbours."""
    inputs = Inputs(requests)
    lengths = sorted(range(len(inputs)), key=lambda i: len(inputs.tokens[i]))
    spots = {lengths[round(part * (len(lengths) - 1) / (SPOTS - 1))] for part in range(SPOTS)}
    # A small run is not to be scored twice.
    neighbours = NEIGHBOURS if len(inputs) >= 10 * SPOTS * NEIGHBOURS else 1
    chosen: set[int] = set()
    for spot in spots:
        first = min(max(spot - neighbours // 2, 0), max(len(inputs) - neighbours, 0))
        chosen.update(range(first, min(first + neighbours, len(inputs))))
    return [inputs.requests[i][0] for i in sorted(chosen)]


@torch.inference_mode()
def reference_scores(
    model: Any, requests: Sequence[Request], device: torch.device
) -> dict[int, Score]:
    """Scores of requests one by one, without a mask, positions or cache of ours."""
    few_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
    scores: dict[int, Score] = {}
    for request in requests:
        count = len(request.targets)
        ids = torch.tensor([request.input], device=device)
        extra = {"logits_to_keep": count} if few_logits else {}
        logits = model(input_ids=ids, use_cache=False, **extra).logits[0, -count:]
        logprobs = logits.double().log_softmax(-1)
        targets = torch.tensor(request.targets, device=logits.device)
        total = float(logprobs.gather(1, targets.unsqueeze(1)).sum())
        scores[request.index] = (total, bool((logits.argmax(-1) == targets).all()))
    return scores


def tolerance(dtype: torch.dtype, targets: int) -> float:
    """Difference in nats that rounding explains, over ``targets`` predicted tokens.

    Rounding errors of single tokens are independent, so their sum grows as a square root. In
    bfloat16 two orders of summing gave a real model's token up to 20 epsilons of difference.
    """
    return max(1e-3, 48 * torch.finfo(dtype).eps * math.sqrt(targets))


def worst_excess(
    found: dict[int, Score],
    wanted: dict[int, Score],
    requests: Sequence[Request],
    dtype: torch.dtype,
) -> float:
    """The largest difference in nats among those beyond the tolerance; 0.0 where there is none.

    Infinity where one way gives a number and the other does not.
    """
    worst = 0.0
    for request in requests:
        left, right = found[request.index][0], wanted[request.index][0]
        if math.isfinite(left) and math.isfinite(right):
            difference = abs(left - right)
            if difference > tolerance(dtype, len(request.targets)):
                worst = max(worst, difference)
        elif str(left) != str(right):
            worst = math.inf
    return worst
