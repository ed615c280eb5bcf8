"""Zeros, groups, blocks, rows, columns and hashes, against numpy loops."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.models import prune_magnitude, save_tiny_model, tiny_model
from torch.nn.utils import prune
from transformers.pytorch_utils import Conv1D

from prunescope.errors import ModelError, SettingError
from prunescope.evaluate.checkpoint import iter_model, iter_tensors
from prunescope.evaluate.sparsity import Measurement, hash_weights, measure
from prunescope.evaluate.sparsity.patterns import PATTERNS
from prunescope.records import BlockTiers, TensorSparsity, ZeroCount

LINEAR = "model.layers.0.mlp.up_proj.weight"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SPECIALS = {  # dtype -> the smallest subnormal
    torch.float16: 2.0**-24,
    torch.bfloat16: 2.0**-133,
    torch.float32: 2.0**-149,
    torch.float64: 5e-324,
}


def one(tensor: torch.Tensor, name: str = LINEAR, **options: Any) -> TensorSparsity:
    return measure([(name, tensor)], **options).result.tensors[0]


@st.composite
def weights(draw: st.DrawFn) -> torch.Tensor:
    """A matrix with zeros of both signs, subnormals, NaN and infinity."""
    rows, columns = draw(st.integers(1, 40)), draw(st.integers(1, 75))
    dtype = draw(st.sampled_from(FLOATS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    matrix = torch.randn(rows, columns, generator=generator, dtype=torch.float64).to(dtype)
    matrix[matrix == 0] = 1
    chance = torch.rand(rows, columns, generator=generator)
    kept = draw(st.sampled_from((0.0, 0.02, 0.2, 0.5, 0.9, 1.0)))
    matrix[chance > kept] = 0.0
    matrix[chance > (1 + kept) / 2] = -0.0
    for value in (SPECIALS[dtype], -SPECIALS[dtype], math.inf, -math.inf, math.nan):
        if draw(st.booleans()):
            spot = draw(st.integers(0, matrix.numel() - 1))
            matrix.view(-1)[spot] = torch.tensor(value, dtype=torch.float64).to(dtype)
    if draw(st.booleans()):
        matrix[draw(st.integers(0, rows - 1))] = 0.0
        matrix[:, draw(st.integers(0, columns - 1))] = -0.0
    return matrix


def is_nonzero(matrix: torch.Tensor) -> np.ndarray[Any, Any]:
    return np.array([[value != 0 for value in row] for row in matrix.double().tolist()])


def brute_groups(nonzero: np.ndarray[Any, Any], n: int, m: int) -> tuple[int, int, int]:
    """Complying groups, all groups, empty groups."""
    left = [
        int(row[start : start + m].sum())
        for row in nonzero
        for start in range(0, nonzero.shape[1], m)
    ]
    return sum(count <= n for count in left), len(left), left.count(0)


def brute_tiers(nonzero: np.ndarray[Any, Any], block: tuple[int, int], topk: int) -> BlockTiers:
    found = dict.fromkeys(("empty", "at_most_topk", "two_four", "dense", "other", "ragged"), 0)
    for top in range(0, nonzero.shape[0], block[0]):
        for left in range(0, nonzero.shape[1], block[1]):
            part = nonzero[top : top + block[0], left : left + block[1]]
            complying, groups, _ = brute_groups(part, 2, 4)
            if not part.any():
                tier = "empty"
            elif part.sum() <= topk:
                tier = "at_most_topk"
            elif complying == groups:
                tier = "two_four"
            elif part.all():
                tier = "dense"
            else:
                tier = "other"
            found[tier] += 1
            found["ragged"] += part.size < block[0] * block[1]
    return BlockTiers(block=block, topk=topk, **found)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    matrix=weights(),
    block=st.one_of(
        st.just((16, 16)), st.tuples(st.integers(1, 40), st.sampled_from((1, 3, 4, 8, 12, 16, 32)))
    ),
    topk=st.integers(0, 20),
)
def test_one_matrix_is_counted_as_numpy_loops_count_it(
    matrix: torch.Tensor, block: tuple[int, int], topk: int
) -> None:
    nonzero = is_nonzero(matrix)
    found = one(matrix, block=block, topk=topk)
    assert found.zeros == int((~nonzero).sum())
    assert found.parameters == matrix.numel()
    assert found.nonfinite == int((~np.isfinite(matrix.double().numpy())).sum())
    assert (found.rows, found.columns) == nonzero.shape
    assert found.empty_rows == int((~nonzero.any(axis=1)).sum())
    assert found.empty_columns == int((~nonzero.any(axis=0)).sum())
    for pattern in PATTERNS:
        n, m = (int(part) for part in pattern.split(":"))
        expected = brute_groups(nonzero, n, m)
        assert (
            found.nm_groups[pattern],
            found.nm_total[pattern],
            found.nm_empty[pattern],
        ) == expected
    holding = [p for p in PATTERNS if found.nm_groups[p] == found.nm_total[p]]
    assert found.pattern == (holding[0] if holding else None)
    assert found.blocks == brute_tiers(nonzero, block, topk)


@settings(max_examples=40, deadline=None)
@given(matrix=weights())
def test_the_stored_orientation_does_not_change_a_count(matrix: torch.Tensor) -> None:
    name = "transformer.h.0.mlp.c_fc.weight"
    stored = one(matrix.T.contiguous(), name, config={"model_type": "gpt2"})
    straight = one(matrix, name, config={"model_type": "gpt_neo"})
    assert stored.model_dump(exclude={"shape"}) == straight.model_dump(exclude={"shape"})
    assert stored.shape == straight.shape[::-1]


def test_the_flush_to_zero_mode_of_the_processor_does_not_hide_subnormals() -> None:
    tensor = torch.full((4, 4), SPECIALS[torch.float32])
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no such mode")
    try:
        assert one(tensor).zeros == 0
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize(
    ("dtype", "zero_bytes", "nonfinite_bytes"),
    [
        (torch.float8_e4m3fn, {0x00, 0x80}, {0x7F, 0xFF}),
        (torch.float8_e5m2, {0x00, 0x80}, {*range(0x7C, 0x80), *range(0xFC, 0x100)}),
        (torch.float8_e4m3fnuz, {0x00}, {0x80}),
        (torch.float8_e5m2fnuz, {0x00}, {0x80}),
        (torch.int8, {0x00}, set()),
    ],
)
def test_all_256_bytes_of_an_8_bit_dtype_are_told_apart(
    dtype: torch.dtype, zero_bytes: set[int], nonfinite_bytes: set[int]
) -> None:
    for byte in range(256):
        found = one(torch.full((2, 8), byte, dtype=torch.uint8).view(dtype))
        assert (found.zeros == 16) == (byte in zero_bytes), byte
        assert found.zeros in (0, 16)
        assert (found.nonfinite == 16) == (byte in nonfinite_bytes), byte
        if dtype.is_floating_point:
            value = torch.tensor([byte], dtype=torch.uint8).view(dtype).float()
            assert (value == 0).item() == (byte in zero_bytes)
            assert (~value.isfinite()).item() == (byte in nonfinite_bytes)


def test_packed_integers_are_refused_by_name_but_can_be_hashed() -> None:
    packed = [("model.layers.0.mlp.up_proj.qweight", torch.ones(4, 4, dtype=torch.int32))]
    with pytest.raises(ModelError, match=r"packed int32 in model\.layers\.0\.mlp\.up_proj\.qweig"):
        measure(packed)
    assert hash_weights(packed).weights_sha256


def test_a_dtype_without_zeros_of_its_own_is_refused() -> None:
    with pytest.raises(ModelError, match=f"found complex64 in {LINEAR}"):
        one(torch.ones(4, 4, dtype=torch.complex64))


@pytest.mark.parametrize(("block", "topk"), [((0, 16), 10), ((16, -1), 10), ((16, 16), -1)])
def test_block_settings_out_of_range_are_refused(block: tuple[int, int], topk: int) -> None:
    with pytest.raises(SettingError):
        measure([], block=block, topk=topk)


def test_no_tensor_and_tensors_without_a_weight_are_counted_as_nothing() -> None:
    assert measure([]).result.total == ZeroCount(zeros=0, parameters=0)
    found = measure([(LINEAR, torch.zeros(0, 4)), ("scalar", torch.tensor(0.0))])
    assert found.result.linear == ZeroCount(zeros=0, parameters=0)
    assert found.result.total == ZeroCount(zeros=1, parameters=1)


# --- patterns that are known ----------------------------------------------------------------------


def _prune_n_of_m(module: torch.nn.Module, n: int, m: int) -> None:
    """Keep the n largest of each m weights along the input dimension (torch.nn.utils.prune)."""
    weight = module.weight.detach()
    matrix = weight.T if isinstance(module, Conv1D) else weight
    groups = matrix.abs().reshape(matrix.shape[0], -1, m)
    kept = torch.zeros_like(groups).scatter_(2, groups.topk(n, dim=2).indices, 1.0)
    mask = kept.reshape(matrix.shape)
    prune.custom_from_mask(module, "weight", mask.T if isinstance(module, Conv1D) else mask)
    prune.remove(module, "weight")


def _linear_modules(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and any(c.isdigit() for c in name):
            yield module


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (4, 8), (1, 4), (2, 8)])
def test_a_model_pruned_n_of_m_is_recognized_exactly(family: str, n: int, m: int) -> None:
    model = tiny_model(family)
    for module in _linear_modules(model):
        _prune_n_of_m(module, n, m)
    result = measure(iter_model(model), config=model.config.to_dict()).result
    assert result.pattern == f"{n}:{m}"
    assert {tensor.pattern for tensor in result.tensors if tensor.linear} == {f"{n}:{m}"}
    assert result.linear.fraction == 1 - n / m


def test_one_weight_too_many_in_one_layer_breaks_the_models_pattern() -> None:
    model = tiny_model()
    for module in _linear_modules(model):
        _prune_n_of_m(module, 2, 4)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 4:7] = 1.0
    result = measure(iter_model(model), config=model.config.to_dict()).result
    broken = [t for t in result.tensors if t.linear and t.pattern is None]
    assert result.pattern is None
    assert [tensor.name for tensor in broken] == ["model.layers.1.mlp.down_proj.weight"]
    assert broken[0].nm_total["2:4"] - broken[0].nm_groups["2:4"] == 1


def test_layers_left_dense_do_not_hide_the_pattern_of_the_pruned_ones() -> None:
    model = tiny_model()
    for module in list(_linear_modules(model))[:5]:
        _prune_n_of_m(module, 2, 4)
    assert measure(iter_model(model)).result.pattern == "2:4"
    assert measure(iter_model(tiny_model())).result.pattern is None


def test_three_tiers_of_blocks_are_recognized_exactly() -> None:
    generator = torch.Generator().manual_seed(3)
    down, across = 7, 9
    tiers = torch.randint(4, (down, across), generator=generator)
    matrix = torch.randn(16 * down, 16 * across, generator=generator) + 4.0
    for row in range(down):
        for column in range(across):
            part = matrix[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            if tiers[row, column] == 0:
                part.zero_()
            elif tiers[row, column] == 1:
                kept = torch.randperm(256, generator=generator)[:10]
                values = part.reshape(-1)[kept]
                part.zero_()
                part[kept // 16, kept % 16] = values
            elif tiers[row, column] == 2:
                order = torch.rand(16, 4, 4, generator=generator).argsort(dim=2)
                part[(order < 2).reshape(16, 16)] = 0.0
    found = one(matrix.to(torch.float16)).blocks
    empty, few, two_four, dense = (int((tiers == tier).sum()) for tier in range(4))
    assert found == BlockTiers(
        block=(16, 16), topk=10, empty=empty, at_most_topk=few, two_four=two_four, dense=dense
    )


def test_experts_stacked_in_one_tensor_are_counted_as_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    stack = torch.randn(3, 20, 24, generator=generator)
    stack[stack.abs() < 0.5] = 0.0
    stack[1, :, 5] = 0.0
    together = one(stack, "model.layers.0.mlp.experts.down_proj")
    apart = [one(matrix) for matrix in stack]
    assert together.kind == "down"
    assert together.zeros == sum(tensor.zeros for tensor in apart)
    assert together.empty_columns == sum(t.empty_columns or 0 for t in apart) == 1
    assert (together.rows, together.columns) == (60, 72)
    assert together.nm_groups["2:4"] == sum(tensor.nm_groups["2:4"] for tensor in apart)
    assert together.blocks is not None
    assert together.blocks.other == sum(t.blocks.other for t in apart if t.blocks)
    assert together.blocks.ragged == sum(t.blocks.ragged for t in apart if t.blocks)


def test_heads_that_are_gone_are_counted_by_rows_and_in_o_by_columns() -> None:
    model = tiny_model()  # 4 heads of 8, 2 of them for k and v
    attention = model.model.layers[1].self_attn
    with torch.no_grad():
        attention.q_proj.weight[8:24] = 0.0
        attention.k_proj.weight[0:8] = 0.0
        attention.v_proj.weight[4:12] = 0.0  # two halves are no head
        attention.o_proj.weight[:, 24:32] = -0.0
    result = measure(iter_model(model), config=model.config.to_dict()).result
    found = {t.kind: (t.heads, t.empty_heads) for t in result.tensors if t.linear and t.layer == 1}
    assert [found[kind] for kind in ("q", "k", "v", "o")] == [(4, 2), (2, 1), (2, 0), (4, 1)]
    assert found["up"] == (None, None)


def test_heads_of_a_fused_and_transposed_projection_are_counted() -> None:
    model = tiny_model("gpt2")
    with torch.no_grad():
        model.transformer.h[0].attn.c_attn.weight[:, 40:48] = 0.0
    result = measure(iter_model(model), config=model.config.to_dict()).result
    fused = next(t for t in result.tensors if t.kind == "qkv" and t.layer == 0)
    assert (fused.heads, fused.empty_heads, fused.rows) == (12, 1, 96)


def test_without_a_config_heads_are_not_known() -> None:
    found = one(torch.zeros(32, 32), "model.layers.0.self_attn.q_proj.weight")
    assert (found.heads, found.empty_heads) == (None, None)


# --- whole models ---------------------------------------------------------------------------------


def _measure_folder(folder: Path, kind: str = "safetensors", **options: Any) -> Measurement:
    files = sorted(folder.glob(f"*.{kind}"))
    config = json.loads((folder / "config.json").read_text())
    return measure(iter_tensors(files, kind), config=config, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_a_models_sums_equal_those_of_the_model_in_torch(tmp_path: Path, family: str) -> None:
    folder = save_tiny_model(tmp_path / "m", family, sparsity=0.3, dtype=torch.bfloat16)
    model = prune_magnitude(tiny_model(family), 0.3).to(torch.bfloat16)
    result = _measure_folder(folder).result
    parameters = list(model.parameters())
    assert result.total.parameters == sum(p.numel() for p in parameters)
    assert result.total.zeros == sum(int((p == 0).sum()) for p in parameters)
    linear = [module.weight for module in _linear_modules(model)]
    assert result.linear.parameters == sum(w.numel() for w in linear)
    assert result.linear.zeros == sum(int((w == 0).sum()) for w in linear)
    for part in (result.layers, result.kinds.values()):
        assert sum(count.zeros for count in part) == result.linear.zeros
        assert sum(count.parameters for count in part) == result.linear.parameters
    assert [layer.layer for layer in result.layers] == [0, 1]


def test_hashes_and_counts_do_not_depend_on_shards_order_or_format(tmp_path: Path) -> None:
    whole = save_tiny_model(tmp_path / "whole", sparsity=0.4)
    shards = save_tiny_model(tmp_path / "shards", sparsity=0.4, max_shard_size="40KB")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_bytes((whole / "config.json").read_bytes())
    state = dict(iter_tensors(list(whole.glob("*.safetensors")), "safetensors"))
    torch.save(dict(reversed(state.items())), pickled / "m.bin")
    expected = _measure_folder(whole)
    assert len(list(shards.glob("*.safetensors"))) > 2
    assert _measure_folder(shards) == expected
    assert _measure_folder(pickled, "bin") == expected
    model = prune_magnitude(tiny_model(), 0.4)
    assert measure(iter_model(model), config=model.config.to_dict()) == expected


@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_a_stored_copy_of_a_tied_matrix_changes_no_total_and_no_hash(
    tmp_path: Path, family: str
) -> None:
    folder = save_tiny_model(tmp_path / "m", family)
    once = _measure_folder(folder)
    state = tiny_model(family).state_dict()
    assert "lm_head.weight" in state
    torch.save(dict(state), folder / "m.bin")
    twice = _measure_folder(folder, "bin")
    assert twice.result.total == once.result.total
    assert (twice.weights_sha256, twice.mask_sha256) == (once.weights_sha256, once.mask_sha256)
    copy = next(t for t in twice.result.tensors if t.name == "lm_head.weight")
    assert copy.tied_to is not None
    assert "embed_tokens" in copy.tied_to or "wte" in copy.tied_to


def test_a_tie_that_is_told_is_believed_and_an_untied_head_counts() -> None:
    embedding, head = torch.ones(4, 8), torch.ones(4, 8) * 2
    pairs = [("lm_head.weight", head), ("model.embed_tokens.weight", embedding)]
    assert measure(pairs).result.total.parameters == 64
    told = measure(pairs, tied={"lm_head.weight": "model.embed_tokens.weight"})
    assert told.result.total.parameters == 32


def test_a_shared_matrix_hashes_alike_under_either_of_its_names() -> None:
    matrix, other = torch.randn(4, 8), ("model.norm.weight", torch.ones(8))
    names = ("lm_head.weight", "model.embed_tokens.weight")
    hashes = {measure([(name, matrix), other]).weights_sha256 for name in names}
    hashes |= {measure([*((name, matrix) for name in names), other]).weights_sha256}
    assert len(hashes) == 1
    assert measure([(names[0], matrix * 2), other]).weights_sha256 not in hashes


def test_hashes_tell_names_dtypes_shapes_and_bytes_apart() -> None:
    base = torch.arange(1.0, 33.0).reshape(4, 8)
    variants = [
        (LINEAR, base),
        (LINEAR.replace("up", "gate"), base),
        (LINEAR, base.reshape(8, 4)),
        (LINEAR, base.to(torch.float16)),
        (LINEAR, base.view(torch.int32).view(torch.float32) + 1),
    ]
    assert len({measure([variant]).weights_sha256 for variant in variants}) == len(variants)


def test_the_mask_hash_follows_the_zeros_of_linear_layers_alone() -> None:
    norm = ("model.norm.weight", torch.ones(8))
    base = torch.randn(4, 8)
    base[0, :3] = 0.0
    mask = measure([(LINEAR, base), norm]).mask_sha256
    assert measure([(LINEAR, base * 3), ("model.norm.weight", torch.zeros(8))]).mask_sha256 == mask
    signed = base.clone()
    signed[0, 0] = -0.0
    assert measure([(LINEAR, signed), norm]).mask_sha256 == mask
    for spot in ((0, 0), (3, 7)):
        moved = base.clone()
        moved[spot] = 0.0 if moved[spot] else 1.0
        assert measure([(LINEAR, moved), norm]).mask_sha256 != mask


@settings(max_examples=30, deadline=None)
@given(matrix=weights(), other=weights())
def test_hashing_alone_gives_the_same_hashes_and_sums(
    matrix: torch.Tensor, other: torch.Tensor
) -> None:
    pairs = [
        (LINEAR, matrix),
        ("model.embed_tokens.weight", other),
        ("model.norm.weight", other[0]),
    ]
    whole, alone = measure(pairs), hash_weights(pairs)
    assert (alone.weights_sha256, alone.mask_sha256, alone.nonfinite) == (
        whole.weights_sha256,
        whole.mask_sha256,
        whole.nonfinite,
    )
    assert (alone.result.linear, alone.result.total) == (whole.result.linear, whole.result.total)


def test_nonfinite_weights_are_counted_and_their_tensors_named() -> None:
    bad = torch.ones(4, 4)
    bad[1, 1], bad[2, 2] = math.nan, -math.inf
    found = measure([(LINEAR, bad), ("model.norm.weight", torch.ones(4))])
    assert found.nonfinite == (LINEAR,)
    assert found.result.tensors[0].nonfinite == 2


def test_progress_is_told_every_byte(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(3), "b.rotary_emb.inv_freq": torch.ones(5)}
    save_file(tensors, tmp_path / "m.safetensors")
    told: list[int] = []
    files = [tmp_path / "m.safetensors"]
    measure(iter_tensors(files, "safetensors"), advance=told.append)
    assert sum(told) == 4 * 8


def test_stored_constants_are_neither_counted_nor_hashed() -> None:
    weight = (LINEAR, torch.randn(4, 4))
    constants = [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", torch.zeros(4)),
        ("h.0.attn.bias", torch.zeros(1, 1, 8, 8)),
        ("h.0.attn.masked_bias", torch.tensor(-1e4)),
    ]
    assert measure([weight, *constants]) == measure([weight])
