"""Token-level KL divergence from an original, against brute force in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.families import family_model
from support.models import CORPUS, prune_magnitude, tiny_model
from support.scoring import ready
from transformers import PreTrainedModel

from prunescope.errors import SettingError
from prunescope.evaluate import divergence
from prunescope.evaluate.divergence import (
    KeptReference,
    LoadedReference,
    TokenDivergence,
    TopkKeeper,
    bucket_divergence,
    full_divergence,
    statistics,
    top_buckets,
)
from prunescope.evaluate.loading import LoadedModel
from prunescope.evaluate.perplexity import measure_perplexity
from prunescope.evaluate.progress import SilentProgress
from prunescope.records import TOPK_ARRAYS

TEXT = "\n\n".join(CORPUS * 4)
SEQLEN = 48


def watch(loaded: LoadedModel, *watchers: Any, **changes: Any) -> None:
    settings: dict[str, Any] = {"seqlen": SEQLEN, "nsamples": None, "batch_size": 2, **changes}
    measure_perplexity(
        loaded, TEXT, corpus="c", progress=SilentProgress(), watchers=watchers, **settings
    )


def log_probabilities(model: PreTrainedModel, loaded: LoadedModel) -> np.ndarray:
    """(windows, SEQLEN - 1, vocabulary) in float64, by the model's own forward pass."""
    tokens = loaded.tokenizer(TEXT)["input_ids"]
    windows = torch.tensor(tokens[: len(tokens) // SEQLEN * SEQLEN]).view(-1, SEQLEN)
    model = model.double()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the grouped kernels know no float64
    with torch.no_grad():
        found = torch.cat([model(w[None]).logits[:, :-1].log_softmax(-1) for w in windows])
    model.float()
    return found.numpy()


def brute_force(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL token by token, word by word."""
    windows, positions, vocabulary = p.shape
    found = np.zeros((windows, positions))
    for w in range(windows):
        for t in range(positions):
            found[w, t] = math.fsum(
                math.exp(p[w, t, v]) * (p[w, t, v] - q[w, t, v]) for v in range(vocabulary)
            )
    return found


def pair(family: str = "llama") -> tuple[LoadedModel, LoadedModel]:
    return ready(family_model(family)), ready(prune_magnitude(family_model(family), 0.4))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2"])
def test_full_divergence_equals_a_float64_loop(family: str) -> None:
    original, pruned = pair(family)
    watcher = LoadedReference(original)
    watch(pruned, watcher)
    found = watcher.result()
    p, q = (log_probabilities(m.model, m) for m in (original, pruned))
    assert found.kl == pytest.approx(brute_force(p, q), abs=2e-5, rel=1e-4)
    assert float(found.kl.mean()) == pytest.approx(brute_force(p, q).mean(), rel=1e-5)
    assert found.same_top.tolist() == (p.argmax(-1) == q.argmax(-1)).tolist()
    assert 0 < found.same_top.mean() < 1


def test_the_original_itself_has_no_divergence() -> None:
    loaded = ready(tiny_model())
    watcher = LoadedReference(loaded)
    watch(loaded, watcher)
    assert watcher.result().kl.max() == pytest.approx(0.0, abs=1e-9)
    assert watcher.result().same_top.all()


@pytest.mark.parametrize("k", [1, 8, 384])
def test_kept_log_probabilities_give_the_divergence_over_k_plus_one_buckets(k: int) -> None:
    original, pruned = pair()
    keeper = TopkKeeper(k)
    watch(original, keeper)
    watcher = KeptReference(keeper.arrays())
    watch(pruned, watcher)
    found = watcher.result().kl
    p, q = (np.exp(log_probabilities(m.model, m)) for m in (original, pruned))
    order = np.argsort(-p, axis=-1)[..., :k]
    wanted = np.zeros(found.shape)
    for place in np.ndindex(*found.shape):
        a, b = p[place][order[place]], q[place][order[place]]
        rest = math.fsum(np.delete(p[place], order[place]))
        rest_b = math.fsum(np.delete(q[place], order[place]))
        wanted[place] = math.fsum(a * np.log(a / b))
        if rest > 0:
            wanted[place] += rest * math.log(rest / rest_b)
    assert found == pytest.approx(wanted, abs=2e-5, rel=1e-4)
    full = brute_force(np.log(p), np.log(q))
    assert (found <= full + 2e-5).all()
    if k == 384:
        assert found == pytest.approx(full, abs=2e-5, rel=1e-4)


def test_kept_arrays_are_those_that_the_record_promises() -> None:
    loaded = ready(tiny_model())
    keeper = TopkKeeper(5)
    watch(loaded, keeper)
    arrays = keeper.arrays()
    assert arrays.keys() == TOPK_ARRAYS.keys()
    windows = len(arrays["target"])
    for name, array in arrays.items():
        assert TOPK_ARRAYS[name].startswith(str(array.dtype))
        assert array.shape == (windows, SEQLEN - 1, *((5,) if name in ("token", "logprob") else ()))
    p = log_probabilities(loaded.model, loaded)
    assert arrays["logprob"] == pytest.approx(-np.sort(-p, axis=-1)[..., :5], abs=1e-4)
    together = np.exp(arrays["logprob"]).sum(-1) + np.exp(arrays["tail"])
    assert together == pytest.approx(np.ones_like(together), abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("most", [1, 5000, 2**22])
def test_batches_and_chunks_change_no_number(
    batch_size: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, pruned = pair()
    usual, other = LoadedReference(original), LoadedReference(original)
    watch(pruned, usual)
    monkeypatch.setitem(divergence.PAIR_LOGITS, "cpu", most)
    watch(pruned, other, batch_size=batch_size)
    assert other.result().kl == pytest.approx(usual.result().kl, abs=1e-5)


def test_a_batch_that_comes_again_in_pieces_counts_once() -> None:
    original, pruned = pair()
    once, twice = LoadedReference(original), LoadedReference(original)
    watch(pruned, once)
    failed: list[int] = []

    class Greedy:
        def see(self, first: int, windows: torch.Tensor, *_: Any) -> None:
            if len(windows) > 1 and not failed:
                failed.append(first)
                raise MemoryError

    watch(pruned, twice, Greedy(), batch_size=4)
    assert failed == [0]
    assert twice.result().kl == pytest.approx(once.result().kl, abs=1e-5)


LOGITS = st.lists(st.floats(-40, 40), min_size=3, max_size=12)


@settings(deadline=None, max_examples=200)
@given(LOGITS, st.data())
def test_any_logits_give_what_float64_gives(a: list[float], data: st.DataObject) -> None:
    b = data.draw(st.lists(st.floats(-40, 40), min_size=len(a), max_size=len(a)))
    k = data.draw(st.integers(1, len(a)))
    x, y = torch.tensor([a]), torch.tensor([b])
    p, q = (z.double().log_softmax(-1) for z in (x, y))
    wanted = float((p.exp() * (p - q)).sum())
    full, _ = full_divergence(x.clone(), y.clone())
    assert float(full) == pytest.approx(wanted, abs=1e-4, rel=1e-5)
    lower, _ = bucket_divergence(*top_buckets(x, k), y)
    assert float(lower) <= wanted + 1e-4
    assert float(lower) >= 0


def test_tokens_of_probability_zero() -> None:
    none = -math.inf
    p = torch.tensor([[0.0, 0.0, none], [0.0, 0.0, 0.0], [none, none, 1.0]])
    q = torch.tensor([[0.0, 0.0, 5.0], [0.0, 0.0, none], [0.0, 0.0, 0.0]])
    kl, _ = full_divergence(p.clone(), q.clone())
    assert float(kl[0]) == pytest.approx(math.log((2 + math.exp(5)) / 2), rel=1e-6)
    assert float(kl[1]) == math.inf
    assert float(kl[2]) == pytest.approx(math.log(3), rel=1e-6)
    buckets, _ = bucket_divergence(*top_buckets(p, 3), q)
    assert buckets.tolist() == pytest.approx(kl.tolist(), rel=1e-6)


def test_statistics_equal_numpys_and_nan_stays_nan() -> None:
    rng = np.random.default_rng(0)
    kl, same = rng.gamma(1.0, 0.3, (7, 31)), rng.random((7, 31)) < 0.8
    found = statistics(TokenDivergence(kl, same))
    assert found.mean == pytest.approx(np.mean(kl))
    assert found.stderr_tokens == pytest.approx(np.std(kl, ddof=1) / math.sqrt(217))
    assert found.stderr_windows == pytest.approx(np.std(kl.mean(1), ddof=1) / math.sqrt(7))
    assert found.percentiles["99.9"] == pytest.approx(np.quantile(kl, 0.999))
    assert (found.percentiles["0"], found.percentiles["100"]) == (kl.min(), kl.max())
    assert found.same_top_stderr == pytest.approx(np.std(same) / math.sqrt(216))
    kl[3, 2] = math.nan
    broken = statistics(TokenDivergence(kl, same))
    assert math.isnan(broken.mean)
    assert math.isnan(broken.percentiles["50"])
    assert statistics(TokenDivergence(kl[:1, :1], same[:1, :1])).stderr_windows is None


def test_other_vocabularies_and_other_tokens_are_told() -> None:
    loaded = ready(tiny_model())
    other = ready(tiny_model(vocab_size=500))
    with pytest.raises(SettingError, match="500 tokens, this model 384"):
        watch(loaded, LoadedReference(other))
    with pytest.raises(SettingError, match="--keep-topk 385"):
        watch(loaded, TopkKeeper(385))
    keeper = TopkKeeper(2)
    watch(loaded, keeper)
    kept = keeper.arrays()
    kept["target"] = (kept["target"] + 1) % 384
    with pytest.raises(SettingError, match="other tokens"):
        watch(loaded, KeptReference(kept))
