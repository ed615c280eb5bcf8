"""The scorer answers as lm-eval's own backend does, whatever happens on the way."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from support.models import tiny_model, tiny_tokenizer
from support.scoring import (
    TokenPair,
    exam,
    lm_eval_backend,
    lm_eval_token_scores,
    ready,
    text_requests,
)
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from prunescope.errors import SettingError, TaskError
from prunescope.evaluate.loading import LoadedModel
from prunescope.evaluate.progress import SilentProgress
from prunescope.evaluate.scoring import build_scorer
from prunescope.evaluate.scoring.selfcheck import pick_sample, tolerance, worst_excess
from prunescope.evaluate.scoring.trees import Request

TOLERANCE = 1e-4

PAIRS = [
    ("Question: is the sky blue?\nAnswer:", " yes"),
    ("Question: is the sky blue?\nAnswer:", " no"),
    ("Question: is the sky blue on a clear day?\nAnswer:", " yes, on most days"),
    ("", "The river runs"),
    ("", "a"),
    ("The river ", "runs through"),
    ("The tro", "phy does not fit"),
    ("The trophy does not fit in the suitcase because the trophy", " is too large."),
    ("The trophy does not fit in the suitcase because the suitcase", " is too large."),
    ("Der Fluss flie", "ßt durch die Stadt"),
    ("河流", "穿过古城"),
    ("Question: is the sky blue?\nAnswer:", " yes"),
    ("A man is standing in a kitchen. " * 20, "He picks up a pan"),
]


def tokenizer_that_adds_bos() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    return tokenizer


def scorer(subject: LoadedModel, batch_size: Any = "auto") -> Any:
    return build_scorer(subject, batch_size=batch_size, progress=SilentProgress())


def token_scores(lm: Any, pairs: list[TokenPair]) -> list[tuple[float, bool]]:
    scores: list[tuple[float, bool]] = lm._loglikelihood_tokens([(None, *pair) for pair in pairs])
    return scores


def assert_same(found: list[tuple[float, bool]], wanted: list[tuple[float, bool]]) -> None:
    assert [score for score, _ in found] == pytest.approx([s for s, _ in wanted], abs=TOLERANCE)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]


def greedy_continuation(model: PreTrainedModel, context: list[int], count: int) -> list[int]:
    tokens = list(context)
    for _ in range(count):
        with torch.no_grad():
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(context) :]


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
@pytest.mark.parametrize("make_tokenizer", [tiny_tokenizer, tokenizer_that_adds_bos])
@pytest.mark.parametrize("max_length", [24, 256])
def test_text_requests_get_the_scores_of_lm_eval(
    family: str, make_tokenizer: Any, max_length: int
) -> None:
    subject = ready(tiny_model(family), max_length, make_tokenizer())
    requests = text_requests(PAIRS)
    lm = scorer(subject)
    wanted = lm_eval_backend(subject).loglikelihood(requests, disable_tqdm=True)
    assert_same(lm.loglikelihood(requests), wanted)
    assert lm.scorer_name == "prefix-tree"


def test_text_that_begins_with_the_bos_token_is_not_given_another() -> None:
    subject = ready(tiny_model(), tokenizer=tokenizer_that_adds_bos())
    requests = text_requests([("<s>The river", " runs"), ("The river", " runs")])
    wanted = lm_eval_backend(subject).loglikelihood(requests, disable_tqdm=True)
    assert_same(scorer(subject).loglikelihood(requests), wanted)


def test_greedy_continuations_are_recognised_and_others_are_not() -> None:
    model = tiny_model()
    context = [5, 6, 7, 8]
    best = greedy_continuation(model, context, 4)
    pairs = [(context, best), (context, [*best[:3], 9]), (context, best[:1])]
    found = token_scores(scorer(ready(model)), pairs)
    assert [greedy for _, greedy in found] == [True, False, True]


def test_exact_ties_are_greedy_only_for_the_first_token_as_for_argmax() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    subject = ready(model)
    pairs: list[TokenPair] = [([5, 6], [0]), ([5, 6], [1])]
    found = token_scores(scorer(subject), pairs)
    assert [greedy for _, greedy in found] == [True, False]
    assert_same(found, lm_eval_token_scores(subject, pairs))


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1, 2, 7]))
def test_scores_depend_neither_on_batch_size_nor_on_order(seed: int, batch_size: int) -> None:
    subject = ready(tiny_model())
    pairs = exam(seed, prompt=10, documents=5)
    wanted = token_scores(scorer(subject), pairs)
    order = list(range(len(pairs)))
    random.Random(seed).shuffle(order)
    found = token_scores(scorer(subject, batch_size), [pairs[i] for i in order])
    assert [score for score, _ in found] == pytest.approx([wanted[i][0] for i in order], abs=1e-5)


def test_sequence_split_in_two_places_is_scored_as_if_it_were_alone() -> None:
    subject = ready(tiny_model())
    pairs: list[TokenPair] = [([5, 6], [7, 8]), ([5], [6, 7, 9])]
    assert_same(token_scores(scorer(subject), pairs), lm_eval_token_scores(subject, pairs))


def test_shared_prompt_is_computed_once() -> None:
    lm = scorer(ready(tiny_model(max_position_embeddings=2048), 2048), batch_size=1)
    pairs = exam(1, prompt=500, documents=300, choices=1)
    token_scores(lm, pairs)
    own = sum(len(context) + len(tokens) - 1 - 500 for context, tokens in pairs)
    assert lm.tokens_scored <= 500 + own


# --- out of memory --------------------------------------------------------------------------------


@contextmanager
def memory_for(model: PreTrainedModel, tokens: int) -> Iterator[list[int]]:
    """The model takes at most so many tokens at a time; yields the sizes that it was given."""
    sizes: list[int] = []

    def check(module: Any, args: Any, kwargs: Any) -> None:
        size = (args[0] if args else kwargs["input_ids"]).numel()
        sizes.append(size)
        if size > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    handle = model.base_model.register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield sizes
    finally:
        handle.remove()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_out_of_memory_halves_the_batch_keeps_what_was_scored_and_says_so(family: str) -> None:
    subject = ready(tiny_model(family))
    pairs = exam(2, prompt=0, documents=40)
    wanted = lm_eval_token_scores(subject, pairs)
    lm = scorer(subject)
    with memory_for(subject.model, 300) as sizes:
        found = token_scores(lm, pairs)
    assert_same(found, wanted)
    assert lm.notes == [
        "out of memory: scoring goes on with 512 tokens at a time",
        "out of memory: scoring goes on with 256 tokens at a time",
    ]
    assert sum(size > 300 for size in sizes) == 2


def test_batch_that_memory_allowed_is_kept_for_the_next_task() -> None:
    subject = ready(tiny_model())
    lm = scorer(subject)
    with memory_for(subject.model, 300) as sizes:
        token_scores(lm, exam(2, prompt=0, documents=40))
        failures = sum(size > 300 for size in sizes)
        token_scores(lm, exam(3, prompt=0, documents=40))
    assert sum(size > 300 for size in sizes) == failures


def test_memory_that_does_not_take_one_sequence_is_an_error_that_says_what_to_do() -> None:
    subject = ready(tiny_model())
    with (
        memory_for(subject.model, 10),
        pytest.raises(SettingError, match=r"out of memory.*--device-map auto"),
    ):
        token_scores(scorer(subject), [([5] * 8, [6]), ([5] * 40, [7, 8])])


def test_out_of_memory_on_the_plain_path_halves_the_batch_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    subject = ready(tiny_model())
    pairs = exam(2, prompt=0, documents=10)
    wanted = lm_eval_token_scores(subject, pairs)
    lm = scorer(subject)
    lm._trees = None
    forward = subject.model.forward

    def limited(input_ids: torch.Tensor, **inputs: Any) -> Any:
        if len(input_ids) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(input_ids, **inputs)

    monkeypatch.setattr(subject.model, "forward", limited)
    assert_same(token_scores(lm, pairs), wanted)
    assert lm.notes == [
        "out of memory: batch size halved to 8",
        "out of memory: batch size halved to 4",
    ]


# --- models that do not fit -----------------------------------------------------------------------


def assert_falls_back(subject: LoadedModel, reason: str) -> None:
    pairs = exam(4, prompt=0, documents=4)
    lm = scorer(subject)
    found = token_scores(lm, pairs)
    assert_same(found, lm_eval_token_scores(subject, pairs))
    assert lm.scorer_name == "lm-eval-hf"
    assert lm.engine_name is None
    (note,) = lm.notes
    assert "LlamaForCausalLM does not fit prefix trees" in note
    assert reason in note
    assert_same(token_scores(lm, pairs), found)
    assert len(lm.notes) == 1


def test_model_that_ignores_masks_positions_and_cache_is_left_to_lm_eval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model()
    forward = model.base_model.forward

    def careless(input_ids: torch.Tensor, **_: Any) -> Any:
        return forward(input_ids=input_ids, use_cache=False)

    monkeypatch.setattr(model.base_model, "forward", careless)
    assert_falls_back(ready(model), "packed rows are off by")


def test_model_that_goes_wrong_beyond_a_length_is_found_out_when_a_task_gets_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model()
    forward = model.base_model.forward

    def shortsighted(input_ids: torch.Tensor, **inputs: Any) -> Any:
        if input_ids.shape[1] > 100 and inputs.get("position_ids") is not None:
            inputs["position_ids"] = inputs["position_ids"] * 0
        return forward(input_ids=input_ids, **inputs)

    monkeypatch.setattr(model.base_model, "forward", shortsighted)
    subject = ready(model)
    lm = scorer(subject)
    token_scores(lm, [([5] * 20, [6]), ([7] * 20, [8])])
    assert lm.engine_name == "packed rows"
    longer = exam(4, prompt=110, documents=2)
    assert_same(token_scores(lm, longer), lm_eval_token_scores(subject, longer))
    assert lm.engine_name != "packed rows"


def test_model_that_refuses_masks_and_cache_is_left_to_lm_eval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model()
    forward = model.base_model.forward

    def narrow(
        input_ids: torch.Tensor, attention_mask: Any = None, use_cache: bool = False, **other: Any
    ) -> Any:
        if attention_mask is not None:
            raise ValueError("no masks here")
        return forward(input_ids=input_ids, use_cache=False)

    monkeypatch.setattr(model.base_model, "forward", narrow)
    assert_falls_back(ready(model), "packed rows fail with ValueError")


def test_model_that_does_more_to_its_logits_than_we_know_is_left_to_lm_eval() -> None:
    model = tiny_model()

    def sharpen(module: Any, args: Any, output: Any) -> Any:
        output.logits = output.logits * 1.5
        return output

    model.register_forward_hook(sharpen)
    assert_falls_back(ready(model), "logits have an unknown form")


def test_sequences_on_which_a_model_breaks_do_not_take_their_neighbours_with_them() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_input_embeddings().weight[100] = float("nan")
    subject = ready(model)
    pairs = exam(6, prompt=0, documents=6)
    pairs = [([t if t != 100 else 101 for t in c], [t % 90 + 3 for t in k]) for c, k in pairs]
    pairs[4] = ([5, 100, 6], [7])
    lm = scorer(subject)
    found = token_scores(lm, pairs)
    wanted = lm_eval_token_scores(subject, pairs)
    assert [score != score for score, _ in found] == [i == 4 for i in range(len(pairs))]
    assert_same(found[:4] + found[5:], wanted[:4] + wanted[5:])
    assert lm.engine_name == "packed rows"


def test_model_of_nan_gives_nan_everywhere() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    pairs = exam(6, prompt=0, documents=12)
    lm = scorer(ready(model))
    assert all(score != score for score, _ in token_scores(lm, pairs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_passes_the_check_and_stays_near_float32(dtype: torch.dtype) -> None:
    pairs = exam(7, prompt=0, documents=6)
    wanted = lm_eval_token_scores(ready(tiny_model()), pairs)
    lm = scorer(ready(tiny_model().to(dtype)))
    found = token_scores(lm, pairs)
    assert lm.scorer_name == "prefix-tree"
    assert [score for score, _ in found] == pytest.approx([s for s, _ in wanted], rel=0.03)


def test_model_whose_weights_are_spread_over_devices_is_scored() -> None:
    from accelerate import cpu_offload

    pairs = exam(8, prompt=80, documents=20)
    wanted = lm_eval_token_scores(ready(tiny_model()), pairs)
    model = tiny_model()
    cpu_offload(model, execution_device=torch.device("cpu"))
    lm = scorer(ready(model))
    assert_same(token_scores(lm, pairs), wanted)
    assert lm.scorer_name == "prefix-tree"


# --- the rest of lm-eval's interface --------------------------------------------------------------


class Counting(SilentProgress):
    def __init__(self) -> None:
        super().__init__()
        self.done = 0.0

    def advance(self, amount: float) -> None:
        self.done += amount


@pytest.mark.parametrize("plain", [False, True])
def test_progress_hears_of_each_request_once(plain: bool) -> None:
    progress = Counting()
    lm = build_scorer(ready(tiny_model()), batch_size=4, progress=progress)
    if plain:
        lm._trees = None
    lm.loglikelihood(text_requests(PAIRS))
    assert progress.done == len(PAIRS)


def test_rolling_loglikelihoods_are_those_of_lm_eval() -> None:
    subject = ready(tiny_model(), 32)
    texts = ["The river runs through the old town. " * 8, "a", "Plants use sunlight."]
    requests = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(texts)]
    wanted = lm_eval_backend(subject).loglikelihood_rolling(requests, disable_tqdm=True)
    progress = Counting()
    lm = build_scorer(subject, batch_size=2, progress=progress)
    assert lm.loglikelihood_rolling(requests) == pytest.approx(wanted, abs=1e-3)
    assert progress.done == len(texts)


def test_generated_texts_are_those_of_lm_eval_in_the_order_of_the_requests() -> None:
    subject = ready(tiny_model())
    texts = ["The river", "Question: is the sky blue on a clear day?\nAnswer:", "A man", "no"]
    requests = [
        Instance("generate_until", {}, (text, {"until": ["\n"], "max_gen_toks": 5}), i)
        for i, text in enumerate(texts)
    ]
    wanted = lm_eval_backend(subject).generate_until(requests, disable_tqdm=True)
    progress = Counting()
    lm = build_scorer(subject, batch_size=4, progress=progress)
    assert lm.generate_until(requests) == wanted
    assert progress.done == len(texts)


def test_truncation_is_said_once_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    subject = ready(tiny_model(), 24)
    lm = scorer(subject)
    lm.loglikelihood(text_requests(PAIRS))
    texts = [Instance("loglikelihood_rolling", {}, ("The river runs. " * 100,), 0)]
    lm.loglikelihood_rolling(texts)
    lm.generate_until([Instance("generate_until", {}, ("no", {"max_gen_toks": 3}), 0)])
    longer = [n for n in lm.notes if "cut from the left" in n]
    assert len(longer) == 1
    assert "maximum of 24 tokens" in longer[0]
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""


def test_continuation_without_tokens_is_an_error_that_shows_it() -> None:
    with pytest.raises(TaskError, match="no tokens of its own"):
        scorer(ready(tiny_model())).loglikelihood(text_requests([("The river", "")]))


def test_continuation_longer_than_the_model_takes_is_an_error() -> None:
    with pytest.raises(TaskError, match="longer than the model's maximum of 8"):
        lm = scorer(ready(tiny_model(), 8))
        lm.loglikelihood(text_requests([("The river", " runs through the old town and on and on")]))


def test_batch_size_of_zero_is_an_error() -> None:
    with pytest.raises(SettingError, match="at least 1"):
        scorer(ready(tiny_model()), 0)


def test_sample_for_the_check_has_the_longest_request_and_stays_small() -> None:
    requests = [Request.encoded(i, [3] * (i + 1), [4, 5], 1000) for i in range(400)]
    sample = pick_sample(requests)
    assert 4 <= len(sample) <= 12
    assert max(len(r.input) for r in sample) == max(len(r.input) for r in requests)
    assert len(pick_sample(requests[:20])) <= 4
    assert len(pick_sample(requests[:1])) == 1


def test_number_against_no_number_is_the_worst_of_differences() -> None:
    requests = [Request.encoded(i, [3], [4], 100) for i in range(3)]
    wanted = {0: (-1.0, True), 1: (-2.0, True), 2: (math.nan, True)}
    assert worst_excess(wanted, wanted, requests, torch.float32) == 0.0
    near = {**wanted, 1: (-2.0005, True)}
    assert worst_excess(near, wanted, requests, torch.float32) == 0.0
    far = {**wanted, 0: (-1.2, True), 1: (-2.1, True)}
    assert worst_excess(far, wanted, requests, torch.float32) == pytest.approx(0.2)
    broken = {**wanted, 1: (math.nan, True)}
    assert worst_excess(broken, wanted, requests, torch.float32) == math.inf
    assert worst_excess(wanted, broken, requests, torch.float32) == math.inf


def test_tolerance_is_a_thousandth_of_a_nat_in_float32_and_grows_with_coarser_types() -> None:
    assert tolerance(torch.float32, 10) == 1e-3
    assert 0.01 < tolerance(torch.float16, 1) < tolerance(torch.bfloat16, 1) < 0.4
