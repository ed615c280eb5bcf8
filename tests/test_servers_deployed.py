"""The server of ``deploy/compose.yaml``, started for real: accounts, permissions, names, tokens.

PostgreSQL comes from a wheel, and moto answers as the S3 store in the place of SeaweedFS.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import psycopg2
import pytest
import requests
from support.cli import SMALL, Finished, run_cli
from support.compose import DEPLOY
from support.postgres import HOST, Deployment
from support.postgres import deployment as deployment
from support.records import write_example
from support.server import Answer, Headers, proxy

from prunescope.records import EvalRecord, read_record, write_record
from prunescope.tracking.spool import list_records, uploaded_to
from prunescope.tracking.store import Store, open_store

pytestmark = pytest.mark.slow  # it takes 15 s to start

WRITER = ("ada", "writes her own runs")
READER = ("grace", "reads what others did")


@pytest.fixture(scope="module")
def server(deployment: Deployment) -> Deployment:
    """The deployment with two users, of whom one owns the experiment ``lab``."""
    for name, password in (WRITER, READER):
        done = in_container(deployment, "mlflow", f"python /opt/users.py add {name}", password)
        assert done.stdout == f"added {name}\n", done.stderr
    made = requests.post(
        f"{deployment.address}/api/2.0/mlflow/experiments/create",
        json={"name": "lab"},
        auth=WRITER,
        timeout=10,
    )
    made.raise_for_status()
    return deployment


def in_container(
    deployment: Deployment, service: str, command: str, typed: str = ""
) -> subprocess.CompletedProcess[str]:
    """What ``docker compose exec SERVICE COMMAND`` would run."""
    return subprocess.run(
        deployment.command(service, shlex.split(command)),
        # In its own container PostgreSQL asks for no password.
        env={"PGPASSWORD": deployment.environment("mlflow")["PGPASSWORD"]}
        | deployment.environment(service),
        input=f"{typed}\n",
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


@pytest.fixture(autouse=True)
def only_the_server_reaches_the_s3_store(
    deployment: Deployment, clean_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the deployment, where its address means nothing outside."""
    connect = socket.socket.connect
    hidden = int(deployment.s3_address.rpartition(":")[2])

    def guarded(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[1] == hidden:
            raise OSError("a client connects to the S3 store")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    log_in(monkeypatch, None)


def log_in(patch: pytest.MonkeyPatch, user: tuple[str, str] | None) -> None:
    patch.delenv("MLFLOW_TRACKING_TOKEN", raising=False)
    for name, value in zip(("USERNAME", "PASSWORD"), user or (None, None), strict=True):
        if value is None:
            patch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
        else:
            patch.setenv(f"MLFLOW_TRACKING_{name}", value)


def add_record(folder: Path, which: str = "original", baseline: str | None = None) -> EvalRecord:
    """An example's record directory, with a record id of its own."""
    record = write_example(folder, which)
    labels = record.labels.model_copy(update={"baseline_run_id": baseline})
    record = record.model_copy(update={"record_id": os.urandom(16).hex(), "labels": labels})
    write_record(folder, record)
    return record


def runs_of(store: Store, record: EvalRecord) -> list[str]:
    return [run.ref.run_id for run in store.search(record_id=record.record_id, status=None)]


def one_error(done: Finished, *parts: str) -> None:
    """The command said one line, with all ``parts``, and exited with 2."""
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.error_lines
    assert line.startswith("Error: ")
    assert len(line) < 300
    for part in parts:
        assert part in line


# --- a run there and back -----------------------------------------------------------------------


def test_runs_lie_in_postgresql_and_s3_and_come_back_with_the_same_numbers(
    server: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(monkeypatch, WRITER)
    store = open_store(server.address, root=tmp_path)
    original = add_record(tmp_path / "original")
    first = store.upload(tmp_path / "original", experiment="lab")
    pruned = add_record(tmp_path / "pruned", "pruned", first.run_id)
    second = store.upload(tmp_path / "pruned", experiment="lab")
    assert store.upload(tmp_path / "pruned", experiment="lab") == second
    assert runs_of(store, pruned) == [second.run_id]
    for record, ref, name in ((original, first, "original"), (pruned, second, "pruned")):
        run = store.get(ref.run_id)
        assert run.is_complete
        there = store.read_record(run)
        assert there.tasks == record.tasks
        assert there.perplexity == record.perplexity
        back = store.fetch(run, tmp_path / f"{name} back", everything=True)
        assert read_record(back) == read_record(tmp_path / name)
        in_bucket = objects(server, f"artifacts/{ref.experiment_id}/{ref.run_id}/artifacts/")
        sent = {
            str(path.relative_to(tmp_path / name)): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file() and not path.name.startswith(".")
        }
        assert sent.keys() | {"manifest.json", "tables/samples.json"} == in_bucket.keys()
        assert sent.items() <= in_bucket.items()
        kept = metrics_in_postgresql(server, ref.run_id)
        corpus = record.perplexity["wikitext2"]
        assert kept["ppl/wikitext2"] == corpus.perplexity
        for task, result in record.tasks.items():
            assert kept[f"acc/{task}"] == result.accuracy
    link = store.compare_url([first, second])
    assert link is not None
    assert link.startswith(f"{server.address}/#/compare-runs?")
    compared = run_cli(
        ["compare", first.run_id, second.run_id, "--tracking-uri", server.address], tmp_path
    )
    assert compared.exit_code == 0, compared.stderr
    assert f"{pruned.tasks['boolq'].accuracy:.4f}" in compared.stdout


def objects(server: Deployment, prefix: str) -> dict[str, bytes]:
    """The objects of the bucket below ``prefix``, read by boto3 in a process that may."""
    with pytest.MonkeyPatch.context() as patch:
        patch.undo()
        patch.setattr(socket.socket, "connect", _PLAIN_CONNECT)
        access = server.environment("mlflow")
        client = boto3.client(
            "s3",
            endpoint_url=server.s3_address,
            aws_access_key_id=access["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=access["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
        )
        listed = client.list_objects_v2(Bucket="mlflow", Prefix=prefix)["Contents"]
        return {
            one["Key"].removeprefix(prefix): client.get_object(Bucket="mlflow", Key=one["Key"])[
                "Body"
            ].read()
            for one in listed
        }


_PLAIN_CONNECT = socket.socket.connect


def metrics_in_postgresql(server: Deployment, run_id: str) -> dict[str, float]:
    with psycopg2.connect(
        host="127.0.0.1",
        port=server.postgres.port,
        user="mlflow",
        password=server.environment("mlflow")["PGPASSWORD"],
        dbname="mlflow",
    ) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT key, value FROM latest_metrics WHERE run_uuid = %s", (run_id,))
        return dict(cursor.fetchall())


def test_the_database_itself_is_a_store_where_its_driver_is_there(
    server: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = server.environment("mlflow")
    monkeypatch.setenv("PGPASSWORD", environment["PGPASSWORD"])
    (backend,) = [word for word in server.command("mlflow") if "--backend-store-uri=" in word]
    uri = backend.partition("=")[2]
    with psycopg2.connect(uri.replace("+psycopg2", "")) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT count(*) FROM runs WHERE lifecycle_stage = 'active'")
        (count,) = cursor.fetchone() or (None,)
    assert len(open_store(uri, root=tmp_path).search(status=None)) == count
    done = run_cli(["runs", "--tracking-uri", uri.replace("psycopg2", "pg8000")], tmp_path)
    one_error(done, "needs the Python package pg8000", "postgresql+psycopg2://")
    start = time.monotonic()
    done = run_cli(["runs", "--tracking-uri", uri.replace("mlflow@", "nobody@")], tmp_path)
    one_error(done, "password authentication failed")
    assert time.monotonic() - start < 10  # MLflow by itself tries for two minutes


# --- credentials --------------------------------------------------------------------------------

NEEDS_CREDENTIALS = [
    (None, "asks for credentials (status 401)", "Set MLFLOW_TRACKING_USERNAME"),
    (("ada", "guessed"), "does not accept the user name 'ada' and its password", "Check MLFLOW"),
    (("ada", None), "asks for credentials", "Set MLFLOW_TRACKING_PASSWORD too"),
]


@pytest.mark.parametrize(("user", "said", "remedy"), NEEDS_CREDENTIALS)
@pytest.mark.parametrize(
    "command", [["runs"], ["leaderboard"], ["compare", "latest:a", "latest:b"], ["sync"]]
)
def test_without_the_right_credentials_a_command_says_so_in_a_line(
    server: Deployment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    user: Any,
    said: str,
    remedy: str,
) -> None:
    log_in(monkeypatch, user)
    add_record(tmp_path / "mlruns" / "records" / "20260101-waiting-01234567")
    done = run_cli([*command, "--tracking-uri", server.address], tmp_path)
    one_error(done, server.address, said, remedy)
    assert "guessed" not in done.stderr


def test_credentials_in_the_address_serve_one_server_and_are_written_nowhere(
    server: Deployment, tmp_path: Path, empty_store: Path
) -> None:
    mine = tmp_path / "mlruns" / "records" / "20260101-mine-01234567"
    record = add_record(mine)
    open_store(None, root=empty_store).upload(mine, experiment="lab")
    password = quote(WRITER[1])
    address = server.address.replace("http://", f"http://{WRITER[0]}:{password}@")
    wrong = address.replace(password, "guessed")
    one_error(
        run_cli(["sync", "--to", wrong], tmp_path),
        "does not accept the user name 'ada' and the password in its address (status 401)",
    )
    done = run_cli(["sync", "--to", address], tmp_path)
    assert (done.exit_code, done.stderr) == (0, "")
    (run,) = open_store(address, root=tmp_path).search(record_id=record.record_id)
    assert run.is_complete
    assert {ref.tracking_uri for ref in uploaded_to(mine)} >= {server.address}
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    shown = [done.stdout.encode(), repr(run).encode(), *written]
    assert not [one for one in shown if password.encode() in one or WRITER[1].encode() in one]


def test_credentials_are_taken_in_the_order_that_the_page_gives(
    server: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def works(address: str = server.address) -> bool:
        done = run_cli(["runs", "--tracking-uri", address], tmp_path)
        assert (done.exit_code == 0) or "does not accept" in done.stderr, done.stderr
        return done.exit_code == 0

    inside = server.address.replace("http://", f"http://{WRITER[0]}:{quote(WRITER[1])}@")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".mlflow").mkdir()
    file = tmp_path / ".mlflow" / "credentials"
    lines = "[mlflow]\nmlflow_tracking_username = ada\nmlflow_tracking_password = {}\n"
    file.write_text(lines.format(WRITER[1]))
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "wrong")
    assert works()
    file.write_text(lines.format("guessed"))
    assert not works()
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", WRITER[0])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", WRITER[1])
    assert works()
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "guessed")
    assert not works()
    assert works(inside)


def test_an_evaluation_with_wrong_credentials_is_kept_and_sent_later(
    server: Deployment, tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(monkeypatch, ("ada", "guessed"))
    where = ["--tracking-uri", server.address, "--experiment", "lab"]
    done = run_cli(["eval", str(tiny_llama), *SMALL, *where], tmp_path)
    assert done.exit_code == 0
    problem, remedy = done.error_lines[-2:]
    assert problem.startswith(f"not tracked: the tracking server {server.address} does not accept")
    assert "MLFLOW_TRACKING_PASSWORD" in problem
    (directory,) = list_records(tmp_path / "mlruns")
    assert directory.name in remedy
    assert "prunescope sync" in remedy
    assert uploaded_to(directory) == []
    log_in(monkeypatch, WRITER)
    sent = run_cli(["sync", *where], tmp_path)
    assert (sent.exit_code, sent.stderr) == (0, "")
    store = open_store(server.address, root=tmp_path)
    (ref,) = uploaded_to(directory)
    run = store.get(ref.run_id)
    assert run.is_complete
    assert store.read_record(run).tasks == read_record(directory).tasks


def test_a_user_who_may_only_read_lists_and_compares_and_is_told_why_nothing_is_sent(
    server: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(monkeypatch, WRITER)
    store = open_store(server.address, root=tmp_path)
    refs = []
    for which in ("original", "pruned"):
        add_record(tmp_path / which, which)
        refs.append(store.upload(tmp_path / which, experiment="lab"))
    log_in(monkeypatch, READER)
    where = ["--tracking-uri", server.address]
    listed = run_cli(["runs", *where], tmp_path)
    assert refs[0].run_id[:8] in listed.stdout
    compared = run_cli(["compare", *(ref.run_id for ref in refs), *where], tmp_path)
    assert compared.exit_code == 0, compared.stderr
    bundle = ["export", refs[0].run_id, "--out", "bundle.tar", *where]
    exported = run_cli(bundle, tmp_path)
    assert exported.exit_code == 0, exported.stderr
    mine = tmp_path / "mlruns" / "records" / "20260101-mine-01234567"
    record = add_record(mine)
    done = run_cli(["sync", *where, "--experiment", "lab"], tmp_path)
    one_error(
        done,
        "does not allow this with the user name 'grace'",
        "status 403",
        "permission to edit the experiment",
    )
    assert runs_of(open_store(server.address, root=tmp_path), record) == []
    assert uploaded_to(mine) == []
    own = run_cli(["sync", *where, "--experiment", "grace"], tmp_path)
    assert (own.exit_code, own.stderr) == (0, "")
    assert len(uploaded_to(mine)) == 1


# --- what is behind the server goes away --------------------------------------------------------


def test_a_server_whose_database_is_gone_costs_an_evaluation_its_upload_alone(
    server: Deployment, tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(monkeypatch, WRITER)
    where = ["--tracking-uri", server.address, "--experiment", "lab"]
    server.postgres.stop()
    try:
        start = time.monotonic()
        listed = run_cli(["runs", *where[:2]], tmp_path)
        took = time.monotonic() - start
        done = run_cli(["eval", str(tiny_llama), *SMALL, *where], tmp_path)
    finally:
        server.postgres.start()
    one_error(listed, server.address)
    assert took < 15
    assert done.exit_code == 0
    (directory,) = list_records(tmp_path / "mlruns")
    assert done.error_lines[-2].startswith("not tracked: ")
    assert directory.name in done.error_lines[-1]
    sent = run_cli(["sync", *where], tmp_path)
    assert (sent.exit_code, sent.stderr) == (0, "")
    store = open_store(server.address, root=tmp_path)
    (ref,) = uploaded_to(directory)
    assert store.read_record(store.get(ref.run_id)).tasks == read_record(directory).tasks


def test_an_s3_store_that_hangs_leaves_a_run_that_is_completed_later(
    server: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(monkeypatch, WRITER)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    mine = tmp_path / "mlruns" / "records" / "20260101-mine-01234567"
    record = add_record(mine)
    where = ["sync", "--tracking-uri", server.address, "--experiment", "lab"]
    server.s3.send_signal(signal.SIGSTOP)
    try:
        start = time.monotonic()
        done = run_cli(where, tmp_path)
        took = time.monotonic() - start
    finally:
        server.s3.send_signal(signal.SIGCONT)
    one_error(done, server.address, "did not answer in 3 s", "MLFLOW_HTTP_REQUEST_TIMEOUT")
    assert took < 15
    store = open_store(server.address, root=tmp_path)
    (left,) = store.search(record_id=record.record_id, status=None)
    assert not left.is_complete
    again = run_cli(where, tmp_path)
    assert (again.exit_code, again.stderr) == (0, "")
    (run,) = store.search(record_id=record.record_id, status=None)
    assert run.ref.run_id == left.ref.run_id
    assert run.is_complete
    assert store.read_record(run).tasks == record.tasks


# --- a token ------------------------------------------------------------------------------------


@pytest.fixture
def token_proxy(server: Deployment) -> Iterator[str]:
    """A proxy that lets ``Bearer right`` in, and is itself a user of the server."""

    def headers(given: Headers) -> Headers | Answer:
        if given.pop("Authorization", None) != "Bearer right":
            return 401, b"<html><title>401 Authorization Required</title></html>"
        ready = requests.Request("GET", server.address, auth=WRITER).prepare()
        return given | {"Authorization": ready.headers["Authorization"]}

    with proxy(server.address, headers=headers) as (address, _):
        yield address


def test_a_proxy_that_wants_a_token_lets_the_right_one_in(
    token_proxy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "right")
    record = add_record(tmp_path / "mlruns" / "records" / "20260101-mine-01234567")
    done = run_cli(["sync", "--tracking-uri", token_proxy, "--experiment", "lab"], tmp_path)
    assert (done.exit_code, done.stderr) == (0, "")
    store = open_store(token_proxy, root=tmp_path)
    (run_id,) = runs_of(store, record)
    assert store.read_record(store.get(run_id)).tasks == record.tasks


@pytest.mark.parametrize(
    ("token", "said"),
    [(None, "asks for credentials"), ("wrong", "does not accept the token in MLFLOW_TRACKING_TOK")],
)
def test_a_proxy_that_wants_a_token_keeps_others_out(
    token_proxy: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    token: str | None,
    said: str,
) -> None:
    if token:
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", token)
    done = run_cli(["runs", "--tracking-uri", token_proxy], tmp_path)
    one_error(done, said, "MLFLOW_TRACKING_TOKEN")
    assert "wrong" not in done.stderr


def test_a_token_for_a_server_that_has_accounts_is_told(
    server: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "right")
    done = run_cli(["runs", "--tracking-uri", server.address], tmp_path)
    one_error(done, "status 500", "takes MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")


# --- names --------------------------------------------------------------------------------------


@pytest.fixture
def from_afar(server: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every host name leads to the server, as by a proxy of the network."""
    log_in(monkeypatch, WRITER)
    with proxy(server.address) as (address, _):
        monkeypatch.setenv("HTTP_PROXY", address)
        for name in ("http_proxy", "no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield


@pytest.mark.usefixtures("from_afar")
def test_the_server_is_used_by_a_name_that_is_not_local(tmp_path: Path) -> None:
    store = open_store(f"http://{HOST}", root=tmp_path)
    add_record(tmp_path / "r")
    ref = store.upload(tmp_path / "r", experiment="lab")
    assert ref.url is not None
    assert ref.url.startswith(f"http://{HOST}/#/experiments/")
    assert store.read_record(store.get(ref.run_id)) == read_record(tmp_path / "r")


@pytest.mark.usefixtures("from_afar")
@pytest.mark.parametrize("name", ["tracking.elsewhere.example", f"{HOST}:8080"])
def test_a_name_that_the_server_was_not_told_is_the_cause_that_is_told(
    tmp_path: Path, name: str
) -> None:
    done = run_cli(["runs", "--tracking-uri", f"http://{name}"], tmp_path)
    one_error(done, f"does not know itself by the name {name}", f"adds {name} to its --allowed-h")
    assert "MLFLOW_TRACKING" not in done.stderr


def test_pages_of_other_sites_may_not_write(server: Deployment) -> None:
    def answer(origin: str) -> int:
        return requests.post(
            f"{server.address}/api/2.0/mlflow/experiments/search",
            json={"max_results": 1},
            headers={"Origin": origin},
            auth=WRITER,
            timeout=10,
        ).status_code

    assert answer(f"https://{HOST}") == 200
    assert answer("https://elsewhere.example") == 403


# --- the other commands of the compose file -----------------------------------------------------


@pytest.mark.parametrize("service", ["postgres", "mlflow"])
def test_a_health_check_passes_and_fails_when_nothing_listens(
    server: Deployment, service: str
) -> None:
    (kind, *words) = server.services[service]["healthcheck"]["test"]
    assert kind == "CMD"
    command = server.command(service, words)
    environment = server.environment(service)
    fine = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert fine.returncode == 0, fine.stderr
    ports = (str(server.postgres.port), server.address.rpartition(":")[2])
    dead = [word.replace(ports[0], "1").replace(ports[1], "1") for word in command]
    assert dead != command
    done = subprocess.run(dead, env=environment, capture_output=True, check=False)
    assert done.returncode != 0


def test_making_the_bucket_again_leaves_it_as_it_is(server: Deployment) -> None:
    again = subprocess.run(
        server.command("bucket"),
        env=server.environment("bucket"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert again.stdout == "there already\n"


def test_the_server_writes_nothing_into_its_own_folder(server: Deployment) -> None:
    # The container's file system is read-only.
    assert server.services["mlflow"]["read_only"] is True
    assert list(server.folder.iterdir()) == []


def test_no_secret_is_in_the_command_line_or_the_log(server: Deployment) -> None:
    command = " ".join(server.command("mlflow"))
    log = (server.folder.parent / "mlflow.log").read_text(encoding="utf-8")
    environment = server.environment("mlflow")
    for name in ("PGPASSWORD", "AWS_SECRET_ACCESS_KEY", "MLFLOW_AUTH_ADMIN_PASSWORD"):
        assert environment[name] not in command
        assert environment[name] not in log
    assert WRITER[1] not in log


# --- its README ---------------------------------------------------------------------------------

README = (DEPLOY / "README.md").read_text(encoding="utf-8")
IN_CONTAINERS = re.findall(
    r"^docker compose (?:exec(?: -T)?|run --rm) (\w+) (.+?)(?: > \S+)?$", README, re.MULTILINE
)


def test_every_command_that_the_readme_runs_in_a_container_works(server: Deployment) -> None:
    requests.post(
        f"{server.address}/api/2.0/mlflow/experiments/create",
        json={"name": "pruning"},
        auth=("admin", server.environment("mlflow")["MLFLOW_AUTH_ADMIN_PASSWORD"]),
        timeout=10,
    ).raise_for_status()
    assert len(IN_CONTAINERS) == 7
    for service, command in IN_CONTAINERS:
        if "add ada" in command or "add grace" in command:
            continue  # the fixture has
        done = in_container(server, service, command, WRITER[1])
        assert done.returncode == 0, f"{command}: {done.stderr}"


def test_a_user_who_was_granted_it_sends_to_anothers_experiment(
    server: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_user = in_container(server, "mlflow", "python /opt/users.py add joan", "joan's password")
    assert add_user.returncode == 0, add_user.stderr
    log_in(monkeypatch, ("joan", "joan's password"))
    record = add_record(tmp_path / "mlruns" / "records" / "20260101-mine-01234567")
    where = ["sync", "--tracking-uri", server.address, "--experiment", "lab"]
    one_error(run_cli(where, tmp_path), "does not allow this with the user name 'joan'")
    granted = in_container(server, "mlflow", "python /opt/users.py grant joan lab")
    assert granted.stdout == "joan has EDIT on lab\n"
    done = run_cli(where, tmp_path)
    assert (done.exit_code, done.stderr) == (0, "")
    assert len(runs_of(open_store(server.address, root=tmp_path), record)) == 1


@pytest.mark.parametrize(
    ("command", "typed", "said"),
    [
        ("add mary", "short", "at least 12 characters"),
        ("password nobody", "a long enough one", "nobody"),
        ("grant ada nowhere", "", "nowhere"),
    ],
)
def test_a_mistake_with_users_is_told_in_a_line(
    server: Deployment, command: str, typed: str, said: str
) -> None:
    done = in_container(server, "mlflow", f"python /opt/users.py {command}", typed)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr
