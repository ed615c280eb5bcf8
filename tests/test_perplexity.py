"""Perplexity is that of a ten-line loop in float64, at a fraction of the memory."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from support.families import FAMILIES, family_model
from support.models import CORPUS, tiny_model, tiny_tokenizer
from support.scoring import ready
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel

from prunescope.errors import SettingError
from prunescope.evaluate.loading import LoadedModel
from prunescope.evaluate.perplexity import (
    PerplexityMeasurement,
    default_seqlen,
    measure_perplexity,
)
from prunescope.evaluate.progress import SilentProgress
from prunescope.evaluate.scoring import projection
from prunescope.records import TOKENS_ARRAYS

TEXT = "\n\n".join(CORPUS * 12)


class Listening(SilentProgress):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[Any] = []

    def start(self, stage: Any, description: str, total: float | None) -> None:
        self.heard.append((stage, description, total))

    def advance(self, amount: float) -> None:
        self.heard.append(amount)

    def finish(self) -> None:
        self.heard.append("finish")


def measure(loaded: LoadedModel, text: str = TEXT, **settings: Any) -> PerplexityMeasurement:
    defaults: dict[str, Any] = {
        "corpus": "wikitext2",
        "seqlen": 64,
        "nsamples": None,
        "batch_size": "auto",
        "progress": SilentProgress(),
    }
    return measure_perplexity(loaded, text, **{**defaults, **settings})


def reference(model: PreTrainedModel, tokens: list[int], seqlen: int) -> tuple[float, np.ndarray]:
    """The loop that the pruning papers use, in float64."""
    model = model.double()
    model.set_experts_implementation("eager")  # the grouped kernels know no float64
    losses = []
    logprobs = []
    for start in range(0, len(tokens) - seqlen + 1, seqlen):
        window = torch.tensor([tokens[start : start + seqlen]])
        with torch.no_grad():
            logits = model(window).logits[0, :-1]
        losses.append(float(torch.nn.functional.cross_entropy(logits, window[0, 1:])))
        logprobs.append(logits.log_softmax(-1).gather(1, window[0, 1:, None])[:, 0].numpy())
    model.float()
    return math.exp(sum(losses) / len(losses)), np.array(logprobs)


@pytest.mark.parametrize("family", FAMILIES)
def test_perplexity_equals_a_float64_loop_for_every_family(family: str) -> None:
    loaded = ready(family_model(family))
    text = TEXT[:1500]
    found = measure(loaded, text)
    wanted, _ = reference(loaded.model, loaded.tokenizer(text)["input_ids"], 64)
    assert found.result.perplexity == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("batch_size", ["auto", 1, 3])
@pytest.mark.parametrize("chunk", [1, 2**15, 2**23])
def test_batches_and_chunks_change_no_number(
    batch_size: Any, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(projection.PART_LOGITS, "cpu", chunk)
    loaded = ready(tiny_model())
    found = measure(loaded, TEXT[:1500], seqlen=50, batch_size=batch_size)
    tokens = loaded.tokenizer(TEXT[:1500])["input_ids"]
    wanted, logprobs = reference(loaded.model, tokens, 50)
    assert found.result.perplexity == pytest.approx(wanted, rel=1e-6)
    assert found.arrays["logprob"] == pytest.approx(logprobs, abs=1e-4)


def test_large_vocabulary_is_as_exact_as_a_small_one() -> None:
    loaded = ready(tiny_model(vocab_size=50_000))
    found = measure(loaded, TEXT[:1500])
    wanted, _ = reference(loaded.model, loaded.tokenizer(TEXT[:1500])["input_ids"], 64)
    assert found.result.perplexity == pytest.approx(wanted, rel=1e-6)


def test_result_says_what_was_measured() -> None:
    loaded = ready(tiny_model())
    tokens = loaded.tokenizer(TEXT)["input_ids"]
    found = measure(loaded)
    result = found.result
    windows = len(tokens) // 64
    assert (result.corpus, result.seqlen, result.windows) == ("wikitext2", 64, windows)
    assert result.tokens == windows * 63
    assert result.corpus_tokens == len(tokens)
    assert result.mean_nll == pytest.approx(math.log(result.perplexity))
    nll = found.arrays["window_nll"]
    assert result.stderr_nll == pytest.approx(nll.std(ddof=1) / math.sqrt(windows))
    assert found.broken is None


def test_arrays_are_those_that_the_record_promises() -> None:
    loaded = ready(tiny_model())
    found = measure(loaded)
    windows = found.result.windows
    assert found.arrays.keys() == TOKENS_ARRAYS.keys()
    for name in ("logprob", "target", "top1"):
        assert found.arrays[name].shape == (windows, 63)
        assert TOKENS_ARRAYS[name].startswith(str(found.arrays[name].dtype))
    assert found.arrays["window_nll"].dtype == np.float64
    assert found.arrays["window_nll"] == pytest.approx(-found.arrays["logprob"].mean(axis=1))
    window = torch.tensor(loaded.tokenizer(TEXT)["input_ids"][64:128])
    assert found.arrays["target"][1].tolist() == window[1:].tolist()
    with torch.no_grad():
        top1 = loaded.model(window[None]).logits[0, :-1].argmax(-1)
    assert found.arrays["top1"][1].tolist() == top1.tolist()


def test_only_the_first_windows_are_scored_where_fewer_are_asked_for() -> None:
    loaded = ready(tiny_model())
    every, some = measure(loaded), measure(loaded, nsamples=3)
    assert some.result.windows == 3
    assert some.arrays["logprob"] == pytest.approx(every.arrays["logprob"][:3], abs=1e-6)
    assert measure(loaded, nsamples=10_000).result.windows == every.result.windows
    assert measure(loaded, nsamples=1).result.stderr_nll is None


def test_special_tokens_are_added_once_as_the_tokenizer_does_by_default() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    plain, with_bos = measure(ready(tiny_model())), measure(ready(tiny_model(), 256, tokenizer))
    assert with_bos.result.corpus_tokens == plain.result.corpus_tokens + 1
    assert with_bos.arrays["target"][0, 0] == tokenizer(TEXT)["input_ids"][1]


def test_progress_hears_of_each_window_and_the_terminal_of_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    progress = Listening()
    found = measure(ready(tiny_model()), batch_size=2, progress=progress, nsamples=5)
    assert progress.heard == [("perplexity", "wikitext2", 5), 2, 2, 1, "finish"]
    assert progress.said == []
    assert found.result.corpus_tokens > tiny_tokenizer().model_max_length
    assert capfd.readouterr() == ("", "")


def test_nan_finishes_and_names_the_first_window() -> None:
    loaded = ready(tiny_model())
    third = loaded.tokenizer(TEXT)["input_ids"][2 * 64 : 3 * 64]
    before = set(loaded.tokenizer(TEXT)["input_ids"][: 2 * 64])
    culprit = next(token for token in third[:-1] if token not in before)
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[culprit] = float("nan")
    found = measure(loaded)
    assert found.broken is not None
    assert found.broken.stage == "perplexity"
    assert found.broken.where == "wikitext2 window 2"
    assert found.broken.what == "NaN logits"
    assert math.isnan(found.result.perplexity)
    assert np.isfinite(found.arrays["logprob"][:2]).all()
    assert found.result.windows == len(loaded.tokenizer(TEXT)["input_ids"]) // 64


def test_infinite_loss_is_told_from_nan() -> None:
    loaded = ready(tiny_model())

    def forbid(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        target = loaded.tokenizer(TEXT)["input_ids"][1]
        logits[..., target] = float("-inf")
        return logits

    loaded.model.lm_head.register_forward_hook(forbid)
    found = measure(loaded)
    assert found.broken is not None
    assert (found.broken.where, found.broken.what) == ("wikitext2 window 0", "infinite loss")
    assert found.result.perplexity == math.inf


def test_model_whose_logits_have_an_unknown_form_is_measured_through_its_own() -> None:
    loaded = ready(tiny_model())
    double = loaded.model

    def sharpen(module: Any, args: Any, output: Any) -> Any:
        output.logits = output.logits * 1.5
        return output

    double.register_forward_hook(sharpen)
    found = measure(loaded, TEXT[:1500])
    wanted, _ = reference(double, loaded.tokenizer(TEXT[:1500])["input_ids"], 64)
    assert found.result.perplexity == pytest.approx(wanted, rel=1e-6)


def test_out_of_memory_halves_the_windows_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = ready(tiny_model())
    wanted = measure(loaded).result.perplexity
    forward = loaded.model.base_model.forward

    def limited(input_ids: torch.Tensor, **inputs: Any) -> Any:
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(input_ids, **inputs)

    monkeypatch.setattr(loaded.model.base_model, "forward", limited)
    progress = SilentProgress()
    found = measure(loaded, batch_size=8, progress=progress)
    assert found.result.perplexity == pytest.approx(wanted, rel=1e-6)
    assert progress.said == [
        "out of memory: perplexity goes on with 4 windows at a time",
        "out of memory: perplexity goes on with 2 windows at a time",
    ]


def test_memory_that_does_not_take_one_window_is_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = ready(tiny_model())

    def none(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    probe = projection.find_head(loaded.model, torch.tensor([[5, 6]]))
    monkeypatch.setattr("prunescope.evaluate.perplexity.find_head", lambda *_: probe)
    monkeypatch.setattr(loaded.model.base_model, "forward", none)
    with pytest.raises(SettingError, match=r"one perplexity window of 64 tokens.*--device-map"):
        measure(loaded)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seqlen": 1}, "at least 2 tokens, not 1"),
        ({"seqlen": 257}, "longer than the model's maximum of 256"),
        ({"nsamples": 0}, "at least 1, not 0"),
        ({"text": "The river"}, "fewer than one window of 64"),
        ({"text": ""}, "has 0 tokens"),
        ({"batch_size": 0}, "at least 1 or auto, not 0"),
    ],
)
def test_settings_out_of_range_are_errors_in_one_line(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        measure(ready(tiny_model()), **settings)
    assert "\n" not in str(caught.value)


def test_default_window_is_2048_or_what_the_model_takes() -> None:
    assert default_seqlen(8192) == 2048
    assert default_seqlen(1024) == 1024


MEMORY_PROBE = """
import resource, sys, torch
from support.models import tiny_model
from support.scoring import ready
from test_perplexity import TEXT, measure
loaded = ready(tiny_model(vocab_size=60_000, max_position_embeddings=2048), 2048)
text = TEXT * 4
tokens = loaded.tokenizer(text, verbose=False)["input_ids"][:2048]
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
measure(loaded, text, seqlen=16, nsamples=1)
before = peak()
measure(loaded, text, seqlen=2048, nsamples=1)
ours = peak() - before
with torch.no_grad():
    logits = loaded.model(torch.tensor([tokens])).logits
    shifted = logits[:, :-1, :].contiguous()
    torch.nn.functional.cross_entropy(shifted.view(-1, shifted.shape[-1]), torch.tensor(tokens[1:]))
print(ours, peak() - before)
"""


def test_peak_memory_is_at_most_a_third_of_the_textbook_loop() -> None:
    import os
    from pathlib import Path

    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(tests), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", MEMORY_PROBE], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    ours, textbook = map(int, run.stdout.split())
    assert ours * 3 <= textbook


def test_a_tokenizer_that_tells_no_offsets_leaves_the_windows_places_out() -> None:
    loaded = ready(tiny_model())

    class Slow:
        is_fast = False

        def __call__(self, text: str, **settings: Any) -> Any:
            assert "return_offsets_mapping" not in settings
            return loaded.tokenizer(text, **settings)

    slow = ready(tiny_model(), tokenizer=Slow())
    found, usual = measure(slow), measure(loaded)
    assert usual.arrays.keys() - found.arrays.keys() == {"window_start", "window_end"}
    assert found.result == usual.result
