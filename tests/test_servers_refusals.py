"""Wrong answers at each step of sending and reading a run: told in a line, and nothing is lost."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from support.records import failed_record, write_example
from support.server import Answer as Reply
from support.server import proxy

from prunescope.errors import TrackingError
from prunescope.records import EvalRecord, read_record, write_record
from prunescope.tracking.spool import uploaded_to
from prunescope.tracking.store import Store, open_store
from prunescope.tracking.store.refusals import Answer, not_mlflow, refused

LOGIN_PAGE = b"<!doctype html><title>Sign in</title><form></form>"
MLFLOW_403 = b'{"error_code": "PERMISSION_DENIED", "message": "Permission denied"}'
API = "/api/2.0/mlflow/"
FILES = "/api/2.0/mlflow-artifacts/artifacts"
SENDING = {
    "probe": ("GET", r"/health$"),
    "list of experiments": ("POST", f"{API}experiments/search"),
    "search": ("POST", f"{API}runs/search"),
    "new run": ("POST", f"{API}runs/create"),
    "figures": ("POST", f"{API}runs/log-batch"),
    "upload": ("PUT", f"{FILES}/.*record.json"),
    "list of files": ("GET", rf"{FILES}\?"),
    "reading back": ("GET", f"{FILES}/.*record.json"),
    "mark of completeness": ("POST", f"{API}runs/set-tag"),
    "end": ("POST", f"{API}runs/update"),
}
READING = {
    "run": ("GET", f"{API}runs/get"),
    "list of files": ("GET", rf"{FILES}\?"),
    "record": ("GET", f"{FILES}/.*record.json"),
}
ANSWERS: dict[str, tuple[Reply, str]] = {
    "401": ((401, b"You are not authenticated."), "asks for credentials (status 401)"),
    "403": ((403, MLFLOW_403), "does not allow this without credentials (status 403)"),
    "500": ((500, b"Internal Server Error"), "answers with status 500"),
    "login page": ((200, LOGIN_PAGE), "login page"),
}


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunescope.tracking.store.patience._WAIT_SECONDS", 0.01)


def example(directory: Path) -> EvalRecord:
    record = failed_record().model_copy(update={"record_id": os.urandom(16).hex()})
    write_record(directory, record)
    return record


def answering(step: tuple[str, str], answer: Reply) -> Callable[[str, str], Reply | None]:
    def rule(method: str, path: str) -> Reply | None:
        return answer if method == step[0] and re.search(step[1], path) else None

    return rule


def told(error: TrackingError, address: str, said: str) -> None:
    line = f"{error}. {error.hint}"
    assert "\n" not in line
    assert said in line
    assert error.hint
    if said != "login page":
        assert address in line
    for raw in ("API request", "Max retries", "Client Error", "<html", "<!doctype"):
        assert raw not in line


@pytest.mark.slow
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("step", SENDING)
def test_what_a_step_of_sending_answers_is_told_and_sending_again_makes_one_run(
    mlflow_server: str, tmp_path: Path, step: str, answer: str
) -> None:
    given, said = ANSWERS[answer]
    record = example(tmp_path / "r")
    with (
        proxy(mlflow_server, answering(SENDING[step], given)) as (address, seen),
        pytest.raises(TrackingError) as caught,
    ):
        open_store(address, root=tmp_path).upload(tmp_path / "r", experiment="refusals")
    assert any(re.search(SENDING[step][1].split(r"\?")[0], path) for _, path in seen)
    told(caught.value, address, said)
    assert uploaded_to(tmp_path / "r") == []
    store = open_store(mlflow_server, root=tmp_path)
    ref = store.upload(tmp_path / "r", experiment="refusals")
    (run,) = store.search(record_id=record.record_id, status=None)
    assert run.ref.run_id == ref.run_id
    assert run.is_complete
    assert store.read_record(run) == read_record(tmp_path / "r")


def test_a_proxy_that_does_not_reach_the_server_is_told(tmp_path: Path) -> None:
    with (
        proxy(None, lambda method, path: (502, b"<html>Bad Gateway</html>")) as (address, _),
        pytest.raises(TrackingError) as caught,
    ):
        open_store(address, root=tmp_path)
    told(caught.value, address, "answers with status 502")
    assert "the proxy before it" in (caught.value.hint or "")


@pytest.fixture(scope="module")
def stored(mlflow_server: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str]:
    folder = tmp_path_factory.mktemp("stored")
    write_example(folder / "r", "original")
    store = open_store(mlflow_server, root=folder)
    return store, store.upload(folder / "r", experiment="refusals").run_id


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("step", READING)
def test_what_a_step_of_reading_answers_is_told(
    mlflow_server: str, stored: tuple[Store, str], tmp_path: Path, step: str, answer: str
) -> None:
    given, said = ANSWERS[answer]
    with proxy(mlflow_server, answering(READING[step], given)) as (address, _):
        store = open_store(address, root=tmp_path)
        with pytest.raises(TrackingError) as caught:
            store.fetch(store.get(stored[1]), tmp_path / "back", everything=True)
        told(caught.value, address, said)
        with pytest.raises(TrackingError) as caught:
            store.read_record(store.get(stored[1]))
        told(caught.value, address, said)


# --- what stands before a server ---------------------------------------------------------------


def test_a_certificate_of_the_labs_own_is_trusted_once_it_is_named(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "lab.pem"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    record = example(tmp_path / "r")
    with proxy(mlflow_server, tls=tls) as (address, _):
        with pytest.raises(TrackingError, match="certificate cannot be verified") as caught:
            open_store(address, root=tmp_path)
        assert str(caught.value).replace(address, NAMED) in documented()
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(tmp_path / "lab.pem"))
        store = open_store(address, root=tmp_path)
        ref = store.upload(tmp_path / "r", experiment="refusals")
        assert store.read_record(store.get(ref.run_id)).record_id == record.record_id
        assert (ref.url or "").startswith("https://127.0.0.1:")


def test_a_server_under_a_path_is_used_there(mlflow_server: str, tmp_path: Path) -> None:
    record = example(tmp_path / "r")
    with proxy(mlflow_server, below="/mlflow") as (address, _):
        store = open_store(f"{address}/mlflow/", root=tmp_path)
        ref = store.upload(tmp_path / "r", experiment="refusals")
        assert len(store.search(record_id=record.record_id, status=None)) == 1
        assert store.read_record(store.get(ref.run_id)) == read_record(tmp_path / "r")
        assert (ref.url or "").startswith(f"{address}/mlflow/#/experiments/")
        with pytest.raises(TrackingError, match="expected an MLflow server"):
            open_store(address, root=tmp_path)


@pytest.mark.parametrize("place", ["https://tracking.example.org/health", "/login?next=health"])
def test_a_redirection_is_told_with_its_end(tmp_path: Path, place: str) -> None:
    with (
        proxy(None, lambda method, path: (302, b"", {"Location": place})) as (address, _),
        pytest.raises(TrackingError, match="found a redirection to") as caught,
    ):
        open_store(address, root=tmp_path)
    told(caught.value, address, place)


# --- docs/tracking-servers.md -------------------------------------------------------------------

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tracking-servers.md"
NAMED = "https://tracking.example.org"


def documented() -> list[str]:
    """The messages of the page."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return [one for one in lines if one.startswith(("the tracking server ", "expected an MLflow"))]


HOST_403 = "Invalid Host header - possible DNS rebinding attack detected"
LOGGED_IN = {"USERNAME": "ada", "PASSWORD": "secret"}


@pytest.mark.parametrize(
    ("uri", "settings", "answer"),
    [
        (NAMED, {}, Answer(401)),
        (NAMED, LOGGED_IN, Answer(401)),
        (NAMED, {"TOKEN": "secret"}, Answer(401)),
        (NAMED, LOGGED_IN | {"USERNAME": "grace"}, Answer(403, "Permission denied")),
        ("http://10.1.2.3:5000", LOGGED_IN, Answer(403, HOST_403)),
        (NAMED, LOGGED_IN, Answer(500)),
        (NAMED, LOGGED_IN, Answer(502)),
        (NAMED, {"TOKEN": "secret"}, Answer(500)),
        (NAMED, {}, None),
    ],
)
def test_the_page_has_the_very_messages(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    uri: str,
    settings: dict[str, str],
    answer: Answer | None,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in settings.items():
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", value)
    line = str(not_mlflow(uri) if answer is None else refused(uri, answer))
    assert "secret" not in line
    assert line in documented()


def test_the_page_has_the_message_of_a_redirection() -> None:
    assert str(not_mlflow(NAMED.replace("https", "http"), f"{NAMED}/health")) in documented()


def test_the_page_has_no_other_messages() -> None:
    assert len(documented()) == len(set(documented())) == 11
