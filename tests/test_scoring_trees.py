"""Rows hold every request whole, show each token exactly its own past, and share what they can."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunescope.evaluate.scoring.blocks import cut_blocks
from prunescope.evaluate.scoring.masks import MaskForm, row_inputs
from prunescope.evaluate.scoring.trees import (
    Group,
    Inputs,
    Layout,
    Request,
    find_clusters,
    lay_out,
    plan,
)

MAX_LENGTH = 100
CPU = torch.device("cpu")

# A small alphabet, so that prefixes are often shared by chance as well.
tokens = st.lists(st.integers(1, 3), min_size=1, max_size=12)
long_tokens = st.lists(st.integers(1, 3), min_size=60, max_size=90)


@st.composite
def request_lists(draw: st.DrawFn) -> list[Request]:
    """Requests with shared and unshared contexts, duplicates, and prefixes worth a cache."""
    prompts = draw(st.lists(st.one_of(st.just([]), tokens, long_tokens), min_size=1, max_size=3))
    requests: list[Request] = []
    for _ in range(draw(st.integers(1, 12))):
        context = draw(st.sampled_from(prompts)) + draw(tokens)
        for continuation in draw(st.lists(tokens, min_size=1, max_size=4)):
            request = Request.encoded(len(requests), context, continuation, MAX_LENGTH)
            requests.append(request)
    return requests


def every_row(inputs: Inputs, groups: list[Group]) -> list[tuple[Group, Layout]]:
    return [(g, lay_out(inputs, row, len(g.prefix))) for g in groups for row in g.rows]


def seen_by(group: Group, layout: Layout, allowed: np.ndarray, place: int) -> list[int]:
    """The tokens that a place of a row may look at, in the order of their positions."""
    offset = len(group.prefix)
    all_tokens = [*group.prefix, *layout.tokens]
    depths = [*range(offset), *layout.depths]
    keys = np.flatnonzero(allowed[place])
    ordered = sorted(keys, key=lambda key: depths[key])
    assert [depths[key] for key in ordered] == list(range(len(ordered)))
    return [all_tokens[key] for key in ordered]


def visible(group: Group, layout: Layout) -> np.ndarray:
    form = MaskForm({"full_attention": None})
    batch = row_inputs([layout], len(group.prefix), form, CPU, torch.float32)
    assert isinstance(batch.attention_mask, torch.Tensor)
    return (batch.attention_mask[0, 0] == 0).numpy()


@settings(max_examples=25, deadline=None)
@given(request_lists(), st.sampled_from([1, 16, 40, 200]), st.booleans())
def test_each_target_is_read_once_where_exactly_its_own_past_is_seen(
    requests: list[Request], width: int, sequential: bool
) -> None:
    inputs = Inputs(requests)
    read: dict[int, list[tuple[int, int]]] = {request.index: [] for request in requests}
    for group, layout in every_row(inputs, plan(inputs, width, sequential=sequential)):
        allowed = visible(group, layout)
        for reading in layout.readings:
            past = seen_by(group, layout, allowed, reading.node)
            request = requests[reading.request]
            assert tuple(past) == request.input[: len(past)]
            read[reading.request].append((len(past) - 1, reading.target))
    for request in requests:
        places = range(request.start, len(request.input))
        assert read[request.index] == list(zip(places, request.targets, strict=True))


@settings(max_examples=25, deadline=None)
@given(request_lists(), st.sampled_from([16, 40, 200]), st.booleans())
def test_rows_are_no_longer_than_asked_unless_one_prefix_and_its_branches_are(
    requests: list[Request], width: int, sequential: bool
) -> None:
    inputs = Inputs(requests)
    for group in plan(inputs, width, sequential=sequential):
        for row in group.rows:
            layout = lay_out(inputs, row, len(group.prefix))
            assert row.size == len(layout.tokens)
            longest = max(len(inputs.tokens[member]) for member in row.members)
            assert row.size <= max(width, longest + width)


@settings(max_examples=25, deadline=None)
@given(request_lists(), st.sampled_from([16, 40, 200]))
def test_blocks_cover_the_row_in_order_and_miss_no_visible_token(
    requests: list[Request], width: int
) -> None:
    inputs = Inputs(requests)
    for group, layout in every_row(inputs, plan(inputs, width, sequential=True)):
        offset = len(group.prefix)
        allowed = visible(group, layout)
        blocks = cut_blocks(layout, offset)
        edges = [0, *(block.stop for block in blocks)]
        assert [block.start for block in blocks] == edges[:-1]
        assert edges[-1] == len(layout.tokens)
        for block in blocks:
            reached = {*range(offset), *(offset + place for place in block.ancestors)}
            reached |= set(range(offset + block.start, offset + block.stop))
            rows = allowed[block.start : block.stop]
            assert set(np.flatnonzero(rows.any(axis=0))) <= reached


@settings(max_examples=25, deadline=None)
@given(request_lists())
def test_clusters_hold_each_input_once_behind_a_prefix_that_all_members_have(
    requests: list[Request],
) -> None:
    inputs = Inputs(requests)
    clusters = find_clusters(inputs)
    assert [m for cluster in clusters for m in cluster.members] == list(range(len(inputs)))
    for cluster in clusters:
        prefixes = {inputs.tokens[member][: cluster.prefix] for member in cluster.members}
        assert len(prefixes) == 1
        assert all(cluster.prefix <= inputs.start[member] for member in cluster.members)


def test_a_document_with_four_choices_costs_its_context_once() -> None:
    context = list(range(10, 40))
    requests = [Request.encoded(i, context, [i + 1, 5, 6], MAX_LENGTH) for i in range(4)]
    inputs = Inputs(requests)
    (group,) = plan(inputs, 200)
    (row,) = group.rows
    assert row.size == 30 + 4 * 2


def test_one_token_choices_cost_nothing_beyond_the_context() -> None:
    requests = [Request.encoded(i, [7, 8, 9], [i + 1], MAX_LENGTH) for i in range(4)]
    inputs = Inputs(requests)
    (group,) = plan(inputs, 200)
    assert [row.size for row in group.rows] == [3]


def test_a_long_prompt_is_a_prefix_of_its_own_and_a_short_one_is_not() -> None:
    def groups(prompt: int) -> list[Group]:
        requests = [
            Request.encoded(i, [9] * prompt + [1 + i, 2, 3], [4, 5], 1000) for i in range(100)
        ]
        return plan(Inputs(requests), 128)

    assert [len(group.prefix) for group in groups(200)] == [200]
    assert [len(group.prefix) for group in groups(20)] == [0]


def test_prefix_never_holds_a_position_that_predicts_a_target() -> None:
    # Every request's continuation begins within what all have in common.
    shared = [9] * 100
    requests = [Request.encoded(i, [9], [*shared, 1 + i, 2, 3], 1000) for i in range(100)]
    groups = plan(Inputs(requests), 128)
    assert all(len(group.prefix) == 0 for group in groups)


def test_requests_that_are_too_long_lose_tokens_on_the_left() -> None:
    request = Request.encoded(0, list(range(50)), [100, 101], 10)
    assert request.input == (*range(41, 50), 100)
    assert request.start == 8


def test_window_hides_what_is_too_far_back_even_across_a_cached_prefix() -> None:
    requests = [Request.encoded(0, list(range(10)), [11, 12, 13], 100)]
    inputs = Inputs(requests)
    (group,) = plan(inputs, 100)
    layout = lay_out(inputs, group.rows[0], 6)
    form = MaskForm({"full_attention": None, "sliding_attention": 4})
    batch = row_inputs([layout], 6, form, CPU, torch.float32)
    assert isinstance(batch.attention_mask, dict)
    full = (batch.attention_mask["full_attention"][0, 0] == 0).numpy()
    near = (batch.attention_mask["sliding_attention"][0, 0] == 0).numpy()
    assert full.sum(axis=1).tolist() == [7, 8, 9, 10, 11, 12]
    assert near.sum(axis=1).tolist() == [4] * 6
    assert near[0].nonzero()[0].tolist() == [3, 4, 5, 6]
