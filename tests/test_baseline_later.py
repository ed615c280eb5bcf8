"""A baseline that no server can name yet: the evaluation goes on, and finds it when it is sent."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cli import SMALL, Finished, run_cli
from support.server import free_port, proxy

from prunescope.records import EvalRecord, read_record
from prunescope.tracking.runs import StoredRun
from prunescope.tracking.store import open_store

QUICK = [*SMALL, "--tasks", "rte,boolq", "--skip", "perplexity"]


@pytest.fixture(scope="module")
def nowhere() -> str:
    return f"http://127.0.0.1:{free_port()}"


def evaluate(folder: Path, model: Path, address: str, *more: str) -> Finished:
    done = run_cli(["eval", str(model), *QUICK, "--tracking-uri", address, *more], folder)
    assert done.exit_code == 0, done.stderr
    return done


def sync(folder: Path, server: str, experiment: str) -> None:
    done = run_cli(["sync", "--tracking-uri", server, "--experiment", experiment], folder)
    assert done.exit_code == 0, done.stderr


def records(folder: Path) -> dict[str, EvalRecord]:
    found = [read_record(p.parent) for p in (folder / "mlruns/records").glob("*/record.json")]
    assert len({one.model.name for one in found}) == len(found)
    return {one.model.name: one for one in found}


def runs(server: str, folder: Path, experiment: str) -> dict[str, StoredRun]:
    found = open_store(server, root=folder / "mlruns").search(experiment=experiment, status=None)
    assert len({run.model for run in found}) == len(found)
    return {str(run.model): run for run in found}


def assert_compared(server: str, folder: Path, experiment: str) -> None:
    known = runs(server, folder, experiment)
    original, pruned = known["tiny-llama"], known["tiny-llama-50"]
    assert pruned.baseline_run_id == original.ref.run_id
    assert "delta/mean_points" in pruned.metrics
    assert "| boolq |" in pruned.tags["mlflow.note.content"]


@pytest.mark.parametrize("named", ["latest:tiny-llama", "the path"])
def test_the_record_here_is_the_baseline(
    tiny_llama: Path,
    tiny_llama_pruned: Path,
    mlflow_server: str,
    nowhere: str,
    tmp_path: Path,
    named: str,
) -> None:
    experiment = f"later {named}"
    evaluate(tmp_path, tiny_llama, nowhere)
    baseline = str(tiny_llama) if named == "the path" else named
    done = evaluate(tmp_path, tiny_llama_pruned, nowhere, "--baseline", baseline)
    assert "not tracked" in done.stderr
    known = records(tmp_path)
    tags = known["tiny-llama-50"].labels.tags
    assert tags["prunescope.baseline_record_id"] == known["tiny-llama"].record_id
    assert known["tiny-llama-50"].labels.role == "pruned"
    sync(tmp_path, mlflow_server, experiment)
    assert_compared(mlflow_server, tmp_path, experiment)


def test_a_name_alone_is_looked_up_when_the_server_is_back(
    tiny_llama: Path, tiny_llama_pruned: Path, mlflow_server: str, nowhere: str, tmp_path: Path
) -> None:
    experiment = "later by name"
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    evaluate(
        there,
        tiny_llama,
        mlflow_server,
        "--experiment",
        experiment,
        "--run-name",
        "the one",
        "--force",
    )
    evaluate(here, tiny_llama_pruned, nowhere, "--baseline", "the one")
    assert records(here)["tiny-llama-50"].labels.tags["prunescope.baseline"] == "the one"
    sync(here, mlflow_server, experiment)
    assert_compared(mlflow_server, here, experiment)


def test_a_name_that_nobody_knows_leaves_a_run_without_baseline(
    tiny_llama_pruned: Path, mlflow_server: str, nowhere: str, tmp_path: Path
) -> None:
    evaluate(tmp_path, tiny_llama_pruned, nowhere, "--baseline", "never was")
    sync(tmp_path, mlflow_server, "later nobody")
    (run,) = runs(mlflow_server, tmp_path, "later nobody").values()
    assert run.baseline_run_id is None
    assert run.is_complete


def test_a_pair_without_a_server_is_a_pair_once_it_is_sent(
    tiny_llama: Path, tiny_llama_pruned: Path, mlflow_server: str, nowhere: str, tmp_path: Path
) -> None:
    arguments = ["pair", str(tiny_llama), str(tiny_llama_pruned), *QUICK]
    done = run_cli([*arguments, "--tracking-uri", nowhere], tmp_path)
    assert done.exit_code == 0, done.stderr
    sync(tmp_path, mlflow_server, "later pair")
    assert_compared(mlflow_server, tmp_path, "later pair")


def test_the_server_goes_away_once_the_baseline_was_found(
    tiny_llama: Path, tiny_llama_pruned: Path, mlflow_server: str, tmp_path: Path
) -> None:
    experiment = "later gone"
    gone = False

    def rule(method: str, path: str) -> tuple[int, bytes] | None:
        nonlocal gone
        gone = gone or "/mlflow-artifacts/" in path  # the baseline is fetched
        del method
        return (500, b"gone") if gone else None

    options = ["--experiment", experiment, "--force"]
    evaluate(tmp_path, tiny_llama, mlflow_server, *options, "--run-name", "found")
    with proxy(mlflow_server, rule) as (address, _):
        more = [*options, "--baseline", "found"]
        done = evaluate(tmp_path, tiny_llama_pruned, address, *more)
    assert gone
    assert "not tracked" in done.stderr
    sync(tmp_path, mlflow_server, experiment)
    assert_compared(mlflow_server, tmp_path, experiment)


def test_the_same_command_with_the_server_back_makes_no_second_record(
    tiny_llama: Path, tiny_llama_pruned: Path, mlflow_server: str, nowhere: str, tmp_path: Path
) -> None:
    experiment = "later again"
    options = ["--experiment", experiment, "--seed", "77"]
    evaluate(tmp_path, tiny_llama, nowhere, *options)
    evaluate(tmp_path, tiny_llama_pruned, nowhere, *options, "--baseline", "latest:tiny-llama")
    before = records(tmp_path)
    evaluate(tmp_path, tiny_llama, mlflow_server, *options, "--run-name", "back")
    done = evaluate(tmp_path, tiny_llama_pruned, mlflow_server, *options, "--baseline", "back")
    assert "not run again" in " ".join(done.stderr.split())
    assert {k: v.record_id for k, v in records(tmp_path).items()} == {
        k: v.record_id for k, v in before.items()
    }
    assert_compared(mlflow_server, tmp_path, experiment)


def test_numbers_that_cannot_be_fetched_whole_leave_no_half_record(
    tiny_llama: Path, mlflow_server: str, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    options = ["--experiment", "later half", "--seed", "78"]
    evaluate(there, tiny_llama, mlflow_server, *options)

    def rule(method: str, path: str) -> tuple[int, bytes] | None:
        return (500, b"gone") if method == "GET" and path.endswith(".parquet") else None

    with proxy(mlflow_server, rule) as (address, seen):
        done = evaluate(here, tiny_llama, address, *options, "--role", "original")
    assert any(path.endswith(".parquet") for _, path in seen)
    assert "not run again" not in " ".join(done.stderr.split())
    (record,) = (here / "mlruns/records").iterdir()
    assert sorted(p.stem for p in (record / "samples").iterdir()) == ["boolq", "rte"]
    assert not list((here / "mlruns").glob(".copy-*"))
    assert read_record(record).labels.role == "original"
