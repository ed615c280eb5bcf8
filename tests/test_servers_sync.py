"""``prunescope sync``: what a server lacks is sent once, to the end, and to other servers too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from support.cli import run_cli
from support.records import write_example
from support.server import free_port, fresh_store

from prunescope.cli.sending import LocalRecord, in_order
from prunescope.records import EvalRecord, write_record
from prunescope.tracking.spool import new_record_directory, uploaded_to
from prunescope.tracking.store import Store, StoredRun, open_store


def add_record(root: Path, which: str = "original", baseline: str | None = None) -> Path:
    """An ended evaluation under ``root``, with a record id of its own."""
    record = write_example(root / "new", which)
    labels = record.labels.model_copy(update={"baseline_run_id": baseline})
    record = record.model_copy(update={"record_id": os.urandom(16).hex(), "labels": labels})
    directory = new_record_directory(root, record)
    directory.rmdir()
    (root / "new").rename(directory)
    write_record(directory, record)
    return directory


def record_id(directory: Path) -> str:
    return EvalRecord.model_validate_json((directory / "record.json").read_bytes()).record_id


def runs_of(store: Store, directory: Path) -> list[StoredRun]:
    return store.search(record_id=record_id(directory), status=None)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder to run in, without a tracking store."""
    (tmp_path / "mlruns").mkdir()
    return tmp_path


def test_sync_sends_what_waits_and_completes_a_half_sent_run(
    here: Path, mlflow_server: str
) -> None:
    root, store = here / "mlruns", open_store(mlflow_server, root=here)
    whole = add_record(root)
    sent = store.upload(whole, experiment="sync")
    half = [add_record(root, "broken"), add_record(root)]
    client = MlflowClient(mlflow_server)
    left = [
        client.create_run(
            sent.experiment_id,
            tags={"prunescope.record_id": record_id(one), "prunescope.schema": "1"},
        ).info.run_id
        for one in half
    ]
    client.log_artifact(left[0], str(half[0] / "samples" / "rte.parquet"), "samples")
    never = add_record(root)
    options = ["sync", "--tracking-uri", mlflow_server, "--experiment", "sync"]
    dry = run_cli([*options, "--dry-run"], here)
    assert dry.stdout.count("would send") == 3
    done = run_cli(options, here)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.count("sent ") == 3
    for directory in (whole, *half, never):
        (run,) = runs_of(store, directory)
        assert run.is_complete
        assert [ref.run_id for ref in uploaded_to(directory)] == [run.ref.run_id]
    assert [runs_of(store, one)[0].ref.run_id for one in half] == left
    again = run_cli(options, here)
    assert again.stdout == "nothing to send: the server has every record\n"


def test_a_copy_on_another_server_points_at_the_baseline_there(
    here: Path, mlflow_server: str, empty_database: Path
) -> None:
    root = here / "mlruns"
    store = fresh_store(empty_database, root)
    original = add_record(root)
    first = store.upload(original, experiment="lab")
    pruned = add_record(root, "pruned", baseline=first.run_id)
    store.upload(pruned, experiment="lab")
    done = run_cli(["sync", "--to", mlflow_server], here)
    assert (done.exit_code, done.stderr) == (0, "")
    there = open_store(mlflow_server, root=here)
    (baseline,), (copy,) = runs_of(there, original), runs_of(there, pruned)
    assert copy.is_complete
    assert baseline.is_complete
    assert baseline.ref.run_id != first.run_id
    assert copy.baseline_run_id == baseline.ref.run_id
    assert there.read_record(copy).labels.baseline_run_id == baseline.ref.run_id
    assert there.experiment_name(copy.ref.experiment_id) == "lab"
    assert copy.metrics == runs_of(store, pruned)[0].metrics | {
        name: value for name, value in copy.metrics.items() if name.startswith("delta/")
    }
    assert "delta/mean_points" in copy.metrics
    compared = run_cli(["compare", copy.ref.run_id, "--tracking-uri", mlflow_server], here)
    assert compared.exit_code == 0, compared.stderr
    again = run_cli(["sync", "--to", mlflow_server], here)
    assert again.stdout == "2 of this machine's records were there before\n"
    assert len(runs_of(there, pruned)) == len(runs_of(there, original)) == 1
    assert {ref.tracking_uri for ref in uploaded_to(pruned)} == {store.uri, mlflow_server}
    assert run_cli(["sync"], here).stdout == "nothing to send: the server has every record\n"


def test_a_baseline_that_only_the_first_server_has_is_copied_too(
    here: Path, mlflow_server: str, empty_database: Path
) -> None:
    root = here / "mlruns"
    store = fresh_store(empty_database, root)
    elsewhere = add_record(here / "other machine")
    first = store.upload(elsewhere, experiment="lab")
    pruned = add_record(root, "pruned", baseline=first.run_id)
    lost = add_record(root, "pruned", baseline="f" * 32)
    done = run_cli(["sync", "--to", mlflow_server, "--experiment", "archive"], here)
    assert (done.exit_code, done.stderr) == (0, "")
    there = open_store(mlflow_server, root=here)
    (baseline,), (copy,), (alone,) = (runs_of(there, one) for one in (elsewhere, pruned, lost))
    assert copy.baseline_run_id == baseline.ref.run_id
    names = {there.experiment_name(run.ref.experiment_id) for run in (baseline, copy)}
    assert names == {"archive"}
    assert alone.baseline_run_id is None
    notes = there.read_record(alone).provenance.notes
    assert notes == (f"its baseline {'f' * 32} is not on this server",)


def test_a_damaged_record_is_named_and_the_others_are_sent(here: Path, mlflow_server: str) -> None:
    root, store = here / "mlruns", open_store(mlflow_server, root=here)
    fine, cut, empty = add_record(root), add_record(root), add_record(root)
    (cut / "samples" / "rte.parquet").write_bytes(b"PAR1")
    (empty / "record.json").write_bytes(b"")
    done = run_cli(["sync", "--tracking-uri", mlflow_server], here)
    assert done.exit_code == 2
    lines = done.error_lines
    assert [line.partition(":")[0] for line in lines] == ["not sent", "not sent", "Error"]
    assert empty.name in lines[0]
    assert cut.name in lines[1]
    assert lines[2] == "Error: 2 records were not sent. See the lines above."
    assert runs_of(store, fine)[0].is_complete
    assert not [run for run in runs_of(store, cut) if run.is_complete]


def test_records_go_behind_their_baselines_whatever_their_order() -> None:
    def local(name: str) -> LocalRecord:
        record = EvalRecord.model_construct(record_id=name)
        return LocalRecord(Path(name), record, ())

    records = [local(name) for name in "dcab"]
    baselines = {"d": "c", "c": "a", "b": "elsewhere"}
    assert [one.record.record_id for one in in_order(records, baselines)] == ["a", "c", "d", "b"]
    circle = {"d": "c", "c": "d", "a": "a"}
    assert {one.record.record_id for one in in_order(records, circle)} == set("abcd")


def watch(here: Path, uri: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "prunescope", "sync", "--watch", "--interval", "0.2"]
    return subprocess.Popen(
        [*command, "--tracking-uri", uri],
        cwd=here,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
    )


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_watch_sends_each_record_once_and_ends_cleanly(
    here: Path, mlflow_server: str, ending: signal.Signals
) -> None:
    store = open_store(mlflow_server, root=here)
    first = add_record(here / "mlruns")
    process = watch(here, mlflow_server)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"sent {first.name}  {mlflow_server}")
        second = add_record(here / "mlruns", "broken")
        assert process.stdout.readline().startswith(f"sent {second.name}  {mlflow_server}")
        process.send_signal(ending)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (0, "", "stopped; 2 records sent\n")
    assert all(len(runs_of(store, one)) == 1 for one in (first, second))


def test_watch_says_once_that_the_server_is_away(here: Path) -> None:
    add_record(here / "mlruns")
    process = watch(here, f"http://127.0.0.1:{free_port()}")
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        time.sleep(1.5)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert "cannot be reached (connection refused)" in line
    assert line.endswith("Trying again every 0.2 s.\n")
    assert (process.returncode, out, err) == (0, "", "stopped; 0 records sent\n")
