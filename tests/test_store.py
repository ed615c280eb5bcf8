"""Sending records to a tracking store and reading them back: SQLite and a real server."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from support.records import (
    EXAMPLES,
    failed_record,
    original_record,
    pruned_record,
    write_example,
)
from support.server import Answer, fresh_store, proxy

from prunescope.errors import OutputError, PrunescopeError, RecordError, TrackingError
from prunescope.records import EvalRecord, TaskResult, read_record, read_tensors, write_record
from prunescope.tracking.runs import MANIFEST_TAG
from prunescope.tracking.spool import uploaded_to
from prunescope.tracking.store import Store, open_store
from prunescope.tracking.view import VIEW_TAG, read_view

LOGIN_PAGE = b"<!doctype html><title>Sign in</title>"


@pytest.fixture(scope="module")
def sqlite_root(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    root = tmp_path_factory.mktemp("store")
    fresh_store(empty_database, root)
    return root


@pytest.fixture
def embedded(sqlite_root: Path) -> Store:
    """The embedded store; it keeps what former tests sent."""
    return open_store(None, root=sqlite_root)


@pytest.fixture(params=["sqlite", "server"])
def store(request: pytest.FixtureRequest, sqlite_root: Path) -> Store:
    """The embedded store and a real server; both keep what former tests sent."""
    if request.param == "sqlite":
        return open_store(None, root=sqlite_root)
    return open_store(request.getfixturevalue("mlflow_server"), root=sqlite_root)


def client(store: Store) -> MlflowClient:
    return MlflowClient(tracking_uri=store.uri)


def example(directory: Path, which: str = "original", **changes: object) -> EvalRecord:
    """Write an example's record directory under a record id of its own."""
    record = write_example(directory, which)
    new_id = os.urandom(16).hex()
    record = record.model_copy(update={"record_id": new_id, **changes})
    write_record(directory, record)
    return record


def with_id(store: Store, record: EvalRecord) -> list[str]:
    """The runs that stand for a record, whatever their status."""
    runs = store.search(record_key=record.record_key, status=None)
    return [run.ref.run_id for run in runs if run.record_id == record.record_id]


# --- the round trip -----------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["original", "broken"])
def test_a_record_comes_back_exactly(store: Store, tmp_path: Path, which: str) -> None:
    sent = tmp_path / "sent"
    record = example(sent, which)
    ref = store.upload(sent, experiment="round trip")
    run = store.get(ref.run_id)
    assert store.read_record(run).model_dump_json() == read_record(sent).model_dump_json()
    back = store.fetch(run, tmp_path / "back", everything=True)
    assert read_tensors(back).model_dump_json() == record.sparsity.model_dump_json()  # type: ignore[union-attr]
    names = {p.relative_to(sent) for p in sent.rglob("*") if p.is_file() and p.name[0] != "."}
    assert len(names) == 10
    for name in names:
        assert (back / name).read_bytes() == (sent / name).read_bytes()
    few = store.fetch(run, tmp_path / "few")
    assert {path.name for path in few.iterdir()} == {"record.json", "sparsity.json"}


def test_a_failed_evaluation_comes_back_too(embedded: Store, tmp_path: Path) -> None:
    record = failed_record().model_copy(update={"record_id": os.urandom(16).hex()})
    write_record(tmp_path / "r", record)
    run = embedded.get(embedded.upload(tmp_path / "r", experiment="round trip").run_id)
    assert run.status == "FAILED"
    assert "tables/samples.json" not in str(run.tags)
    assert embedded.read_record(run).error == record.error


def test_a_run_shows_what_the_record_says(store: Store, tmp_path: Path) -> None:
    record = example(tmp_path / "r", "pruned")
    extra = {"delta/mean_points": -10.6, "delta/ppl_ratio": float("nan")}
    ref = store.upload(tmp_path / "r", experiment="round trip", extra_metrics=extra)
    run = store.get(ref.run_id)
    assert run.ref == ref
    assert ref.run_name == "SmolLM2-135M-2of4 · 2:4 magnitude"
    assert (run.status, run.role, run.method) == ("FINISHED", "pruned", "magnitude")
    assert (run.model, run.record_key) == (record.model.name, record.record_key)
    assert abs(run.started_at - record.started_at).total_seconds() < 0.001
    assert run.metrics["acc/boolq"] == record.tasks["boolq"].metrics["acc"]
    assert run.metrics["ppl/wikitext2"] == record.perplexity["wikitext2"].perplexity
    assert run.metrics["delta/mean_points"] == -10.6
    assert "delta/ppl_ratio" not in run.metrics
    assert run.params["seqlen"] == "32"
    assert run.tags["mlflow.note.content"].startswith("SmolLM2-135M-2of4 · 2:4 magnitude · ")
    raw = client(store).get_run(ref.run_id)
    assert raw.info.end_time - raw.info.start_time == 187250
    history = client(store).get_metric_history(ref.run_id, "layers/sparsity")
    assert [(m.step, m.value) for m in history] == [(0, 0.5), (1, 0.5)]
    inputs = {entry.dataset.name: entry.dataset.digest for entry in raw.inputs.dataset_inputs}
    assert inputs["boolq"] == (record.tasks["boolq"].documents_sha256 or "")[:36]
    assert set(inputs) == {*record.tasks, "wikitext2"}


def test_the_table_of_documents_is_one_that_mlflow_reads(embedded: Store, tmp_path: Path) -> None:
    example(tmp_path / "r", "broken")
    ref = embedded.upload(tmp_path / "r", experiment="round trip")
    path = client(embedded).download_artifacts(ref.run_id, "tables/samples.json", str(tmp_path))
    table = pd.read_json(io.StringIO(Path(path).read_text(encoding="utf-8")), orient="split")
    assert list(table.columns[:2]) == ["document", "score"]
    assert len(table) == 360
    boolq = table[table.task == "boolq"]
    assert boolq.score.mean() == pytest.approx(EXAMPLES["broken"] and 32 / 60)
    assert json.loads(embedded.get(ref.run_id).tags["mlflow.loggedArtifacts"]) == [
        {"path": "tables/samples.json", "type": "table"}
    ]


def test_unicode_long_values_and_many_metrics_go_through(store: Store, tmp_path: Path) -> None:
    original = original_record()
    tasks = {
        f"mmlu_{number}": TaskResult(
            task=f"mmlu_{number}",
            version="1",
            n=4,
            primary="acc",
            metrics={"acc": number / 500, "acc_norm": number / 600},
            stderr={"acc": 0.1},
        )
        for number in range(400)
    }
    labels = original.labels.model_copy(
        update={
            "tags": {f"user tag {n}": "ünï " + "x" * 9000 for n in range(120)},
            "method": "剪枝 'quoted' \"twice\"" + "m" * 9000,
        }
    )
    model = original.model.model_copy(update={"name": "模型/ä ß 'x'"})
    record = original.model_copy(
        update={
            "record_id": os.urandom(16).hex(),
            "tasks": tasks,
            "labels": labels,
            "model": model,
            "protocol": original.protocol.model_copy(update={"requested_tasks": tuple(tasks)}),
        }
    )
    write_record(tmp_path / "r", record)
    run = store.get(store.upload(tmp_path / "r", experiment="Größe 大").run_id)
    assert len([name for name in run.metrics if "mmlu_" in name]) == 1600
    assert run.metrics["pct/mmlu_399"] == 79.8
    assert run.model == "模型/ä ß 'x'"
    assert len(run.tags["user tag 119"]) == 8000
    assert store.read_record(run) == record.model_copy(
        update={"sparsity": read_record(tmp_path / "r").sparsity}
    )
    assert [r.ref for r in store.search(model="模型/ä ß 'x'")] == [run.ref]
    assert store.search(model="both ' and \"") == []
    assert store.experiment_name(run.ref.experiment_id) == "Größe 大"


# --- complete, and only once --------------------------------------------------------------------


def test_sending_twice_makes_one_run(store: Store, tmp_path: Path) -> None:
    record = example(tmp_path / "r")
    first = store.upload(tmp_path / "r", experiment="once", note="A note of ours")
    again = store.upload(tmp_path / "r", experiment="another name")
    assert first == again
    assert with_id(store, record) == [first.run_id]
    assert store.get(first.run_id).tags["mlflow.note.content"] == "A note of ours"
    assert len(client(store).get_metric_history(first.run_id, "acc/boolq")) == 1
    assert uploaded_to(tmp_path / "r") == [first]


def test_a_half_sent_run_is_completed(store: Store, tmp_path: Path) -> None:
    record = example(tmp_path / "r")
    complete = store.upload(tmp_path / "r", experiment="half")
    left = example(tmp_path / "left")
    # What a kill between two artifacts leaves: a RUNNING run, one file whole, one cut short.
    raw = client(store)
    run = raw.create_run(
        complete.experiment_id,
        tags={"prunescope.record_id": left.record_id, "prunescope.schema": "1"},
    )
    raw.log_artifact(run.info.run_id, str(tmp_path / "left" / "record.json"))
    (tmp_path / "sparsity.json").write_bytes(b"{")
    raw.log_artifact(run.info.run_id, str(tmp_path / "sparsity.json"))
    ref = store.upload(tmp_path / "left", experiment="half")
    assert ref.run_id == run.info.run_id
    assert with_id(store, left) == [ref.run_id]
    one, other = store.get(ref.run_id), store.get(complete.run_id)
    assert one.status == "FINISHED"
    assert one.metrics == other.metrics
    assert one.params == other.params
    back = store.fetch(one, tmp_path / "back", everything=True)
    assert (back / "sparsity.json").read_bytes() == (tmp_path / "r/sparsity.json").read_bytes()
    assert record.record_id != left.record_id


def test_doubles_of_a_retried_creation_are_removed(embedded: Store, tmp_path: Path) -> None:
    record = example(tmp_path / "r")
    first = embedded.upload(tmp_path / "r", experiment="doubles")
    double = client(embedded).create_run(
        first.experiment_id,
        tags={"prunescope.record_id": record.record_id, "prunescope.schema": "1"},
    )
    assert embedded.upload(tmp_path / "r", experiment="doubles") == first
    assert client(embedded).get_run(double.info.run_id).info.lifecycle_stage == "deleted"
    assert with_id(embedded, record) == [first.run_id]


def test_an_upload_takes_few_requests(mlflow_server: str, tmp_path: Path) -> None:
    with proxy(mlflow_server) as (address, seen):
        store = open_store(address, root=tmp_path)
        opening = len(seen)
        seconds = []
        for name in ("first", "second"):
            example(tmp_path / name)
            start, clock = len(seen), time.monotonic()
            store.upload(tmp_path / name, experiment="counted")
            seconds.append(time.monotonic() - clock)
        spent = seen[start:]
    artifacts = [path for method, path in spent if method == "PUT"]
    back = [path for method, path in spent if method == "GET" and "/artifacts/" in path]
    rest = [path for _, path in spent if path not in {*artifacts, *back}]
    assert opening <= 2
    assert len(artifacts) == 12  # record, sparsity, 7 samples, tokens, table, manifest
    assert sorted(artifacts) == sorted(back)
    # find the experiment 3, create 1, log 2, list what arrived 4, tag 1, end 1, look for doubles 2,
    # view 1
    assert len(rest) <= 15, rest
    assert min(seconds) < 2, seconds


@pytest.mark.parametrize("there", ["complete", "half", "wrong"])
def test_what_is_there_already_is_not_sent_again(
    mlflow_server: str, tmp_path: Path, there: str
) -> None:
    example(tmp_path / "r")
    store = open_store(mlflow_server, root=tmp_path)
    ref = store.upload(tmp_path / "r", experiment="counted")
    raw = client(store)
    if there != "complete":
        raw.delete_tag(ref.run_id, MANIFEST_TAG)
    if there == "wrong":
        same_size = bytes((tmp_path / "r" / "samples" / "rte.parquet").stat().st_size)
        (tmp_path / "rte.parquet").write_bytes(same_size)
        raw.log_artifact(ref.run_id, str(tmp_path / "rte.parquet"), "samples")
    with proxy(mlflow_server) as (address, seen):
        assert open_store(address, root=tmp_path).upload(tmp_path / "r", experiment="x") == (
            ref.model_copy(
                update={
                    "tracking_uri": address,
                    "url": ref.url and ref.url.replace(mlflow_server, address),
                }
            )
        )
    sent = [path.rpartition("/")[2] for method, path in seen if method == "PUT"]
    back = [path for method, path in seen if method == "GET" and "/artifacts/" in path]
    assert sent == (["rte.parquet"] if there == "wrong" else [])
    assert (not back) == (there == "complete")
    run = store.get(ref.run_id)
    assert len(run.tags[MANIFEST_TAG]) == 64
    store.fetch(run, tmp_path / "back", everything=True)


def test_two_processes_may_create_and_fill_the_store_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from prunescope.tracking.store import open_store\n"
        "store = open_store(None, root=Path(sys.argv[1]))\n"
        "print(store.upload(Path(sys.argv[2]), experiment='shared').run_id)"
    )
    names = ("original", "broken")
    for name in names:
        write_example(tmp_path / name, name)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "mlruns"), str(tmp_path / name)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for name in names
    ]
    results = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], results
    assert all(not stderr.strip() for _, stderr in results), results
    store = open_store(None, root=tmp_path / "mlruns")
    assert {run.ref.run_id for run in store.search()} == {out.strip() for out, _ in results}
    assert len({run.ref.experiment_id for run in store.search()}) == 1
    assert all(len(store.read_record(run).tasks) == 7 for run in store.search())
    assert not (Path.cwd() / "mlruns" / "0").exists()


# --- searching ----------------------------------------------------------------------------------


def test_searches_filter_by_everything_at_once(empty_store: Path, tmp_path: Path) -> None:
    store = open_store(None, root=empty_store)
    assert store.search() == []
    for name in EXAMPLES:
        write_example(tmp_path / name, name)
        experiment = "even" if name in ("original", "broken") else "odd"
        store.upload(tmp_path / name, experiment=experiment)

    def models(**wanted: object) -> list[str | None]:
        return [run.model for run in store.search(**wanted)]  # type: ignore[arg-type]

    newest_first = ["SmolLM2-135M-50", "SmolLM2-135M-ruin", "SmolLM2-135M-2of4", "SmolLM2-135M"]
    assert models() == newest_first
    assert models(role="pruned") == newest_first[:3]
    assert models(method="wanda") == ["SmolLM2-135M-ruin"]
    assert models(experiment="even") == ["SmolLM2-135M-ruin", "SmolLM2-135M"]
    assert models(experiment="even", role="original") == ["SmolLM2-135M"]
    assert models(experiment="none") == []
    assert models(limit=2) == newest_first[:2]
    assert models(name="SmolLM2-135M") == ["SmolLM2-135M"]
    assert models(record_key=pruned_record().record_key) == ["SmolLM2-135M-2of4"]
    assert models(status="FAILED") == []
    assert models(status=None) == newest_first


def test_a_run_left_running_by_a_dead_process_is_marked_failed(
    embedded: Store, tmp_path: Path
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    raw = client(embedded)
    experiment = embedded.upload(_written(tmp_path / "r"), experiment="orphans").experiment_id

    def running(host: str, pid: int) -> str:
        tags = {"prunescope.host": host, "prunescope.pid": str(pid), "prunescope.schema": "1"}
        return str(raw.create_run(experiment, tags=tags).info.run_id)

    orphan = running(socket.gethostname(), dead.pid)
    others = [running(socket.gethostname(), os.getpid()), running("another-host", dead.pid)]
    assert [ref.run_id for ref in embedded.recover_orphans()] == [orphan]
    assert embedded.get(orphan).status == "FAILED"
    assert [embedded.get(run_id).status for run_id in others] == ["RUNNING", "RUNNING"]
    assert embedded.recover_orphans() == []


def _written(directory: Path) -> Path:
    example(directory)
    return directory


# --- notes, views, addresses --------------------------------------------------------------------


def test_notes_and_late_figures_can_be_changed(store: Store, tmp_path: Path) -> None:
    ref = store.upload(_written(tmp_path / "r"), experiment="notes")
    note = "New\n\n| a | b |\n" + "row\n" * 5000
    tags = {"mlflow.note.content": note, "prunescope.baseline_run_id": "f" * 32}
    late = {"delta/mean_points": -3.0, "delta/ppl_ratio": float("inf")}
    store.annotate(ref.run_id, tags=tags, metrics=late)
    store.annotate(ref.run_id, metrics={"delta/mean_points": -4.0})
    run = store.get(ref.run_id)
    assert run.tags["mlflow.note.content"].startswith("New\n\n| a | b |")
    assert run.metrics["delta/mean_points"] == -4.0
    assert "delta/ppl_ratio" not in run.metrics
    assert run.baseline_run_id == "f" * 32


def test_a_run_with_a_baseline_links_to_both(store: Store, tmp_path: Path) -> None:
    original = store.upload(_written(tmp_path / "a"), experiment="links a")
    labels = pruned_record().labels.model_copy(update={"baseline_run_id": original.run_id})
    example(tmp_path / "b", "pruned", labels=labels)
    pruned = store.upload(tmp_path / "b", experiment="links b")
    note = store.get(pruned.run_id).tags["mlflow.note.content"]
    assert store.run_link(original) in note
    assert store.compare_link(original, pruned) in note
    assert (
        f"experiments=%5B%22{original.experiment_id}%22%2C%22{pruned.experiment_id}%22%5D" in note
    )
    for url in (pruned.url, store.compare_url([original, pruned]), store.experiment_url("1")):
        if store.is_embedded:
            assert url is None
        else:
            assert url is not None
            assert url.startswith(f"{store.uri}/#/")
            assert "workflowType=machine_learning" in url


def test_the_experiment_opens_in_a_preset_view_with_its_newest_original_as_baseline(
    embedded: Store, tmp_path: Path
) -> None:
    original = embedded.upload(_written(tmp_path / "a"), experiment="view")
    example(tmp_path / "b", "pruned")
    embedded.upload(tmp_path / "b", experiment="view")
    tags = client(embedded).get_experiment(original.experiment_id).tags
    assert read_view(tags[VIEW_TAG]).baseline_run_id == original.run_id
    assert read_view(tags[VIEW_TAG]).perplexities == ("ppl/wikitext2",)
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert "viewStateShareKey=prunescope" in tags["mlflow.note.content"].splitlines()[0]
    assert ("view", f"http://x/{_view_path(original.experiment_id)}") in embedded.experiment_links(
        "http://x/"
    )


def test_a_note_that_the_user_wrote_on_an_experiment_stays(embedded: Store, tmp_path: Path) -> None:
    raw = client(embedded)
    experiment = raw.create_experiment("mine", tags={"mlflow.note.content": "my own words"})
    embedded.upload(_written(tmp_path / "r"), experiment="mine")
    tags = raw.get_experiment(experiment).tags
    assert tags["mlflow.note.content"] == "my own words"
    assert VIEW_TAG in tags


def _view_path(experiment_id: str) -> str:
    return (
        f"#/experiments/{experiment_id}/runs?workflowType=machine_learning"
        "&viewStateShareKey=prunescope"
    )


# --- what goes wrong ----------------------------------------------------------------------------


def test_a_deleted_experiment_is_told(embedded: Store, tmp_path: Path) -> None:
    raw = client(embedded)
    raw.delete_experiment(raw.create_experiment("gone"))
    with pytest.raises(TrackingError, match="'gone' was deleted"):
        embedded.upload(_written(tmp_path / "r"), experiment="gone")


def test_a_running_or_damaged_record_is_not_sent(embedded: Store, tmp_path: Path) -> None:
    example(tmp_path / "running", status="running", finished_at=None)
    with pytest.raises(RecordError, match="has not ended"):
        embedded.upload(tmp_path / "running", experiment="bad")
    record = example(tmp_path / "cut")
    (tmp_path / "cut" / "samples" / "boolq.parquet").write_bytes(b"PAR1")
    with pytest.raises(RecordError, match="samples"):
        embedded.upload(tmp_path / "cut", experiment="bad")
    example(tmp_path / "whole", record_id=record.record_id)
    with pytest.raises(RecordError):
        embedded.upload(tmp_path / "nowhere", experiment="bad")


def test_only_what_belongs_to_a_record_is_sent(embedded: Store, tmp_path: Path) -> None:
    example(tmp_path / "r")
    (tmp_path / "r" / "plots").mkdir()
    (tmp_path / "r" / "plots" / "layers.png").write_bytes(b"\x89PNG")
    (tmp_path / "r" / "report.md").write_text("# Report")
    (tmp_path / "r" / "secrets.txt").write_text("x")
    (tmp_path / "r" / "samples" / "link.parquet").symlink_to("/etc/hostname")
    (tmp_path / "r" / ".boolq.parquet.1234.tmp").write_text("x")
    ref = embedded.upload(tmp_path / "r", experiment="files")
    raw = client(embedded)
    top = {entry.path for entry in raw.list_artifacts(ref.run_id)}
    assert top == {
        "manifest.json", "plots", "record.json", "report.md", "samples", "sparsity.json", "tables",
        "tokens",
    }  # fmt: skip
    assert len(raw.list_artifacts(ref.run_id, "samples")) == 7
    assert [e.path for e in raw.list_artifacts(ref.run_id, "plots")] == ["plots/layers.png"]


def test_credentials_in_the_address_reach_nothing_that_is_kept_or_shown(
    mlflow_server: str, tmp_path: Path
) -> None:
    address = mlflow_server.replace("http://", "http://ada:hunter2@")
    store = open_store(address, root=tmp_path)
    example(tmp_path / "r", "pruned")
    ref = store.upload(tmp_path / "r", experiment="secret")
    run = store.get(ref.run_id)
    assert ref.tracking_uri == mlflow_server
    shown = [ref.model_dump_json(), store.uri, str(run), str(store.compare_url([ref, ref]))]
    store.fetch(run, tmp_path / "back", everything=True)
    shown += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in shown if "hunter2" in text]


def answering(status: int, body: bytes = b"") -> Iterator[str]:
    with proxy(None, lambda method, path: (status, body)) as (address, _):
        yield address


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, b"", "asks for credentials"),
        (403, b"", "does not allow"),
        (500, b"", "answers with status 500"),
        (503, b"down", "answers with status 503"),
        (200, LOGIN_PAGE, "expected an MLflow server"),
        (302, b"", "expected an MLflow server"),
        (404, b"nothing", "expected an MLflow server"),
    ],
)
def test_a_server_that_is_none_is_told_at_once(
    tmp_path: Path, status: int, body: bytes, message: str
) -> None:
    start = time.monotonic()
    for address in answering(status, body):
        with pytest.raises(TrackingError, match=message) as caught:
            open_store(address, root=tmp_path)
    assert time.monotonic() - start < 3
    assert caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "asks for credentials"), (403, "does not allow this without credentials")],
)
def test_a_server_that_asks_for_credentials_behind_its_health_page_is_told(
    mlflow_server: str, tmp_path: Path, status: int, message: str
) -> None:
    def rule(method: str, path: str) -> Answer | None:
        return None if path == "/health" else (status, b"You are not authenticated.")

    with (
        proxy(mlflow_server, rule) as (address, _),
        pytest.raises(TrackingError, match=message) as caught,
    ):
        open_store(address, root=tmp_path)
    assert "MLFLOW_TRACKING_USERNAME" in (caught.value.hint or "")


def test_a_refused_connection_is_told_at_once(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://ada:hunter2@127.0.0.1:{taken.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(TrackingError, match="connection refused") as caught:
            open_store(address, root=tmp_path)
    assert time.monotonic() - start < 3
    assert "hunter2" not in str(caught.value)


def test_a_silent_server_is_told_within_seconds(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        with pytest.raises(TrackingError, match="no answer in 5 s"):
            open_store(f"http://127.0.0.1:{silent.getsockname()[1]}", root=tmp_path)
    assert time.monotonic() - start < 8


def test_artifacts_that_a_login_page_swallowed_are_noticed(
    mlflow_server: str, tmp_path: Path
) -> None:
    def rule(method: str, path: str) -> Answer | None:
        return (200, LOGIN_PAGE) if method == "PUT" and "samples" in path else None

    record = example(tmp_path / "r")
    with (
        proxy(mlflow_server, rule) as (address, _),
        pytest.raises(TrackingError, match="8 of 12 artifacts did not arrive"),
    ):
        open_store(address, root=tmp_path).upload(tmp_path / "r", experiment="login")
    assert uploaded_to(tmp_path / "r") == []
    store = open_store(mlflow_server, root=tmp_path)
    assert [store.get(run_id).status for run_id in with_id(store, record)] == ["RUNNING"]
    ref = store.upload(tmp_path / "r", experiment="login")
    assert with_id(store, record) == [ref.run_id]
    assert store.get(ref.run_id).status == "FINISHED"


def test_content_that_is_wrong_at_the_right_size_is_noticed(
    mlflow_server: str, tmp_path: Path
) -> None:
    record = example(tmp_path / "r")
    store = open_store(mlflow_server, root=tmp_path)
    experiment = store.upload(_written(tmp_path / "other"), experiment="login").experiment_id
    # A former, damaged upload left a file of the same size; now a login page takes every PUT.
    raw = client(store)
    left = raw.create_run(
        experiment, tags={"prunescope.record_id": record.record_id, "prunescope.schema": "1"}
    )
    path = tmp_path / "r" / "tokens" / "wikitext2.npz"
    (tmp_path / path.name).write_bytes(bytes(path.stat().st_size))
    raw.log_artifact(left.info.run_id, str(tmp_path / path.name), "tokens")

    def rule(method: str, path: str) -> Answer | None:
        return (200, LOGIN_PAGE) if method == "PUT" and "tokens" in path else None

    with (
        proxy(mlflow_server, rule) as (address, _),
        pytest.raises(TrackingError, match="1 of 12 artifacts did not arrive whole: tokens/wiki"),
    ):
        open_store(address, root=tmp_path).upload(tmp_path / "r", experiment="login")
    assert MANIFEST_TAG not in store.get(left.info.run_id).tags
    assert uploaded_to(tmp_path / "r") == []
    ref = store.upload(tmp_path / "r", experiment="login")
    assert ref.run_id == left.info.run_id
    back = store.fetch(store.get(ref.run_id), tmp_path / "back", everything=True)
    assert (back / "tokens" / path.name).read_bytes() == path.read_bytes()


def test_a_login_page_is_noticed_where_it_is_read_back(mlflow_server: str, tmp_path: Path) -> None:
    example(tmp_path / "r")

    def rule(method: str, path: str) -> Answer | None:
        return (200, LOGIN_PAGE) if method == "GET" and path.endswith("rte.parquet") else None

    with (
        proxy(mlflow_server, rule) as (address, _),
        pytest.raises(TrackingError, match="1 of 12 artifacts did not arrive whole: samples/rte"),
    ):
        open_store(address, root=tmp_path).upload(tmp_path / "r", experiment="login")


def test_artifacts_that_changed_since_they_were_sent_are_not_read(
    store: Store, tmp_path: Path
) -> None:
    ref = store.upload(_written(tmp_path / "r"), experiment="changed")
    run = store.get(ref.run_id)
    raw = client(store)
    (tmp_path / "report.md").write_text("A report that was made anew")
    raw.log_artifact(ref.run_id, str(tmp_path / "report.md"))
    store.fetch(run, tmp_path / "fine", everything=True)
    (tmp_path / "rte.parquet").write_bytes(b"PAR1")
    raw.log_artifact(ref.run_id, str(tmp_path / "rte.parquet"), "samples")
    with pytest.raises(RecordError, match=r"samples/rte\.parquet is not the one that was sent"):
        store.fetch(run, tmp_path / "damaged", everything=True)
    (tmp_path / "manifest.json").write_text("{}")
    raw.log_artifact(ref.run_id, str(tmp_path / "manifest.json"))
    with pytest.raises(RecordError, match=r"manifest\.json is not the one that was sent"):
        store.fetch(run, tmp_path / "damaged")


@pytest.mark.parametrize("address", ["mlruns", "file:///tmp/mlruns", "ftp://host/x", "local host"])
def test_an_address_of_no_store_is_told(tmp_path: Path, address: str) -> None:
    with pytest.raises(TrackingError, match="expected the address of a tracking server"):
        open_store(address, root=tmp_path)


def test_a_file_that_is_no_database_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"not a database" * 100)
    start = time.monotonic()
    with pytest.raises(TrackingError, match="cannot open"):
        open_store(None, root=tmp_path)
    assert time.monotonic() - start < 3


def test_what_a_killed_creation_left_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / ".mlflow.db.new").write_bytes(b"half a database")
    store = open_store(None, root=tmp_path)
    assert store.search() == []
    assert sorted(p.name for p in tmp_path.iterdir()) == [".mlflow.db.lock", "mlflow.db"]


def test_a_database_server_that_is_away_is_told_at_once(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"postgresql://ada:hunter2@127.0.0.1:{taken.getsockname()[1]}/mlflow"
        with pytest.raises(TrackingError, match="connection refused") as caught:
            open_store(address, root=tmp_path)
    assert "hunter2" not in str(caught.value)


def test_a_store_that_cannot_be_created_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write the tracking store"):
        open_store(None, root=tmp_path / "file" / "mlruns")


def test_the_environment_names_the_store_and_keeps_the_users_settings(
    empty_store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "33")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{empty_store / 'mlflow.db'}")
    store = open_store(None, root=tmp_path / "unused")
    assert store.uri == f"sqlite:///{empty_store / 'mlflow.db'}"
    assert store.artifact_location == str(empty_store / "artifacts")
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "33"
    assert not (tmp_path / "unused").exists()


def test_artifacts_lie_under_the_stores_folder_wherever_one_stands(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example(tmp_path / "r")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    ref = open_store(None, root=Path("../mlruns")).upload(tmp_path / "r", experiment="here")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    monkeypatch.chdir(tmp_path)
    store = open_store(None, root=Path("mlruns"))
    assert store.read_record(store.get(ref.run_id)).status == "finished"


def test_whatever_a_record_holds_only_our_errors_come_out(embedded: Store, tmp_path: Path) -> None:
    example(tmp_path / "r")
    ref = embedded.upload(tmp_path / "r", experiment="damaged")
    raw = client(embedded)
    for content in (b"", b"{", b"[]", b'{"schema_version": 99}', b"\xff\xfe", b'{"status": 1}'):
        (tmp_path / "record.json").write_bytes(content)
        raw.log_artifact(ref.run_id, str(tmp_path / "record.json"))
        with pytest.raises(PrunescopeError):
            embedded.read_record(embedded.get(ref.run_id))


def test_arrays_come_back_without_pickle(embedded: Store, tmp_path: Path) -> None:
    example(tmp_path / "r")
    ref = embedded.upload(tmp_path / "r", experiment="arrays")
    back = embedded.fetch(embedded.get(ref.run_id), tmp_path / "back", everything=True)
    with np.load(back / "tokens" / "wikitext2.npz", allow_pickle=False) as arrays:
        assert arrays["logprob"].shape == (6, 31)
    shutil.rmtree(back)
