"""Which run a user means, over a real store."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.records import failed_record, original_record, write_example
from support.server import fresh_store

from prunescope.errors import RecordError, RunNotFoundError
from prunescope.records import RunRef, write_record
from prunescope.tracking.query import resolve_run
from prunescope.tracking.store import Store, open_store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("query")


@pytest.fixture(scope="module")
def refs(folder: Path, empty_database: Path) -> dict[str, RunRef]:
    store = fresh_store(empty_database, folder)
    refs = {}
    for number, name in enumerate(("original", "pruned", "other-window")):
        write_example(folder / name, name)
        refs[name] = store.upload(folder / name, experiment=f"experiment {number}")
    write_record(folder / "failed", failed_record())
    refs["failed"] = store.upload(folder / "failed", experiment="experiment 0")
    return refs


@pytest.fixture
def store(folder: Path, refs: dict[str, RunRef]) -> Store:
    return open_store(None, root=folder)


def found(store: Store, selector: str) -> str:
    return resolve_run(store, selector).ref.run_id


def test_a_run_answers_to_its_id_in_each_spelling(store: Store, refs: dict[str, RunRef]) -> None:
    wanted = refs["pruned"].run_id
    for selector in (wanted, wanted[:8], wanted[:12].upper(), f"runs:/{wanted}", f" {wanted} "):
        assert found(store, selector) == wanted
    assert found(store, f"runs:/{wanted[:10]}") == wanted
    assert found(store, f"runs:/{wanted}/record.json") == wanted


def test_a_run_answers_to_its_name(store: Store, refs: dict[str, RunRef]) -> None:
    assert found(store, "SmolLM2-135M-2of4 · 2:4 magnitude") == refs["pruned"].run_id


def test_latest_is_the_newest_finished_run_of_a_model(
    store: Store, refs: dict[str, RunRef]
) -> None:
    # The failed evaluation is of the same model and was sent later.
    assert found(store, "latest:SmolLM2-135M") == refs["original"].run_id
    assert found(store, "latest:HuggingFaceTB/SmolLM2-135M@main") == refs["original"].run_id
    assert found(store, "latest:models/SmolLM2-135M-2of4/") == refs["pruned"].run_id


def test_an_unknown_name_lists_the_nearest(store: Store, refs: dict[str, RunRef]) -> None:
    with pytest.raises(RunNotFoundError) as caught:
        resolve_run(store, "SmolLM2-135M-2of4 magnitude")
    nearest = caught.value.message.partition("the nearest: ")[2]
    assert nearest.startswith(f"SmolLM2-135M-2of4 · 2:4 magnitude ({refs['pruned'].run_id[:8]})")
    assert caught.value.hint


def test_an_unknown_model_lists_the_models(store: Store) -> None:
    with pytest.raises(RunNotFoundError, match=r"the nearest: .*SmolLM2-135M-2of4"):
        resolve_run(store, "latest:SmolLM2-135M-2o4")


def test_an_unknown_id_is_told(store: Store) -> None:
    for selector in ("0" * 32, f"runs:/{'0' * 32}", "runs:/nonsense", "latest:", "", "'\""):
        with pytest.raises(RunNotFoundError):
            resolve_run(store, selector)


def test_a_name_of_several_runs_lists_them(
    store: Store, refs: dict[str, RunRef], folder: Path
) -> None:
    twin = original_record().model_copy(update={"record_id": "9" * 32})
    write_record(folder / "twin", twin)
    second = store.upload(folder / "twin", experiment="experiment 1")
    try:
        with pytest.raises(RunNotFoundError, match="names 2 runs") as caught:
            resolve_run(store, "SmolLM2-135M")
        assert refs["original"].run_id[:8] in caught.value.message
        assert second.run_id[:8] in caught.value.message
    finally:
        client(folder).delete_run(second.run_id)


def test_a_run_that_did_not_finish_is_told_as_such(store: Store, refs: dict[str, RunRef]) -> None:
    with pytest.raises(RunNotFoundError, match="is FAILED"):
        resolve_run(store, refs["failed"].run_id)


def test_a_finished_evaluation_is_found_by_its_key(store: Store, refs: dict[str, RunRef]) -> None:
    key = original_record().record_key
    assert key is not None
    (run,) = store.search(record_key=key)
    assert run.ref == refs["original"]
    assert store.search(record_key="f" * 64) == []


def test_a_strangers_run_is_found_by_id_and_has_no_record(store: Store, folder: Path) -> None:
    foreign = client(folder).create_run("0", run_name="someone else's")
    client(folder).log_param(foreign.info.run_id, "learning_rate", 0.1)
    client(folder).log_metric(foreign.info.run_id, "loss", 2.5)
    client(folder).set_terminated(foreign.info.run_id)
    for selector in (foreign.info.run_id, foreign.info.run_id[:8], "someone else's"):
        run = resolve_run(store, selector)
        with pytest.raises(RecordError, match="metrics: loss; params: learning_rate"):
            store.read_record(run)
    assert all(run.model for run in store.search())


def test_an_empty_store_says_how_to_begin(empty_store: Path) -> None:
    with pytest.raises(RunNotFoundError, match="prunescope eval MODEL"):
        resolve_run(open_store(None, root=empty_store), "anything")


def client(folder: Path):  # type: ignore[no-untyped-def]
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
