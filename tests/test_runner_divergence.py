"""An interrupted evaluation's divergence and kept log-probabilities are taken over whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.cli import ROWS

from prunescope.evaluate.prepare import prepare
from prunescope.evaluate.progress import SilentProgress
from prunescope.evaluate.runner import run
from prunescope.records import EvalConfig, EvalRecord, Labels, Stage, read_record, topk_path


class Listener(SilentProgress):
    """Keeps what began, and stops the evaluation where it is told to."""

    def __init__(self, stop_at: str | None = None) -> None:
        super().__init__()
        self.begun: list[str] = []
        self._stop_at = stop_at

    def start(self, stage: Stage, description: str, total: float | None) -> None:
        self.begun.append(description)
        if description == self._stop_at:
            raise KeyboardInterrupt


def evaluate(
    config: EvalConfig, directory: Path, listener: Listener, interrupted: Path | None = None
) -> EvalRecord:
    prepared = prepare(config, listener)
    record = prepared.new_record(Labels())
    return run(prepared, record, directory, listener, interrupted=interrupted)


@pytest.fixture
def config(tiny_llama: Path, tiny_llama_pruned: Path) -> EvalConfig:
    return EvalConfig.model_validate(
        {
            "model": str(tiny_llama_pruned),
            "device": "cpu",
            "data_dir": str(ROWS),
            "seqlen": 64,
            "nsamples": 4,
            "limit": 2,
            "tasks": ("boolq", "rte"),
            "kl_reference": str(tiny_llama),
            "keep_topk": 8,
        }
    )


def test_divergence_and_topk_are_taken_over_with_equal_numbers(
    config: EvalConfig, tmp_path: Path
) -> None:
    whole = evaluate(config, tmp_path / "whole", Listener())
    assert whole.divergence["wikitext2"].mean > 0
    with pytest.raises(KeyboardInterrupt):
        evaluate(config, tmp_path / "a", Listener(stop_at="rte"))
    stopped = read_record(tmp_path / "a")
    assert stopped.status == "failed"
    assert stopped.divergence == whole.divergence
    listener = Listener()
    record = evaluate(config, tmp_path / "b", listener, tmp_path / "a")
    assert "wikitext2" not in listener.begun
    assert record.divergence == stopped.divergence
    assert record.topk == stopped.topk
    assert read_record(tmp_path / "b") == record
    paths = [topk_path(tmp_path / side, "wikitext2") for side in ("a", "b", "whole")]
    assert paths[1].read_bytes() == paths[0].read_bytes()
    with np.load(paths[1]) as arrays, np.load(paths[2]) as undisturbed:
        assert arrays["logprob"].shape == (4, 63, 8)
        for name in undisturbed.files:
            np.testing.assert_array_equal(arrays[name], undisturbed[name])


def test_without_the_kept_file_the_perplexity_is_taken_again(
    config: EvalConfig, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        evaluate(config, tmp_path / "a", Listener(stop_at="rte"))
    stopped = read_record(tmp_path / "a")
    topk_path(tmp_path / "a", "wikitext2").unlink()
    listener = Listener()
    record = evaluate(config, tmp_path / "b", listener, tmp_path / "a")
    assert "wikitext2" in listener.begun
    assert record.divergence == stopped.divergence
    assert record.topk["wikitext2"].k == 8
    assert topk_path(tmp_path / "b", "wikitext2").is_file()


def test_an_evaluation_with_another_reference_takes_nothing_over(
    config: EvalConfig, tmp_path: Path
) -> None:
    other = config.model_copy(update={"kl_reference": None})
    keys = {prepare(c, Listener()).record_key for c in (config, other)}
    assert len(keys) == 2
