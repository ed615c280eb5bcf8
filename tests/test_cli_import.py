"""``prunescope import`` and ``prunescope export``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.cli import run_cli
from support.legacy import LEGACY_FILE
from support.records import write_example
from support.server import fresh_store

from prunescope.records import read_record, write_record
from prunescope.tracking.store import Store, StoredRun

DATA = Path(__file__).parent / "data"


@pytest.fixture
def store(empty_database: Path, tmp_path: Path) -> Store:
    return fresh_store(empty_database, tmp_path / "mlruns")


def by_role(store: Store) -> dict[str | None, StoredRun]:
    return {run.role: run for run in store.search()}


def test_a_comparison_becomes_two_linked_runs_and_again_nothing(
    store: Store, tmp_path: Path
) -> None:
    done = run_cli(["import", str(LEGACY_FILE)], tmp_path)
    assert done.exit_code == 0, done.stderr
    runs = by_role(store)
    assert set(runs) == {"original", "pruned"}
    original, pruned = runs["original"], runs["pruned"]
    assert pruned.baseline_run_id == original.ref.run_id
    assert pruned.metrics["sparsity/linear"] == 0.4087
    assert "sparsity/total" not in pruned.metrics
    assert "delta/mean_points" in pruned.metrics
    assert pruned.tags["prunescope.import_sha256"] == original.tags["prunescope.import_sha256"]
    record = store.read_record(pruned)
    assert abs((pruned.started_at - record.started_at).total_seconds()) < 0.01
    again = run_cli(["import", str(LEGACY_FILE)], tmp_path)
    assert again.exit_code == 0
    assert again.stdout.count("was there before") == 2
    assert len(store.search(status=None)) == 2
    assert len(list((tmp_path / "mlruns" / "records").iterdir())) == 2


def test_imported_runs_compare(store: Store, tmp_path: Path) -> None:
    run_cli(["import", str(LEGACY_FILE)], tmp_path)
    pruned = by_role(store)["pruned"]
    done = run_cli(["compare", pruned.ref.run_id, "--format", "md"], tmp_path)
    assert done.exit_code == 0, done.stderr
    assert "AVERAGE" in done.stdout


def test_a_folder_is_walked_and_what_is_something_else_is_named(
    store: Store, tmp_path: Path
) -> None:
    folder = tmp_path / "old"
    shutil.copytree(DATA / "harness", folder / "harness")
    shutil.copy(LEGACY_FILE, folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "broken.tar").write_bytes(b"no tar")
    done = run_cli(["import", str(folder), "--experiment", "history"], tmp_path)
    assert done.exit_code == 0, done.stderr
    assert len(store.search(experiment="history")) == 4
    assert sorted(line.split(":")[0] for line in done.error_lines) == ["skipped", "skipped"]
    assert "config.json" in done.stderr
    assert "broken.tar" in done.stderr


def test_nothing_usable_is_an_error_in_one_line(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    done = run_cli(["import", "a.json"], tmp_path)
    assert done.exit_code == 2
    assert "nothing to import" in done.error_lines[-1]
    missing = run_cli(["import", "nowhere"], tmp_path)
    assert (missing.exit_code, len(missing.error_lines)) == (2, 1)


def test_a_bundle_carries_runs_and_their_baseline_to_another_store(
    store: Store, empty_database: Path, tmp_path: Path
) -> None:
    write_example(tmp_path / "a", "original")
    baseline = store.upload(tmp_path / "a", experiment="lab")
    write_example(tmp_path / "b", "pruned")
    record = read_record(tmp_path / "b")
    labels = record.labels.model_copy(update={"baseline_run_id": baseline.run_id})
    write_record(tmp_path / "b", record.model_copy(update={"labels": labels}))
    pruned = store.upload(tmp_path / "b", experiment="lab")
    names = [pruned.run_id, baseline.run_id]
    done = run_cli(["export", *names, "--out", "bundle.tar"], tmp_path)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("2 runs in bundle.tar")

    other = tmp_path / "other"
    there = fresh_store(empty_database, other / "mlruns")
    done = run_cli(["import", str(tmp_path / "bundle.tar")], other)
    assert done.exit_code == 0, done.stderr
    runs = by_role(there)
    assert runs["pruned"].baseline_run_id == runs["original"].ref.run_id != baseline.run_id
    assert there.experiment_name(runs["pruned"].ref.experiment_id) == "lab"
    mine = store.get(pruned.run_id)
    ours = {k: v for k, v in runs["pruned"].metrics.items() if not k.startswith("delta/")}
    assert ours == dict(mine.metrics)
    again = run_cli(["import", str(tmp_path / "bundle.tar")], other)
    assert again.exit_code == 0
    assert len(there.search(status=None)) == 2
    fetched = there.fetch(runs["original"], tmp_path / "back", everything=True)
    for kind in ("samples", "tokens"):
        for path in (tmp_path / "a" / kind).iterdir():
            assert (fetched / kind / path.name).read_bytes() == path.read_bytes()


def test_a_run_that_is_not_there_is_not_exported(store: Store, tmp_path: Path) -> None:
    done = run_cli(["export", "latest:nobody", "--out", "b.tar"], tmp_path)
    assert (done.exit_code, len(done.error_lines)) == (2, 1)
    assert not (tmp_path / "b.tar").exists()
