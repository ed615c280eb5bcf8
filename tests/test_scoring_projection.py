"""Log-probabilities joined from parts of the vocabulary are those of a whole float64 softmax."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import tiny_model
from torch import Tensor, nn

from prunescope.evaluate.scoring import projection
from prunescope.evaluate.scoring.projection import Head, find_head, score_logits, score_positions

WIDTH, VOCABULARY = 16, 500


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 64 columns, or of few positions, so that joining them is what is tested."""
    monkeypatch.setattr(projection, "COLUMNS", (64, 64))
    monkeypatch.setitem(projection.PART_LOGITS, "cpu", 2**14)


def linear(seed: int, bias: bool = True, scale: float = 3.0) -> nn.Linear:
    torch.manual_seed(seed)
    module = nn.Linear(WIDTH, VOCABULARY, bias=bias)
    with torch.no_grad():
        module.weight.mul_(scale * WIDTH**0.5)
    return module


def both(module: nn.Linear, **form: float) -> list[Head]:
    """The same head used in parts and called as a module."""
    return [
        Head(module, weights=(module.weight, module.bias), **form),
        Head(module, **form),
    ]


def assert_scores(
    head: Head, hidden: Tensor, targets: Tensor, rows: Tensor, logits: Tensor
) -> None:
    wanted = logits.double().log_softmax(-1)[rows, targets]
    found = score_positions(head, hidden, targets, rows)
    torch.testing.assert_close(found.logprob, wanted, rtol=0, atol=2e-5, equal_nan=True)
    assert found.top1.tolist() == logits.argmax(-1)[rows].tolist()


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    positions=st.integers(1, 40),
    bias=st.booleans(),
    form=st.sampled_from([{}, {"scale": 0.25}, {"softcap": 2.0}, {"scale": 2.0, "softcap": 5.0}]),
)
def test_scores_equal_a_whole_softmax_in_float64(
    seed: int, positions: int, bias: bool, form: dict[str, float]
) -> None:
    module = linear(seed, bias)
    hidden = torch.randn(positions, WIDTH)
    rows = torch.randint(positions, (2 * positions,)).sort().values
    targets = torch.randint(VOCABULARY, rows.shape)
    with torch.no_grad():
        logits = module(hidden) * form.get("scale", 1.0)
        if cap := form.get("softcap"):
            logits = torch.tanh(logits / cap) * cap
        for head in both(module, **form):
            assert_scores(head, hidden, targets, rows, logits)


@torch.no_grad()
def test_first_of_tokens_that_tie_is_the_most_probable_one_across_parts() -> None:
    module = linear(0, bias=False)
    module.weight.zero_()
    module.weight[[70, 300, 301]] = 1.0
    hidden = torch.ones(2, WIDTH)
    for head in both(module):
        assert score_positions(head, hidden, torch.tensor([300, 70])).top1.tolist() == [70, 70]


@torch.no_grad()
def test_tokens_that_are_ruled_out_leave_the_others_finite() -> None:
    module = linear(1)
    module.bias[:130] = float("-inf")  # two whole parts and some
    hidden = torch.randn(3, WIDTH)
    for head in both(module):
        logits = module(hidden)
        targets = torch.tensor([200, 5, 499])
        assert_scores(head, hidden, targets, torch.arange(3), logits)
        found = score_positions(head, hidden, targets)
        assert found.logprob[1] == float("-inf")


@torch.no_grad()
def test_nan_stays_in_its_own_position() -> None:
    module = linear(2)
    hidden = torch.randn(3, WIDTH)
    hidden[1] = float("nan")
    for head in both(module):
        logprob = score_positions(head, hidden, torch.tensor([1, 2, 3])).logprob
        assert logprob.isnan().tolist() == [False, True, False]


@torch.no_grad()
def test_logits_at_hand_are_scored_alike_and_left_as_they_are() -> None:
    module = linear(3)
    hidden, targets = torch.randn(30, WIDTH), torch.randint(VOCABULARY, (30,))
    logits = module(hidden)
    before = logits.clone()
    found = score_logits(logits, targets)
    wanted = score_positions(both(module)[0], hidden, targets)
    torch.testing.assert_close(found.logprob, wanted.logprob, rtol=0, atol=1e-5)
    assert found.top1.tolist() == wanted.top1.tolist()
    assert torch.equal(logits, before)


def test_weights_are_used_in_parts_only_where_that_is_the_same_as_calling_the_module() -> None:
    ids = torch.tensor([[5, 6, 7]])
    model = tiny_model()
    head = find_head(model, ids)
    assert head is not None
    assert head.weights is not None
    model.lm_head.register_forward_hook(lambda module, args, output: output * 2)
    hooked = find_head(model, ids)
    assert hooked is not None
    assert hooked.weights is None
