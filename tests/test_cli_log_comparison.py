"""``prunescope compare --log``: the comparison as a run of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from support.cli import Finished, run_cli
from support.records import write_example
from support.server import fresh_store

from prunescope.compare.delta import comparison_metrics
from prunescope.compare.report import headline
from prunescope.errors import TrackingError
from prunescope.records import RunRef
from prunescope.tracking.store import Store, open_store

Sides = tuple[RunRef, RunRef]


def upload_pair(store: Store, folder: Path) -> Sides:
    refs = []
    for name in ("original", "pruned"):
        write_example(folder / name, name)
        refs.append(store.upload(folder / name, experiment="exp"))
    return refs[0], refs[1]


def compare(sides: Sides, folder: Path, *arguments: str) -> Finished:
    names = [side.run_id for side in sides]
    return run_cli(["compare", *names, "--log", "-o", "out", *arguments], folder)


def comparisons(uri: str, experiment_id: str) -> list[Run]:
    wanted = "tags.`prunescope.kind` = 'comparison'"
    return list(MlflowClient(uri).search_runs([experiment_id], wanted))


def artifact(run: Run, uri: str, name: str, into: Path) -> str:
    return Path(MlflowClient(uri).download_artifacts(run.info.run_id, name, str(into))).read_text()


@pytest.fixture
def embedded(empty_database: Path, tmp_path: Path) -> tuple[Store, Sides]:
    store = fresh_store(empty_database, tmp_path / "mlruns")
    return store, upload_pair(store, tmp_path)


def test_the_run_points_at_both_sides_and_holds_the_reports(
    embedded: tuple[Store, Sides], tmp_path: Path
) -> None:
    store, (original, pruned) = embedded
    done = compare((original, pruned), tmp_path, "--format", "json,md,csv")
    assert done.exit_code == 0, done.stderr
    (run,) = comparisons(store.uri, pruned.experiment_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["prunescope.role"] == "comparison"
    assert run.data.tags["prunescope.original_run_id"] == original.run_id
    assert run.data.tags["prunescope.pruned_run_id"] == pruned.run_id
    assert run.info.run_id in done.stderr
    report = json.loads(artifact(run, store.uri, "comparison.json", tmp_path))
    (written,) = (tmp_path / "out").glob("*.json")
    assert report == json.loads(written.read_text())
    listed = MlflowClient(store.uri).list_artifacts(run.info.run_id)
    assert {entry.path for entry in listed} == {
        f"comparison.{kind}" for kind in ("json", "md", "csv")
    }


def test_its_metrics_are_the_differences(embedded: tuple[Store, Sides], tmp_path: Path) -> None:
    from prunescope.compare.analysis import compare_directories

    store, sides = embedded
    assert compare(sides, tmp_path).exit_code == 0
    (run,) = comparisons(store.uri, sides[1].experiment_id)
    comparison = compare_directories(tmp_path / "original", tmp_path / "pruned")
    assert run.data.metrics == pytest.approx(comparison_metrics(comparison), abs=5e-5)
    row = comparison.tasks[0]
    assert row.difference is not None
    assert run.data.metrics["delta/points/boolq"] == pytest.approx(100 * row.difference, abs=5e-5)
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith(headline(comparison))
    assert all(side.run_id in note for side in sides)


def test_no_search_takes_it_for_an_evaluation(
    embedded: tuple[Store, Sides], tmp_path: Path
) -> None:
    store, sides = embedded
    before = {run.ref.run_id for run in store.search(status=None)}
    assert compare(sides, tmp_path).exit_code == 0
    assert {run.ref.run_id for run in store.search(status=None)} == before
    assert len(json.loads(run_cli(["runs", "--json"], tmp_path).stdout)) == 2
    board = run_cli(["leaderboard", "--format", "csv"], tmp_path).stdout
    assert len(board.splitlines()) == 3
    (run,) = comparisons(store.uri, sides[1].experiment_id)
    refused = run_cli(["compare", run.info.run_id, sides[1].run_id], tmp_path)
    assert refused.exit_code == 2
    assert "no prunescope record" in refused.stderr


def test_over_a_real_server(mlflow_server: str, tmp_path: Path) -> None:
    store = open_store(mlflow_server, root=tmp_path / "mlruns")
    sides = upload_pair(store, tmp_path)
    done = compare(sides, tmp_path, "--tracking-uri", mlflow_server)
    assert done.exit_code == 0, done.stderr
    (run,) = comparisons(mlflow_server, sides[1].experiment_id)
    assert f"/runs/{run.info.run_id}" in done.stderr
    assert "Task Results" in artifact(run, mlflow_server, "comparison.md", tmp_path)


def test_a_record_folder_cannot_be_pointed_at(tmp_path: Path) -> None:
    write_example(tmp_path / "a", "original")
    write_example(tmp_path / "b", "pruned")
    done = run_cli(["compare", "a", "b", "--log"], tmp_path)
    assert done.exit_code == 2
    assert "--log needs two runs" in done.stderr
    assert not list((tmp_path / "eval_results").glob("*"))


def test_a_run_of_another_store_is_refused(embedded: tuple[Store, Sides]) -> None:
    store, (original, pruned) = embedded
    stranger = original.model_copy(update={"run_id": "0" * 32})
    with pytest.raises(TrackingError, match="not in this store"):
        store.log_comparison(stranger, pruned, [], metrics={}, headline="")
    assert comparisons(store.uri, pruned.experiment_id) == []
