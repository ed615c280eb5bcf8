"""Packed rows or cached prefixes: which scores prefix trees faster, on several architectures.

    python bench/engines.py                     # about a minute on two idle cores
    python bench/engines.py --documents 40 --rounds 5

Models of about 40 million random parameters in the shape of well-known families score the same
documents of four choices each (10 to 50 shared tokens, then 2 to 25 of each choice), and the same
behind a prompt of 400 tokens; speed depends on shapes alone. The engines take turns, and the best
of the rounds counts.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

VOCABULARY = 32_000
WIDTH, LAYERS, HEADS = 512, 8, 8
_LLAMA_LIKE = {
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS // 2,
    "max_position_embeddings": 2048,
}
_GPT2 = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 2048}
_OPT = {
    "hidden_size": WIDTH,
    "ffn_dim": 4 * WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "word_embed_proj_dim": WIDTH,
    "max_position_embeddings": 2048,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": _LLAMA_LIKE,
    "mistral": {**_LLAMA_LIKE, "sliding_window": 256},
    "gemma2": {**_LLAMA_LIKE, "head_dim": WIDTH // HEADS, "sliding_window": 256},
    "gpt2": _GPT2,
    "opt": _OPT,
    "bloom": {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS},
}
CONTEXT, CHOICE, CHOICES, PROMPT = (10, 50), (2, 25), 4, 400
BUDGET = 1024

Pair = tuple[list[int], list[int]]


def make_pairs(documents: int, prompt: int) -> list[Pair]:
    """Contexts and continuations, as token ids."""
    rng = random.Random(0)

    def draw(count: int) -> list[int]:
        return [rng.randrange(3, VOCABULARY) for _ in range(count)]

    shared = draw(prompt)
    pairs: list[Pair] = []
    for _ in range(documents):
        context = shared + draw(rng.randint(*CONTEXT))
        pairs += [(context, draw(rng.randint(*CHOICE))) for _ in range(CHOICES)]
    return pairs


def make_model(family: str) -> Any:
    """A model of random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=1, **SHAPES[family]
    )
    return AutoModelForCausalLM.from_config(config).eval()


def contenders(family: str) -> dict[str, Callable[[Sequence[Pair]], None]]:
    """Ways to score, each a function of the pairs."""
    import torch

    from prunescope.evaluate.scoring.branched import BranchedEngine
    from prunescope.evaluate.scoring.masks import find_mask_form
    from prunescope.evaluate.scoring.packed import PackedEngine
    from prunescope.evaluate.scoring.projection import find_head
    from prunescope.evaluate.scoring.trees import Inputs, Request

    model, cpu = make_model(family), torch.device("cpu")
    head, form = find_head(model, torch.tensor([[5, 6, 7]])), find_mask_form(model.config)
    assert head is not None
    assert form is not None

    def by(engine: Any) -> Callable[[Sequence[Pair]], None]:
        def score(pairs: Sequence[Pair]) -> None:
            requests = [Request.encoded(i, *pair, 2048) for i, pair in enumerate(pairs)]
            for _ in engine.score(Inputs(requests), BUDGET):
                pass

        return score

    found = {"cached prefixes": by(BranchedEngine(model, head, cpu))}
    if family != "bloom":  # it refuses ready-made masks
        found["packed rows"] = by(PackedEngine(model, head, form, cpu))
    return found


def best_seconds(
    ways: dict[str, Callable[[Sequence[Pair]], None]], pairs: Sequence[Pair], rounds: int
) -> dict[str, float]:
    """Best time of each way; they take turns."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, score in ways.items():
            began = time.perf_counter()
            score(pairs)
            best[name] = min(best[name], time.perf_counter() - began)
    return best


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--documents", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    tests = {"documents": 0, f"documents behind {PROMPT} tokens": PROMPT}
    print(f"{'':10}{'':32}{'packed rows':>14}{'cached prefixes':>18}{'packed is':>16}")
    for family in SHAPES:
        ways = contenders(family)
        for title, prompt in tests.items():
            found = best_seconds(ways, make_pairs(options.documents, prompt), options.rounds)
            packed, cached = found.get("packed rows"), found["cached prefixes"]
            left = f"{family:10}{title:32}"
            if packed is None:
                print(f"{left}{'refused':>14}{cached:16.2f} s")
            else:
                print(f"{left}{packed:12.2f} s{cached:16.2f} s{cached / packed:9.2f} x faster")


if __name__ == "__main__":
    main()
