"""One evaluation, from a config to a record directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.cli import ROWS
from support.models import save_tiny_model

from prunescope.errors import SettingError
from prunescope.evaluate.prepare import prepare
from prunescope.evaluate.progress import SilentProgress
from prunescope.evaluate.runner import run
from prunescope.records import (
    DEFAULT_TASKS,
    SAMPLES_COLUMNS,
    TOKENS_ARRAYS,
    EvalConfig,
    EvalRecord,
    Labels,
    Stage,
    read_record,
    read_tensors,
    samples_path,
    tokens_path,
)


class Listener(SilentProgress):
    """Keeps what began, and stops the evaluation where it is told to."""

    def __init__(self, stop_at: str | None = None) -> None:
        super().__init__()
        self.begun: list[tuple[Stage, str]] = []
        self._stop_at = stop_at

    def start(self, stage: Stage, description: str, total: float | None) -> None:
        self.begun.append((stage, description))
        if description == self._stop_at:
            raise KeyboardInterrupt


def config_for(model: Path, **changes: object) -> EvalConfig:
    settings = {"device": "cpu", "data_dir": str(ROWS), "seqlen": 64, "limit": 4}
    return EvalConfig.model_validate({"model": str(model), **settings, **changes})


def evaluate(
    config: EvalConfig,
    directory: Path,
    listener: Listener | None = None,
    interrupted: Path | None = None,
) -> EvalRecord:
    progress = listener or Listener()
    prepared = prepare(config, progress)
    record = prepared.new_record(Labels())
    return run(prepared, record, directory, progress, interrupted=interrupted)


@pytest.fixture(scope="module")
def whole(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    evaluate(config_for(tiny_llama), directory)
    return directory


def test_the_record_directory_holds_every_part_in_its_shape(whole: Path) -> None:
    record = read_record(whole)
    assert record.status == "finished"
    assert record.finished_at is not None
    assert record.finished_at >= record.started_at
    assert tuple(record.tasks) == DEFAULT_TASKS
    assert len(read_tensors(whole).tensors) > 10
    for task in DEFAULT_TASKS:
        frame = pd.read_parquet(samples_path(whole, task))
        assert list(frame.columns) == list(SAMPLES_COLUMNS)
        assert len(frame) == record.tasks[task].n == record.protocol.tasks[task].n
    perplexity = record.perplexity["wikitext2"]
    with np.load(tokens_path(whole, "wikitext2"), allow_pickle=False) as arrays:
        assert set(TOKENS_ARRAYS) >= set(arrays) >= {"logprob", "target", "top1", "window_nll"}
        assert arrays["logprob"].shape == (perplexity.windows, perplexity.seqlen - 1)
        mean = -arrays["logprob"].astype(np.float64).mean()
    assert np.exp(mean) == pytest.approx(perplexity.perplexity, rel=1e-6)


def test_the_record_says_how_the_numbers_were_taken(whole: Path) -> None:
    record = read_record(whole)
    assert record.protocol.scorer in ("prefix-tree", "lm-eval-hf")
    assert record.protocol.dtype == record.model.dtype == "float32"
    assert record.protocol.seqlen == record.perplexity["wikitext2"].seqlen == 64
    assert record.protocol.limit == 4
    assert set(record.provenance.timings) == {"load", "sparsity", "perplexity", "tasks"}
    assert record.model.weights_sha256 is not None
    assert record.model.tokenizer_sha256 is not None
    assert record.model.parameters == 43168


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"batch_size": 1}, True),
        ({"cache_dir": "elsewhere"}, True),
        ({"limit": 3}, False),
        ({"num_fewshot": 1}, False),
        ({"seqlen": 32}, False),
        ({"nsamples": 1}, False),
        ({"dtype": "bfloat16"}, False),
        ({"tasks": ("boolq",)}, False),
        ({"skip": frozenset({"perplexity"})}, False),
        ({"seed": 1}, False),
    ],
)
def test_the_key_changes_with_whatever_decides_a_number(
    tiny_llama: Path, whole: Path, changes: dict[str, object], same: bool
) -> None:
    key = prepare(config_for(tiny_llama, **changes), Listener()).record_key
    assert (key == read_record(whole).record_key) is same


def test_the_key_changes_with_the_weights_and_with_the_config(
    tiny_llama: Path, tiny_llama_pruned: Path, whole: Path, tmp_path: Path
) -> None:
    key = read_record(whole).record_key
    assert prepare(config_for(tiny_llama_pruned), Listener()).record_key != key
    other = save_tiny_model(tmp_path / "other", rms_norm_eps=1e-2)
    assert prepare(config_for(other), Listener()).record_key != key


def test_sharding_and_format_do_not_change_the_key(tiny_llama: Path, tmp_path: Path) -> None:
    sharded = save_tiny_model(tmp_path / "sharded", max_shard_size="50KB")
    assert len(list(sharded.glob("*.safetensors"))) > 1
    keys = {prepare(config_for(m), Listener()).record_key for m in (tiny_llama, sharded)}
    assert len(keys) == 1


def test_an_interrupted_evaluation_says_so_and_keeps_what_it_had(
    tiny_llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        evaluate(config_for(tiny_llama), tmp_path, Listener(stop_at="hellaswag"))
    record = read_record(tmp_path)
    assert record.status == "failed"
    assert record.error is not None
    assert record.error.type == "KeyboardInterrupt"
    assert tuple(record.tasks) == ("boolq", "rte")
    assert samples_path(tmp_path, "rte").is_file()
    assert "wikitext2" in record.perplexity


def test_the_same_evaluation_goes_on_behind_the_last_finished_task_with_equal_numbers(
    tiny_llama: Path, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        evaluate(config_for(tiny_llama), tmp_path / "a", Listener(stop_at="hellaswag"))
    listener = Listener()
    record = evaluate(config_for(tiny_llama), tmp_path / "b", listener, tmp_path / "a")
    assert [name for stage, name in listener.begun if stage == "tasks"] == list(DEFAULT_TASKS[2:])
    assert ("perplexity", "wikitext2") not in listener.begun
    undisturbed = read_record(whole)
    assert {n: t.metrics for n, t in record.tasks.items()} == {
        n: t.metrics for n, t in undisturbed.tasks.items()
    }
    assert record.perplexity == undisturbed.perplexity
    for task in DEFAULT_TASKS:
        pd.testing.assert_frame_equal(
            pd.read_parquet(samples_path(tmp_path / "b", task)),
            pd.read_parquet(samples_path(whole, task)),
        )
    assert any("taken over" in note for note in record.provenance.notes)


def test_skipped_stages_leave_nothing_behind(tiny_llama: Path, tmp_path: Path) -> None:
    config = config_for(tiny_llama, skip=frozenset({"sparsity", "tasks"}))
    record = evaluate(config, tmp_path)
    assert record.sparsity is None
    assert record.tasks == {}
    assert record.model.weights_sha256 is not None
    assert not (tmp_path / "samples").exists()
    assert not (tmp_path / "sparsity.json").exists()


def test_sparsity_alone_builds_no_model(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("prunescope.evaluate.loading.load_model", refuse)
    config = config_for(tiny_llama, skip=frozenset({"perplexity", "tasks"}))
    assert evaluate(config, tmp_path).sparsity is not None


def test_the_load_stage_cannot_be_skipped(tiny_llama: Path) -> None:
    with pytest.raises(SettingError, match="load"):
        prepare(config_for(tiny_llama, skip=frozenset({"load"})), Listener())


@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_other_families_evaluate_as_well(family: str, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / family, family, sparsity=0.25)
    record = evaluate(config_for(model, tasks=("arc_easy",), nsamples=1), tmp_path / "record")
    assert record.sparsity is not None
    assert record.sparsity.linear.fraction == pytest.approx(0.25, abs=0.01)
    assert record.tasks["arc_easy"].n == 4
    assert np.isfinite(record.perplexity["wikitext2"].perplexity)
