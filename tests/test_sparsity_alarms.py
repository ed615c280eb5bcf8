"""Each alarm sounds when it must, names what it found, and is silent otherwise."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.models import prune_magnitude, tiny_model
from support.records import original_record, write_example

from prunescope.errors import SettingError
from prunescope.evaluate.checkpoint import iter_model
from prunescope.evaluate.sparsity import Measurement, check_pattern, find_alarms, measure
from prunescope.evaluate.sparsity import same_answers as same
from prunescope.records import Alarm, EvalRecord, Labels, samples_path


def measured(model: Any) -> Measurement:
    return measure(iter_model(model), config=model.config.to_dict())


def record(measurement: Measurement, **labels: Any) -> EvalRecord:
    base = original_record()
    model = base.model.model_copy(update={"weights_sha256": measurement.weights_sha256})
    return base.model_copy(
        update={"labels": Labels(**labels), "sparsity": measurement.result, "model": model}
    )


def codes(alarms: tuple[Alarm, ...]) -> list[str]:
    assert all(alarm.message and not alarm.message.endswith(".") for alarm in alarms)
    return [alarm.code for alarm in alarms]


def test_a_dense_original_and_a_run_that_is_what_it_says_raise_none() -> None:
    assert find_alarms(record(measured(tiny_model()), role="original")) == ()
    pruned = measured(prune_magnitude(tiny_model(), 0.5))
    assert find_alarms(record(pruned, role="pruned", target_sparsity=0.5)) == ()


@pytest.mark.parametrize(("sparsity", "sounds"), [(0.0, True), (0.005, True), (0.02, False)])
def test_pruned_in_name_only(sparsity: float, sounds: bool) -> None:
    found = find_alarms(record(measured(prune_magnitude(tiny_model(), sparsity)), role="pruned"))
    assert codes(found) == (["not-pruned"] if sounds else [])


def test_pruned_in_name_only_says_how_much_is_zero() -> None:
    (alarm,) = find_alarms(record(measured(tiny_model()), role="pruned"))
    assert "0.00% zero" in alarm.message


@pytest.mark.parametrize(
    ("target", "sounds"), [(0.5, False), (0.509, False), (0.52, True), (0.48, True)]
)
def test_a_target_missed_by_more_than_a_point(target: float, sounds: bool) -> None:
    measurement = measured(prune_magnitude(tiny_model(), 0.5))
    found = find_alarms(record(measurement, target_sparsity=target))
    assert codes(found) == (["target-missed"] if sounds else [])
    if sounds:
        assert "50.00%" in found[0].message
        assert f"{target:.2%}" in found[0].message


def test_a_target_missed_by_exactly_a_point_is_no_alarm() -> None:
    measurement = measured(prune_magnitude(tiny_model(), 0.5))
    assert find_alarms(record(measurement, target_sparsity=0.51)) == ()
    assert find_alarms(record(measurement, target_sparsity=0.49)) == ()


def _two_of_four() -> Any:
    model = tiny_model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "layers." in name:
                parameter.view(-1)[0::4] = 0.0
                parameter.view(-1)[2::4] = 0.0
    return model


def test_a_claimed_pattern_that_holds_raises_none() -> None:
    measurement = measured(_two_of_four())
    for pattern in ("2:4", "4:8", "1:2"):
        assert find_alarms(record(measurement, pattern=pattern)) == ()
    assert codes(find_alarms(record(measurement, pattern="1:4"))) == ["pattern-broken"]


def test_a_claimed_pattern_that_broke_names_the_first_offending_tensor() -> None:
    model = _two_of_four()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0:3] = 1.0
        model.model.layers[0].self_attn.v_proj.weight[3, 4:8] = 1.0
        model.model.layers[0].self_attn.v_proj.weight[5, 4:8] = 1.0
    (alarm,) = find_alarms(record(measured(model), pattern="2:4"))
    assert alarm.code == "pattern-broken"
    assert "2 of 14 linear layers" in alarm.message
    assert "model.layers.0.self_attn.v_proj.weight (2 of 128 groups)" in alarm.message


def test_a_layer_that_was_left_dense_breaks_a_claimed_pattern() -> None:
    model = _two_of_four()
    with torch.no_grad():
        torch.nn.init.normal_(model.model.layers[0].mlp.up_proj.weight)
    (alarm,) = find_alarms(record(measured(model), pattern="2:4"))
    assert "model.layers.0.mlp.up_proj.weight" in alarm.message


@pytest.mark.parametrize("wrong", ["3:4", "2:4:8", "", "half"])
def test_a_pattern_that_is_not_counted_is_refused(wrong: str) -> None:
    with pytest.raises(SettingError, match="2:4"):
        check_pattern(wrong)


def test_a_pattern_that_is_counted_is_taken() -> None:
    assert check_pattern(" 2:4 ") == "2:4"


def test_weights_that_are_the_originals() -> None:
    original = record(measured(tiny_model()), role="original")
    copy = record(measured(tiny_model()), role="pruned")
    assert codes(find_alarms(copy, baseline=original)) == ["weights-unchanged", "not-pruned"]
    other = record(measured(prune_magnitude(tiny_model(), 0.5)), role="pruned")
    assert find_alarms(other, baseline=original) == ()
    assert find_alarms(original, baseline=original) == ()


def test_answers_that_are_all_the_originals() -> None:
    original = record(measured(tiny_model()), role="original")
    pruned = record(measured(prune_magnitude(tiny_model(), 0.5)), role="pruned")
    found = find_alarms(pruned, baseline=original, answers_unchanged=True)
    assert codes(found) == ["answers-unchanged"]
    for unchanged in (False, None):
        assert find_alarms(pruned, baseline=original, answers_unchanged=unchanged) == ()


def test_loglikelihoods_are_compared_document_by_document(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_example(one, "original")
    write_example(two, "pruned")
    assert same(one, one) is True
    assert same(one, two) is False


def _samples(directory: Path, task: str, rows: list[tuple[str, list[float]]]) -> Path:
    path = samples_path(directory, task)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {"doc_sha256": [row[0] for row in rows], "loglikelihoods": [row[1] for row in rows]},
        schema=pa.schema([("doc_sha256", pa.string()), ("loglikelihoods", pa.list_(pa.float64()))]),
    )
    pq.write_table(table, path)
    return directory


def test_noise_in_loglikelihoods_is_no_change_and_one_document_is(tmp_path: Path) -> None:
    rows = [("a", [-1.0, -2.0]), ("b", [-3.0])]
    base = _samples(tmp_path / "base", "boolq", rows)
    noisy = _samples(tmp_path / "noisy", "boolq", [("b", [-3.00001]), ("a", [-1.00001, -2.0])])
    moved = _samples(tmp_path / "moved", "boolq", [("a", [-1.0, -2.001]), ("b", [-3.0])])
    fewer = _samples(tmp_path / "fewer", "boolq", [("a", [-1.0])])
    broken = _samples(tmp_path / "broken", "boolq", [("a", [math.nan, -2.0])])
    assert same(base, noisy) is True
    assert same(base, moved) is False
    assert same(base, fewer) is False
    assert same(base, broken) is False


def test_without_a_common_document_nothing_is_known(tmp_path: Path) -> None:
    base = _samples(tmp_path / "base", "boolq", [("a", [-1.0]), ("generated", [])])
    assert same(base, _samples(tmp_path / "other", "boolq", [("z", [-1.0])])) is None
    assert same(base, _samples(tmp_path / "task", "rte", [("a", [-1.0])])) is None
    assert same(base, _samples(tmp_path / "text", "boolq", [("generated", [])])) is None
    assert same(base, tmp_path / "empty") is None


def test_zeros_in_embeddings_or_norms() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[2] = 1.0  # the padding token's row is zero
        model.model.embed_tokens.weight[:, ::4] = 0.0
        model.model.layers[1].input_layernorm.weight[3] = 0.0
    (alarm,) = find_alarms(record(measured(model)))
    assert alarm.code == "zeros-outside"
    assert "2 tensors" in alarm.message
    assert "model.embed_tokens.weight (25.00%)" in alarm.message


def test_whole_rows_rounding_and_zero_centred_norms_are_no_stray_zeros() -> None:
    model = tiny_model()
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        embedding[100:200] = 0.0  # tokens that never occurred
        embedding[:40, :10] = 0.0  # 3 %
        torch.nn.init.zeros_(model.model.layers[0].input_layernorm.weight)
    assert find_alarms(record(measured(model))) == ()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_in_weights_name_the_tensor(value: float) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, :2] = value
        model.model.norm.weight[0] = value
    (alarm,) = find_alarms(record(measured(model)))
    assert alarm.code == "nonfinite-weights"
    assert "2 tensors hold NaN or infinity, first model.norm.weight (1 weights)" in alarm.message


def test_layers_at_100_percent() -> None:
    model = tiny_model()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layers.1." in name and parameter.dim() == 2:
                parameter.zero_()
        model.model.layers[0].self_attn.q_proj.weight.zero_()
    block, layer = find_alarms(record(measured(model)))
    assert codes((block, layer)) == ["all-zero", "all-zero"]
    assert "decoder block 1" in block.message
    assert "model.layers.0.self_attn.q_proj.weight" in layer.message


def test_the_tensors_may_come_apart_from_the_record() -> None:
    measurement = measured(prune_magnitude(tiny_model(), 0.5))
    slim = measurement.result.model_copy(update={"tensors": ()})
    stored = record(measurement, pattern="2:4").model_copy(update={"sparsity": slim})
    assert codes(find_alarms(stored, sparsity=measurement.result)) == ["pattern-broken"]


def test_alarms_survive_the_record(tmp_path: Path) -> None:
    alarms = find_alarms(record(measured(tiny_model()), role="pruned", pattern="2:4"))
    stored = original_record().model_copy(update={"alarms": alarms})
    assert EvalRecord.model_validate_json(stored.model_dump_json()) == stored
    assert codes(stored.alarms) == ["not-pruned", "pattern-broken"]
