"""What is added up, printed and drawn of a measurement."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console, Group
from support.golden import check_golden

from prunescope.errors import OutputError
from prunescope.evaluate.sparsity import (
    differing_shapes,
    drift_report,
    find_alarms,
    layer_spread,
    measure,
    measure_drift,
    sparsity_report,
    write_pictures,
)
from prunescope.evaluate.sparsity.aggregate import (
    TIERS,
    block_count,
    linear_tensors,
    order_kinds,
    parts_by,
)
from prunescope.evaluate.sparsity.pictures import block_tiers, heat_map
from prunescope.records import (
    EvalRecord,
    Labels,
    LayerSparsity,
    ModelInfo,
    Protocol,
    SparsityResult,
    ZeroCount,
    utc_now,
)


def checkpoint(blocks: int = 3, pruned: tuple[int, ...] = (0, 2)) -> dict[str, torch.Tensor]:
    """Decoder blocks with q and up; those of ``pruned`` are 2:4, and up has an empty block."""
    tensors = {"model.embed_tokens.weight": torch.ones(8, 36), "model.norm.weight": torch.ones(36)}
    for layer in range(blocks):
        query, up = torch.ones(16, 36), torch.ones(40, 36)
        if layer in pruned:
            query[:, 0::4] = query[:, 1::4] = 0.0
            up[:, 2::4] = up[:, 3::4] = 0.0
            up[:16, :16] = 0.0
        tensors[f"model.layers.{layer}.self_attn.q_proj.weight"] = query
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"] = up
    return tensors


def result(**options: object) -> SparsityResult:
    return measure(checkpoint(**options).items()).result  # type: ignore[arg-type]


def with_layers(*percents: float) -> SparsityResult:
    layers = tuple(
        LayerSparsity(layer=n, zeros=round(p * 100), parameters=10_000)
        for n, p in enumerate(percents)
    )
    count = ZeroCount(zeros=0, parameters=1)
    return SparsityResult(linear=count, total=count, layers=layers)


def printed(group: Group) -> str:
    console = Console(width=100, no_color=True, legacy_windows=False)
    with console.capture() as capture:
        console.print(group)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


# --- sums -----------------------------------------------------------------------------------------


def test_parts_are_the_sums_of_their_tensors() -> None:
    tensors = linear_tensors(result())
    parts = parts_by(tensors, lambda tensor: tensor.kind)
    assert list(parts) == ["up", "q"]
    ups = [tensor for tensor in tensors if tensor.kind == "up"]
    up = parts["up"]
    assert up.tensors == 3
    assert up.count == ZeroCount(
        zeros=sum(t.zeros for t in ups), parameters=sum(t.parameters for t in ups)
    )
    assert up.groups["2:4"].total == 3 * 40 * 9
    assert up.groups["2:4"].complying == 2 * 40 * 9
    assert up.groups["2:4"].empty == 2 * 16 * 4
    assert (up.rows, up.columns) == (3 * 40, 3 * 36)
    assert (up.empty_rows, up.empty_columns) == (0, 2 * 18)
    assert up.blocks is not None
    assert block_count(up.blocks) == 3 * 3 * 3
    assert (up.blocks.empty, up.blocks.dense) == (2, 9)


def test_the_spread_is_numpys() -> None:
    spread = layer_spread(with_layers(50, 51, 49, 50.5, 90, 50, 10))
    assert spread is not None
    assert spread.median == np.median([50, 51, 49, 50.5, 90, 50, 10]) / 100
    assert (spread.lowest.layer, spread.highest.layer) == (6, 4)
    assert [layer.layer for layer in spread.standing_out] == [4, 6]


def test_even_layers_have_none_that_stands_out() -> None:
    for percents in ((50.0,) * 8, (50.0, 50.2, 49.9, 50.1, 50.6), tuple(range(20, 60))):
        spread = layer_spread(with_layers(*percents))
        assert spread is not None
        assert spread.standing_out == ()


def test_one_layer_apart_from_equal_ones_stands_out() -> None:
    spread = layer_spread(with_layers(50, 50, 50, 53, 50))
    assert spread is not None
    assert [layer.layer for layer in spread.standing_out] == [3]


def test_a_model_without_decoder_blocks_has_no_spread() -> None:
    assert layer_spread(with_layers()) is None


def test_shapes_that_differ_between_blocks_are_those_of_structured_pruning() -> None:
    tensors = checkpoint()
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.ones(24, 36)
    found = differing_shapes(measure(tensors.items()).result)
    assert found == {"up": {(40, 36): [0, 2], (24, 36): [1]}}
    assert differing_shapes(result()) == {}


def test_experts_and_kinds_with_two_shapes_by_design_are_no_structured_pruning() -> None:
    tensors = {
        f"model.layers.{layer}.mlp.{name}.weight": torch.ones(size, 4)
        for layer in range(2)
        for name, size in (("experts.0.up_proj", 4 + layer), ("fc1", 8), ("up_proj", 4))
    }
    assert differing_shapes(measure(tensors.items()).result) == {}


def test_kinds_come_in_the_order_of_a_decoder_block() -> None:
    assert order_kinds({"down", "q", "zeta", "alpha", "o"}) == ["q", "o", "down", "alpha", "zeta"]
    by_name = dict(sorted(checkpoint().items()))  # as safetensors keeps them: mlp comes first
    assert list(measure(by_name.items()).result.kinds) == ["q", "up"]


# --- text -----------------------------------------------------------------------------------------


def test_the_report_of_a_checkpoint_equals_golden() -> None:
    tensors = checkpoint(blocks=4, pruned=(0, 2, 3))
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.ones(24, 36)
    measurement = measure(tensors.items())
    record = EvalRecord(
        record_id="0" * 32,
        status="finished",
        started_at=utc_now(),
        labels=Labels(role="pruned", target_sparsity=0.5, pattern="2:4"),
        model=ModelInfo(requested="x", name="x", kind="safetensors"),
        protocol=Protocol(),
        sparsity=measurement.result,
    )
    report = sparsity_report(measurement.result, title="tiny", alarms=find_alarms(record))
    check_golden("sparsity-report.txt", printed(report))


def test_the_report_of_a_model_without_linear_layers_is_its_totals() -> None:
    text = printed(sparsity_report(measure([("x", torch.zeros(3))]).result))
    assert "all parameters" in text
    assert "100.00%" in text
    assert "Blocks" not in text


def test_the_drift_of_two_checkpoints_equals_golden() -> None:
    first, second = checkpoint(), checkpoint()
    second["model.layers.0.self_attn.q_proj.weight"][3, :9] = 1.0
    second["model.layers.1.mlp.up_proj.weight"][0] = 0.0
    second["model.layers.2.self_attn.q_proj.weight"] = torch.ones(8, 36)
    second["model.layers.3.self_attn.q_proj.weight"] = torch.ones(8, 36)
    drift = measure_drift(iter(sorted(first.items())), iter(sorted(second.items())))
    check_golden("sparsity-drift.txt", printed(drift_report(drift, first="A", second="B")))


def test_a_mask_that_was_kept_or_is_not_known_is_said_so() -> None:
    pairs = sorted(checkpoint().items())
    kept = measure_drift(iter(pairs), iter(pairs))
    assert "The mask is kept" in printed(drift_report(kept, first="A", second="B"))
    missing = "model.layers.2.self_attn.q_proj.weight"
    unknown = measure_drift(iter(pairs), iter([p for p in pairs if p[0] != missing]))
    text = printed(drift_report(unknown, first="A", second="B"))
    assert "some could not be" in text
    assert f"only in A: {missing}" in text


def test_a_share_is_0_or_100_percent_only_when_it_is() -> None:
    weight = torch.ones(1000, 100)
    weight[0, 0] = 0.0
    text = printed(sparsity_report(measure([("model.layers.0.mlp.up_proj.weight", weight)]).result))
    line = next(line for line in text.splitlines() if line.split()[:1] == ["up"])
    assert "99.99%" not in line.split()[1]
    blocks = text.partition("Blocks of")[2]
    row = next(line for line in blocks.splitlines() if line.split()[:1] == ["up"])
    assert row.split()[4:6] == ["99.77%", "0.23%"]


# --- pictures -------------------------------------------------------------------------------------


def test_both_pictures_are_written_as_png_and_svg(tmp_path: Path) -> None:
    written = write_pictures(result(), tmp_path / "plots")
    assert [path.name for path in written] == [
        "sparsity-heatmap.png",
        "sparsity-heatmap.svg",
        "block-tiers.png",
        "block-tiers.svg",
    ]
    for path in written:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert min(image.size) > 200
                assert len(image.convert("RGB").getcolors(2**24) or []) > 5
        else:
            text = path.read_text()
            assert text.startswith("<?xml")
            assert not re.search(r"(?:href|src)=\"http", text)


def test_the_same_result_is_the_same_bytes(tmp_path: Path) -> None:
    first, second = (write_pictures(result(), tmp_path / name) for name in ("one", "two"))
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_the_heat_map_shows_each_kind_of_each_block() -> None:
    found = result()
    figure = heat_map(found)
    assert figure is not None
    axes = figure.axes[0]
    grid = np.ma.filled(axes.images[0].get_array(), np.nan)
    expected = [
        [
            100 * sum(t.zeros for t in tensors) / sum(t.parameters for t in tensors)
            for kind in ("q", "up")
            for tensors in [[t for t in found.tensors if (t.layer, t.kind) == (layer, kind)]]
        ]
        for layer in range(3)
    ]
    assert np.allclose(grid, expected)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["q", "up"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1", "2"]


def test_the_bars_of_a_block_add_up_to_all_its_blocks() -> None:
    figure = block_tiers(result())
    assert figure is not None
    axes = figure.axes[0]
    heights = np.array([[bar.get_height() for bar in stack] for stack in axes.containers])
    assert heights.shape == (len(TIERS), 3)
    assert np.allclose(heights.sum(axis=0), 100)
    assert np.allclose(heights[:, 1], [0, 0, 0, 100, 0])
    # of 12 blocks of a pruned layer one is empty, the rest is 2:4
    assert np.allclose(heights[:, 0], [100 / 12, 0, 1100 / 12, 0, 0])


def test_a_deep_model_has_readable_ticks() -> None:
    figure = heat_map(result(blocks=61, pruned=(1,)))
    assert figure is not None
    assert len(figure.axes[0].get_yticklabels()) <= 20
    assert figure.get_size_inches()[1] < 16


def test_without_linear_layers_nothing_is_drawn(tmp_path: Path) -> None:
    assert write_pictures(measure([("x", torch.zeros(3))]).result, tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "plots").write_text("in the way")
    with pytest.raises(OutputError, match="plots"):
        write_pictures(result(), tmp_path / "plots")
