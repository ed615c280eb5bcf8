"""``--logged-model``: the evaluated model among MLflow's logged models, once a run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.entities import LoggedModel
from mlflow.tracking import MlflowClient
from support.browser import needs_browser, screenshot, start_browser
from support.cli import SMALL, run_cli
from support.records import pruned_record, write_example
from support.server import fresh_store, proxy

from prunescope.cli.publishing import Tracker, open_tracker, publish
from prunescope.errors import TrackingError
from prunescope.records import RunRef, new_record_id, write_record
from prunescope.tracking.codec import dataset_inputs, encode
from prunescope.tracking.store import Store, open_store
from prunescope.tracking.store.logged_model import MODEL_TAG, WANTED_TAG, add_model, check_models


@pytest.fixture(params=["embedded", "server"])
def store(request: pytest.FixtureRequest, empty_database: Path, tmp_path: Path) -> Iterator[Store]:
    if request.param == "server":
        yield open_store(request.getfixturevalue("mlflow_server"), root=tmp_path / "mlruns")
    else:
        yield fresh_store(empty_database, tmp_path / "mlruns")


def write(folder: Path, **changes: object) -> Path:
    record = write_example(folder, "pruned")
    changes = {"record_id": new_record_id(), **changes}
    write_record(folder, record.model_copy(update=changes))
    return folder


def send(store: Store, folder: Path, *, wanted: bool = True) -> RunRef:
    outcome = publish(folder, Tracker(folder.parent, store, "models", logged_model=wanted))
    assert outcome.run is not None, outcome.problem
    return outcome.run


def models(store: Store, run: RunRef) -> list[LoggedModel]:
    found = MlflowClient(store.uri).search_logged_models([run.experiment_id])
    return [model for model in found if model.source_run_id == run.run_id]


def test_the_models_figures_are_the_runs_each_with_its_data_set(
    store: Store, tmp_path: Path
) -> None:
    run = send(store, write(tmp_path / "r"))
    (model,) = models(store, run)
    assert str(model.status) == "READY"
    assert store.get(run.run_id).tags[MODEL_TAG] == model.model_id
    stored = store.get(run.run_id)
    logged = {metric.key: metric for metric in model.metrics}
    own = {k: v for k, v in stored.metrics.items() if not k.startswith(("layers/", "time/", "tok"))}
    assert {key: metric.value for key, metric in logged.items()} == own
    assert {"ppl/wikitext2", "acc/boolq", "acc_norm/hellaswag", "sparsity/linear"} <= set(logged)
    digests = {one.name: one.digest for one in dataset_inputs(pruned_record())}
    for key, name in (("acc_norm/hellaswag", "hellaswag"), ("ppl/wikitext2", "wikitext2")):
        metric = logged[key]
        assert (metric.dataset_name, metric.dataset_digest) == (name, digests[name])
        assert metric.run_id == run.run_id
    assert logged["sparsity/linear"].dataset_name is None
    assert model.params == encode(pruned_record()).params


def test_the_run_keeps_each_point_once_and_names_the_model(store: Store, tmp_path: Path) -> None:
    run = send(store, write(tmp_path / "r"))
    (model,) = models(store, run)
    client = MlflowClient(store.uri)
    for key in ("acc/boolq", "ppl/wikitext2"):
        assert len(client.get_metric_history(run.run_id, key)) == 1
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert [one.model_id for one in stored.inputs.model_inputs] == [model.model_id]
    assert len(stored.inputs.dataset_inputs) == len(dataset_inputs(pruned_record()))


def test_sending_again_makes_no_second_model(store: Store, tmp_path: Path) -> None:
    folder = write(tmp_path / "r")
    run = send(store, folder)
    (first,) = models(store, run)
    # As sync does it: the record itself says what is wanted.
    assert send(store, folder, wanted=False) == run
    (second,) = models(store, run)
    assert second.to_dictionary() == first.to_dictionary()


def test_only_who_asks_gets_one(store: Store, tmp_path: Path) -> None:
    run = send(store, write(tmp_path / "r"), wanted=False)
    assert models(store, run) == []
    assert MODEL_TAG not in store.get(run.run_id).tags
    failed = write(tmp_path / "f", status="failed")
    assert models(store, send(store, failed)) == []


@pytest.mark.parametrize("cut", ["log-batch", "log-inputs", "PATCH"])
def test_an_interrupted_call_is_completed_by_the_next(
    mlflow_server: str, tmp_path: Path, cut: str
) -> None:
    store = open_store(mlflow_server, root=tmp_path / "mlruns")
    folder = write(tmp_path / "r")
    run = send(store, folder, wanted=False)
    record = pruned_record()

    def refuse(method: str, path: str) -> tuple[int, bytes] | None:
        hit = method == cut if cut.isupper() else path.endswith(cut)
        return (403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}') if hit else None

    with proxy(mlflow_server, refuse) as (address, _), pytest.raises(TrackingError):
        add_model(open_store(address, root=tmp_path / "mlruns"), run, record)
    (begun,) = models(store, run)
    assert str(begun.status) == "PENDING"
    add_model(store, run, record)
    (model,) = models(store, run)
    assert (model.model_id, str(model.status)) == (begun.model_id, "READY")
    assert len(model.metrics) > 30


def test_a_second_model_that_a_retried_request_made_goes(
    mlflow_server: str, tmp_path: Path
) -> None:
    store = open_store(mlflow_server, root=tmp_path / "mlruns")
    run = send(store, write(tmp_path / "r"))
    (first,) = models(store, run)
    client = MlflowClient(mlflow_server)
    tags = {"prunescope.record_id": "x"}
    client.create_logged_model(run.experiment_id, source_run_id=run.run_id, tags=tags)
    client.create_logged_model(run.experiment_id, source_run_id=run.run_id, name="theirs")
    add_model(store, run, pruned_record())
    assert {model.name for model in models(store, run)} == {first.name, "theirs"}


def test_it_costs_five_requests(mlflow_server: str, tmp_path: Path) -> None:
    spent = []
    with proxy(mlflow_server) as (address, seen):
        store = open_store(address, root=tmp_path / "mlruns")
        store.upload(write(tmp_path / "warm"), experiment="models")
        for number, tags in enumerate(({}, {WANTED_TAG: "wanted"})):
            labels = pruned_record().labels.model_copy(update={"tags": tags})
            folder = write(tmp_path / f"r{number}", labels=labels)
            start = len(seen)
            store.upload(folder, experiment="models")
            spent.append(seen[start:])
    without, within = spent
    assert len(within) - len(without) == 5
    added = [path.rpartition("/mlflow/")[2] for _, path in within if "logged-models" in path]
    assert added[:2] == ["logged-models/search", "logged-models"]
    assert len(added) == 3
    for name in ("runs/log-batch", "runs/log-inputs"):
        counts = [sum(path.endswith(name) for _, path in seen) for seen in spent]
        assert counts == [1, 2]


def test_a_server_without_logged_models_is_told_of_before_the_evaluation(
    mlflow_server: str, tmp_path: Path, tiny_llama: Path
) -> None:
    def before_mlflow_3(method: str, path: str) -> tuple[int, bytes] | None:
        return (404, b"<html>Not Found</html>") if "logged-models" in path else None

    with proxy(mlflow_server, before_mlflow_3) as (address, _):
        done = run_cli(
            ["eval", str(tiny_llama), "--logged-model", "--tracking-uri", address], tmp_path
        )
        assert done.exit_code == 2
        assert "no logged models" in done.stderr
        assert "--logged-model" in done.stderr
        # A record that wants one is sent all the same.
        store = open_store(address, root=tmp_path / "mlruns")
        labels = pruned_record().labels.model_copy(update={"tags": {WANTED_TAG: "wanted"}})
        run = send(store, write(tmp_path / "r", labels=labels), wanted=False)
        assert store.get(run.run_id).is_complete
        with pytest.raises(TrackingError, match="MLflow 3"):
            check_models(store)


def test_the_commands_pass_it_on(
    empty_database: Path, tmp_path: Path, tiny_llama: Path, tiny_llama_pruned: Path
) -> None:
    store = fresh_store(empty_database, tmp_path / "mlruns")
    small = [*SMALL, "--tasks", "boolq", "--skip", "perplexity"]
    assert run_cli(["eval", str(tiny_llama), *small], tmp_path).exit_code == 0
    (original,) = store.search()
    assert models(store, original.ref) == []
    # Asked for later, without evaluating again.
    done = run_cli(["eval", str(tiny_llama), *small, "--logged-model"], tmp_path)
    assert done.exit_code == 0, done.stderr
    assert "not run again" in done.stderr
    assert len(models(store, original.ref)) == 1
    pair = ["pair", str(tiny_llama), str(tiny_llama_pruned), *small, "--logged-model"]
    done = run_cli(pair, tmp_path)
    assert done.exit_code == 0, done.stderr
    (pruned,) = store.search(role="pruned")
    (model,) = models(store, pruned.ref)
    accuracy = {metric.key: metric.value for metric in model.metrics}["acc/boolq"]
    assert math.isclose(accuracy, pruned.metrics["acc/boolq"])


def test_a_record_that_was_made_without_a_server_gets_its_model_when_it_is_sent(
    empty_database: Path, tmp_path: Path
) -> None:
    away = open_tracker("http://127.0.0.1:9", tmp_path / "mlruns", None, logged_model=True)
    folder = write(tmp_path / "mlruns" / "records" / "r")
    assert publish(folder, away).run is None
    store = fresh_store(empty_database, tmp_path / "mlruns")
    done = run_cli(["sync"], tmp_path)
    assert done.exit_code == 0, done.stderr
    (run,) = store.search()
    assert len(models(store, run.ref)) == 1


@needs_browser
def test_the_models_page_shows_its_figures_and_the_runs_page_leads_there(
    mlflow_server: str, tmp_path: Path
) -> None:
    store = open_store(mlflow_server, root=tmp_path / "mlruns")
    run = send(store, write(tmp_path / "r"))
    (model,) = models(store, run)
    perplexity = store.get(run.run_id).metrics["ppl/wikitext2"]
    with start_browser() as browser:
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(60_000)
        page.goto(str(run.url))
        with page.context.expect_page() as opened:
            page.get_by_role("link", name=model.name).first.click()
        page = opened.value
        page.set_viewport_size({"width": 1600, "height": 1000})
        assert page.url.endswith(f"/models/{model.model_id}")
        row = page.get_by_role("row").filter(has_text="ppl/wikitext2")
        row.filter(has_text="wikitext2 (#").filter(has_text=str(perplexity)).wait_for()
        screenshot(page, "logged-model")
