"""What the scoring tests share: models ready to score, lm-eval's own backend, requests."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel

from prunescope.evaluate.loading import LoadedModel
from support.models import VOCAB_SIZE, tiny_tokenizer

TokenPair = tuple[list[int], list[int]]
"""Context and continuation."""


def ready(model: PreTrainedModel, max_length: int = 256, tokenizer: Any = None) -> LoadedModel:
    """A tiny model as the loader hands it on."""
    return LoadedModel(
        model=model,
        tokenizer=tokenizer or tiny_tokenizer(),
        device=torch.device("cpu"),
        dtype=torch.float32,
        max_length=max_length,
    )


def lm_eval_backend(loaded: LoadedModel, **settings: Any) -> HFLM:
    """lm-eval's own Hugging Face backend over the same model."""
    return HFLM(
        pretrained=loaded.model,
        tokenizer=loaded.tokenizer,
        backend="causal",
        batch_size=4,
        max_length=loaded.max_length,
        **settings,
    )


def lm_eval_token_scores(loaded: LoadedModel, pairs: Sequence[TokenPair]) -> list[Any]:
    """lm-eval's scores of token pairs, each request in a forward pass of its own.

    Its cache for one-token continuations is off: it reads the wrong positions where two requests
    are one sequence of tokens that is split in two places.
    """
    backend = lm_eval_backend(loaded, logits_cache=False)
    requests = [(("", ""), list(context), list(tokens)) for context, tokens in pairs]
    return backend._loglikelihood_tokens(requests, disable_tqdm=True)  # type: ignore[no-any-return]


def text_requests(pairs: Sequence[tuple[str, str]]) -> list[Instance]:
    """lm-eval's instances for pairs of context and continuation."""
    return [
        Instance("loglikelihood", {}, (context, continuation), i)
        for i, (context, continuation) in enumerate(pairs)
    ]


def random_tokens(rng: random.Random, count: int) -> list[int]:
    """Ordinary tokens of the tiny tokenizer."""
    return [rng.randrange(3, VOCAB_SIZE) for _ in range(count)]


def exam(
    seed: int, *, prompt: int, documents: int, choices: int = 3, longest: int = 20
) -> list[TokenPair]:
    """Requests like a multiple-choice task's: a common prompt, then documents with choices."""
    rng = random.Random(seed)
    shared = random_tokens(rng, prompt)
    pairs: list[TokenPair] = []
    for _ in range(documents):
        context = shared + random_tokens(rng, rng.randint(1, longest))
        pairs += [
            (context, random_tokens(rng, rng.randint(1, longest // 2))) for _ in range(choices)
        ]
    return pairs
