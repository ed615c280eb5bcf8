"""Drift of zeros between two checkpoints (exact) and between two records (what can be known)."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import prune_magnitude, tiny_model

from prunescope.compare.drift import mask_drift
from prunescope.errors import ModelError
from prunescope.evaluate.checkpoint import iter_model
from prunescope.evaluate.sparsity import CheckpointDrift, Overlap, measure, measure_drift
from prunescope.records import SparsityResult

NAMES = (
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.1.mlp.up_proj.weight",
)


@st.composite
def checkpoints(draw: st.DrawFn) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Two checkpoints: the second's masks equal, contain, lose or shuffle the first's."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    first, second = {}, {}
    for name in NAMES:
        rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 19))
        one = torch.rand(rows, columns, generator=generator)
        one = torch.where(one < draw(st.sampled_from((0.0, 0.4, 1.0))), 0.0, one)
        two = one * 3
        change = draw(st.sampled_from(("keep", "more", "lose", "shuffle", "all", "fill")))
        chance = torch.rand(rows, columns, generator=generator)
        if change == "more":
            two[chance < 0.3] = -0.0
        elif change == "lose":
            two[chance < 0.3] = 1.0
        elif change == "shuffle":
            two = two.reshape(-1)[torch.randperm(two.numel(), generator=generator)].view_as(two)
        elif change == "all":
            two = torch.zeros_like(two)
        elif change == "fill":
            two = torch.ones_like(two)
        first[name], second[name] = one, two.to(torch.bfloat16)
    return first, second


def brute(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> dict[str, Overlap]:
    return {
        name: Overlap(
            first[name].numel(),
            int(((first[name] == 0) & (second[name] == 0)).sum()),
            int(((first[name] == 0) & (second[name] != 0)).sum()),
            int(((first[name] != 0) & (second[name] == 0)).sum()),
        )
        for name in first
    }


def exact(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> CheckpointDrift:
    return measure_drift(iter(sorted(first.items())), iter(sorted(second.items())))


def record(tensors: dict[str, torch.Tensor]) -> SparsityResult:
    return measure(tensors.items()).result


@settings(max_examples=80, deadline=None)
@given(pair=checkpoints())
def test_the_exact_overlap_is_that_of_boolean_masks(
    pair: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]],
) -> None:
    expected = brute(*pair)
    found = exact(*pair)
    assert {tensor.name: tensor.overlap for tensor in found.tensors} == expected
    up, query = NAMES[0], NAMES[1]
    assert found.by_kind() == {"up": expected[up] + expected[NAMES[2]], "q": expected[query]}
    assert found.by_layer() == {0: expected[up] + expected[query], 1: expected[NAMES[2]]}
    assert found.mask_kept == (not any(overlap.returned for overlap in expected.values()))


@settings(max_examples=150, deadline=None)
@given(pair=checkpoints())
def test_what_two_records_say_is_never_wrong(
    pair: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]],
) -> None:
    overlaps = brute(*pair)
    returned = sum(overlap.returned for overlap in overlaps.values())
    new = sum(overlap.new for overlap in overlaps.values())
    found = mask_drift(record(pair[0]), record(pair[1]))
    assert found is not None
    if found.kept is not None:
        assert found.kept == (returned == 0)
    assert found.same_mask == (returned == 0 and new == 0)
    assert found.total.returned_at_least <= returned
    assert found.total.changed == sum(o.returned + o.new > 0 for o in overlaps.values())
    assert found.total.first.zeros == sum(o.kept + o.returned for o in overlaps.values())
    assert found.total.second.zeros == sum(o.kept + o.new for o in overlaps.values())
    for part in (found.kinds.values(), found.layers.values()):
        assert sum(count.tensors for count in part) == 3
        assert sum(count.returned_at_least for count in part) == found.total.returned_at_least


def test_records_answer_yes_no_and_unknown() -> None:
    half = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    more = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    fewer = torch.tensor([[0.0, 1.0, 1.0, 1.0]])
    moved = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    full = torch.ones(1, 4)
    name = NAMES[0]
    answers = {}
    for label, other in {
        "same": half * 2,
        "more": more,
        "fewer": fewer,
        "moved": moved,
        "all": full * 0,
        "full": full,
    }.items():
        drift = mask_drift(record({name: half}), record({name: other}))
        assert drift is not None
        answers[label] = (drift.kept, drift.total.returned_at_least)
    assert answers == {
        "same": (True, 0),
        "more": (None, 0),
        "fewer": (False, 1),
        "moved": (False, 1),
        "all": (True, 0),
        "full": (False, 2),
    }
    dense = mask_drift(record({name: full}), record({name: half}))
    assert dense is not None
    assert dense.kept is True


def test_a_missing_hash_makes_equal_counts_unknown() -> None:
    result = record({NAMES[0]: torch.tensor([[0.0, 1.0]])})
    bare = result.model_copy(
        update={
            "tensors": tuple(t.model_copy(update={"mask_sha256": None}) for t in result.tensors)
        }
    )
    drift = mask_drift(result, bare)
    assert drift is not None
    assert (drift.kept, drift.same_mask, drift.total.changed) == (None, None, 0)


def test_records_without_tensors_cannot_be_compared() -> None:
    result = record({NAMES[0]: torch.ones(1, 4)})
    assert mask_drift(result, result.model_copy(update={"tensors": ()})) is None


def test_changed_shapes_and_missing_layers_are_told_and_leave_the_answer_open() -> None:
    first = {NAMES[0]: torch.ones(4, 4), NAMES[1]: torch.ones(4, 4), NAMES[2]: torch.ones(4, 4)}
    second = {NAMES[0]: torch.ones(3, 4), NAMES[1]: torch.ones(4, 4)}
    found = exact(first, second)
    assert found.shapes == ((NAMES[0], (4, 4), (3, 4)),)
    assert (found.only_first, found.only_second) == ((NAMES[2],), ())
    assert found.mask_kept is None
    assert [tensor.name for tensor in found.tensors] == [NAMES[1]]
    reverse = exact(second, first)
    assert (reverse.only_first, reverse.only_second) == ((), (NAMES[2],))
    known = mask_drift(record(first), record(second))
    assert known is not None
    assert [(p.first.shape, p.second.shape) for p in known.shapes] == [((4, 4), (3, 4))]
    assert known.only_first == (NAMES[2],)
    assert (known.kept, known.same_mask) == (None, False)


def test_a_zero_that_came_back_is_certain_even_where_shapes_changed() -> None:
    first = {NAMES[0]: torch.ones(4, 4), NAMES[1]: torch.zeros(4, 4)}
    second = {NAMES[0]: torch.ones(3, 4), NAMES[1]: torch.ones(4, 4)}
    assert exact(first, second).mask_kept is False
    known = mask_drift(record(first), record(second))
    assert known is not None
    assert known.kept is False


def test_fine_tuning_that_respects_the_mask_keeps_it_and_one_that_does_not_is_caught() -> None:
    pruned = prune_magnitude(tiny_model(), 0.5)
    masked, dense = prune_magnitude(tiny_model(), 0.5), prune_magnitude(tiny_model(), 0.5)
    with torch.no_grad():
        for parameter in masked.parameters():
            parameter.add_((parameter != 0) * 0.01)
        query = dense.model.layers[1].self_attn.q_proj.weight
        query.add_(torch.randn_like(query))
    config = pruned.config.to_dict()
    options = {"first_config": config, "second_config": config}
    kept = measure_drift(iter_model(pruned), iter_model(masked), **options)
    assert kept.mask_kept is True
    assert kept.total.new == 0
    lost = measure_drift(iter_model(pruned), iter_model(dense), **options)
    assert lost.mask_kept is False
    assert {tensor.name for tensor in lost.tensors if tensor.overlap.returned} == {
        "model.layers.1.self_attn.q_proj.weight"
    }
    assert lost.total.returned == query.numel() // 2
    assert dataclasses.replace(kept, tensors=()).mask_kept is None


def test_gpt2s_transposed_weights_overlap_as_stored() -> None:
    first, second = prune_magnitude(tiny_model("gpt2"), 0.5), tiny_model("gpt2")
    config = first.config.to_dict()
    found = measure_drift(
        iter_model(first), iter_model(second), first_config=config, second_config=config
    )
    zeros = sum(
        int((p == 0).sum()) for n, p in first.named_parameters() if ".h." in n and p.dim() > 1
    )
    assert found.total.returned == zeros
    assert found.total.kept == found.total.new == 0


def test_progress_is_told_the_bytes_of_both() -> None:
    told: list[int] = []
    tensors = {NAMES[0]: torch.ones(4, 4), "model.norm.weight": torch.ones(4)}
    measure_drift(iter(tensors.items()), iter(tensors.items()), advance=told.append)
    assert sum(told) == 2 * 4 * 20


def test_a_dtype_without_zeros_is_refused() -> None:
    bad = {NAMES[0]: torch.ones(4, 4, dtype=torch.complex64)}
    with pytest.raises(ModelError, match="complex64"):
        exact(bad, bad)
