"""Every model family gets lm-eval's scores from both engines, over random trees of requests."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.families import FAMILIES, WINDOW, family_model
from support.models import VOCAB_SIZE
from support.scoring import TokenPair, exam, lm_eval_token_scores, ready

from prunescope.evaluate.loading import LoadedModel
from prunescope.evaluate.progress import SilentProgress
from prunescope.evaluate.scoring import build_scorer
from prunescope.evaluate.scoring.branched import BranchedEngine
from prunescope.evaluate.scoring.masks import find_mask_form
from prunescope.evaluate.scoring.packed import PackedEngine
from prunescope.evaluate.scoring.projection import find_head
from prunescope.evaluate.scoring.trees import Inputs, Request

MAX_LENGTH = 40
TOLERANCE = 1e-4
PACKED = [family for family in FAMILIES if family != "bloom"]


@cache
def loaded(family: str, max_length: int = MAX_LENGTH) -> LoadedModel:
    return ready(family_model(family), max_length)


def engines(model: Any) -> list[Any]:
    head = find_head(model, torch.tensor([[5, 6, 7, 8]]))
    form = find_mask_form(model.config)
    assert head is not None
    assert form is not None
    cpu = torch.device("cpu")
    made: list[Any] = [BranchedEngine(model, head, cpu)]
    if model.config.model_type != "bloom":
        made.append(PackedEngine(model, head, form, cpu))
    return made


def assert_equal_scores(family: str, pairs: list[TokenPair], budget: int, max_length: int) -> None:
    subject = loaded(family, max_length)
    wanted = lm_eval_token_scores(subject, pairs)
    requests = [Request.encoded(i, *pair, max_length) for i, pair in enumerate(pairs)]
    for engine in engines(subject.model):
        found = {}
        for batch in engine.score(Inputs(requests), budget):
            found.update(batch.scores)
        for i, (logprob, greedy) in enumerate(wanted):
            assert found[i][0] == pytest.approx(logprob, abs=TOLERANCE), engine.name
            assert found[i][1] == greedy, engine.name


token = st.integers(3, VOCAB_SIZE - 1)
context = st.lists(token, min_size=1, max_size=MAX_LENGTH + 4)
continuation = st.lists(token, min_size=1, max_size=WINDOW + 2)


@st.composite
def exams(draw: st.DrawFn) -> list[TokenPair]:
    """Random trees: shared and unshared contexts, duplicate choices, beyond window and maximum."""
    pairs: list[TokenPair] = []
    for _ in range(draw(st.integers(1, 3))):
        stem = draw(context)
        for tail in draw(st.lists(st.lists(token, max_size=4), min_size=1, max_size=2)):
            choices = draw(st.lists(continuation, min_size=1, max_size=3))
            pairs += [(stem + tail, choice) for choice in [*choices, choices[0]]]
    return pairs


@pytest.mark.parametrize("family", FAMILIES)
@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pairs=exams(), budget=st.sampled_from([8, 60, 1000]))
def test_random_trees_get_the_scores_of_lm_eval(
    family: str, pairs: list[TokenPair], budget: int
) -> None:
    assert_equal_scores(family, pairs, budget, MAX_LENGTH)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_prompt_that_is_computed_once_gives_the_scores_of_lm_eval(family: str) -> None:
    pairs = exam(3, prompt=70, documents=6, choices=2, longest=12)
    assert_equal_scores(family, pairs, 48, 120)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_scored_by_prefix_trees_and_not_by_the_fallback(family: str) -> None:
    subject = loaded(family)
    progress = SilentProgress()
    lm = build_scorer(subject, batch_size="auto", progress=progress)
    pairs = exam(5, prompt=0, documents=3)
    encoded: Any = [(("", ""), *pair) for pair in pairs]
    found = lm._loglikelihood_tokens(encoded)
    wanted = lm_eval_token_scores(subject, pairs)
    assert [score for score, _ in found] == pytest.approx([s for s, _ in wanted], abs=TOLERANCE)
    assert lm.scorer_name == "prefix-tree"
    assert lm.engine_name == ("packed rows" if family in PACKED else "cached prefixes")
    assert lm.notes == progress.said == []
