"""An evaluation that is cut off goes on where it was, and ends with the same bits."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support.cli import ROWS

from prunescope.evaluate.prepare import prepare
from prunescope.evaluate.progress import SilentProgress
from prunescope.evaluate.runner import run
from prunescope.evaluate.scoring.kept import KeptAnswers, ScorerState
from prunescope.records import (
    EvalConfig,
    EvalRecord,
    Labels,
    Stage,
    read_record,
    samples_path,
)
from prunescope.tracking.store import open_store

TASKS = ("hellaswag", "arc_easy")


class Cut(SilentProgress):
    """Stops the evaluation once so many requests were answered."""

    def __init__(self, after: int | None) -> None:
        super().__init__()
        self.left = after
        self.answered = 0
        self._in_tasks = False

    def start(self, stage: Stage, description: str, total: float | None) -> None:
        del description, total
        self._in_tasks = stage == "tasks"

    def advance(self, amount: float) -> None:
        if not self._in_tasks:
            return
        self.answered += int(amount)
        if self.left is not None and self.answered >= self.left:
            raise KeyboardInterrupt


def evaluate(
    model: Path,
    directory: Path,
    *,
    after: int | None = None,
    before: Path | None = None,
    **more: Any,
) -> tuple[EvalRecord, Cut]:
    config = EvalConfig(
        model=str(model),
        device="cpu",
        data_dir=str(ROWS),
        tasks=TASKS,
        skip=frozenset({"perplexity", "sparsity"}),
        checkpoint_every=0,
        **{"batch_size": 1, **more},
    )
    progress = Cut(after)
    prepared = prepare(config, progress)
    record = prepared.new_record(Labels())
    return run(prepared, record, directory, progress, interrupted=before), progress


def assert_same_samples(left: Path, right: Path) -> None:
    for task in TASKS:
        pd.testing.assert_frame_equal(
            pd.read_parquet(samples_path(left, task)),
            pd.read_parquet(samples_path(right, task)),
            check_exact=True,
        )


@pytest.mark.parametrize("seed", range(4))
def test_a_task_goes_on_within_itself_and_gives_the_same_bits(
    tiny_llama: Path, tmp_path: Path, seed: int
) -> None:
    whole, counted = evaluate(tiny_llama, tmp_path / "whole")
    after = random.Random(seed).randrange(1, counted.answered)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny_llama, tmp_path / "cut", after=after)
    kept = json.loads((tmp_path / "cut" / ".unfinished.json").read_text())
    assert len(kept["answers"]) > 0
    resumed, _ = evaluate(tiny_llama, tmp_path / "resumed", before=tmp_path / "cut")
    assert resumed.record_key == whole.record_key
    assert_same_samples(tmp_path / "resumed", tmp_path / "whole")
    assert {n: t.metrics for n, t in resumed.tasks.items()} == {
        n: t.metrics for n, t in whole.tasks.items()
    }
    assert not (tmp_path / "resumed" / ".unfinished.json").exists()


def test_answered_requests_do_not_go_through_the_model_again(
    tiny_llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny_llama, tmp_path / "cut", after=6)
    path = tmp_path / "cut" / ".unfinished.json"
    kept = json.loads(path.read_text())
    # A score that no model gives shows where it was read from.
    first = next(iter(kept["answers"]))
    kept["answers"][first] = [-1234.5, False]
    path.write_text(json.dumps(kept))
    evaluate(tiny_llama, tmp_path / "resumed", before=tmp_path / "cut")
    rows = pd.read_parquet(samples_path(tmp_path / "resumed", kept["task"]))
    assert -1234.5 in [score for scores in rows["loglikelihoods"] for score in scores]


@pytest.mark.parametrize(
    "damage", [b"", b"{", b'{"record_key": 3}', b'{"record_key": "other", "task": "hellaswag"}']
)
def test_a_damaged_or_foreign_file_of_answers_is_not_believed(
    tiny_llama: Path, tmp_path: Path, damage: bytes
) -> None:
    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny_llama, tmp_path / "cut", after=6)
    (tmp_path / "cut" / ".unfinished.json").write_bytes(damage)
    evaluate(tiny_llama, tmp_path / "resumed", before=tmp_path / "cut")
    evaluate(tiny_llama, tmp_path / "whole")
    assert_same_samples(tmp_path / "resumed", tmp_path / "whole")


def test_answers_of_every_kind_come_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    answers: dict[int, Any] = {
        4: (-1.2345678901234567, True),
        0: (float("-inf"), False),
        2: -0.1 - 0.2,
        1: "NaN",
        3: "1.5",
    }
    kept = KeptAnswers(path, "key", 0)
    with pytest.raises(RuntimeError), kept.of_task("t"):
        kept.begin(5)
        kept.add(answers, ScorerState(engine="packed rows", budget=7))
        kept.settle()
        raise RuntimeError
    again = KeptAnswers(path, "key", 0)
    with again.of_task("t"):
        found = again.begin(5)
        assert found == answers
        assert {k: type(v) for k, v in found.items()} == {k: type(v) for k, v in answers.items()}
        assert again.settled == list(answers)
        assert again.scorer == ScorerState(engine="packed rows", budget=7)
    for key, task, count in (("other", "t", 5), ("key", "u", 5), ("key", "t", 6)):
        other = KeptAnswers(path, key, 0)
        with other.of_task(task):
            assert other.begin(count) == {}


def command(model: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "prunescope", "eval", str(model), "--data-dir", str(ROWS)),
        *(
            "--device",
            "cpu",
            "--seqlen",
            "64",
            "--checkpoint-every",
            "0",
            "--batch-size",
            "1",
            *more,
        ),
    ]


def heed_signals() -> None:
    """Whatever runs the tests may ignore signals, and its children would as well."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def started(model: Path, folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.Popen(
        command(model),
        preexec_fn=heed_signals,
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def records(folder: Path) -> list[EvalRecord]:
    found = sorted((folder / "mlruns" / "records").glob("*/record.json"))
    return [read_record(path.parent) for path in found]


def wait_for_record(folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while not list((folder / "mlruns").glob("records/*/record.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_it_cleanly_and_the_same_command_goes_on(
    tiny_llama: Path, empty_store: Path, number: int, code: int
) -> None:
    folder = empty_store.parent
    process = started(tiny_llama, folder)
    wait_for_record(folder, process)
    process.send_signal(number)
    _, notes = process.communicate(timeout=90)
    assert process.returncode == code, notes
    assert "the same command goes on" in " ".join(notes.split())
    assert "Traceback" not in notes
    (record,) = records(folder)
    assert record.status == "failed"
    again = started(tiny_llama, folder)
    _, notes = again.communicate(timeout=120)
    assert again.returncode == 0, notes
    (finished,) = records(folder)
    assert (finished.record_id, finished.status) == (record.record_id, "finished")
    (run,) = open_store(None, root=empty_store).search(status=None)
    assert (run.record_id, run.status) == (record.record_id, "FINISHED")
    assert "prunescope.error" not in run.tags
    assert "failed" not in run.tags["mlflow.note.content"].lower()


@pytest.mark.slow
def test_a_killed_evaluation_is_found_and_gone_on_with(tiny_llama: Path, empty_store: Path) -> None:
    folder = empty_store.parent
    process = started(tiny_llama, folder)
    wait_for_record(folder, process)
    process.kill()
    process.communicate()
    (orphan,) = records(folder)
    assert orphan.status == "running"
    again = started(tiny_llama, folder)
    _, notes = again.communicate(timeout=120)
    assert again.returncode == 0, notes
    (finished,) = records(folder)
    assert (finished.record_id, finished.status) == (orphan.record_id, "finished")


@pytest.mark.slow
def test_of_two_processes_with_the_same_evaluation_one_waits_and_takes_the_result(
    tiny_llama: Path, empty_store: Path
) -> None:
    folder = empty_store.parent
    processes = [started(tiny_llama, folder) for _ in range(2)]
    notes = [process.communicate(timeout=180)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], notes
    (record,) = records(folder)
    assert record.status == "finished"
    assert any("not run again" in " ".join(text.split()) for text in notes)
