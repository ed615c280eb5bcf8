"""Passwords and tokens are in nothing that is written or printed, whatever becomes of a command.

Each test searches every byte below its folder, unpacked, and all that was printed.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest
from support.cli import SMALL, Finished, run_cli
from support.hub import running_hub
from support.leaks import leaks_in, leaks_in_text
from support.server import free_port

from prunescope.records import read_record
from prunescope.redaction import redact
from prunescope.tracking.spool import list_records

HARNESS = Path(__file__).parent / "data/harness/results_2025-02-03T04-05-06.000007.json"
ADDRESS_PASSWORD = "address-99-Zebra"
SECRETS = {
    "HF_TOKEN": "hf_" + "QwErTyUiOpAsDfGhJkLzXcVbNmQwErTyUi",
    "HUGGING_FACE_HUB_TOKEN": "hf_" + "ZyXwVuTsRqPoNmLkJiHgFeDcBaZyXwVuTs",
    "MLFLOW_TRACKING_PASSWORD": "tracking/17+Giraffe",
    "MLFLOW_TRACKING_TOKEN": "bearer.token_23.Okapi",
    "the proxy's password": "proxy 42 Tapir",
    "the address's password": ADDRESS_PASSWORD,
    "a token in an argument": "hf_" + "ArGuMeNtArGuMeNtArGuMeNtArGuMeNtAr",
}
ENVIRONMENT = {
    **{name: SECRETS[name] for name in SECRETS if name.isupper()},
    "MLFLOW_TRACKING_USERNAME": "ada",
    "HTTPS_PROXY": "http://eve:proxy%2042%20Tapir@proxy.invalid:3128",
    "NO_PROXY": "127.0.0.1",
}
FORMATS = [part for name in ("md", "json", "csv", "tex", "html") for part in ("--format", name)]
LABELS = [
    *("--run-name", f"run {SECRETS['a token in an argument']}"),
    *("--tag", f"hub={SECRETS['a token in an argument']}"),
    *("--tag", f"store=http://eve:{ADDRESS_PASSWORD}@mlflow.invalid/"),
    *("--method", f"wanda with {SECRETS['HF_TOKEN']}"),
    *("--tasks", "boolq"),
]


Command = Callable[..., Finished]


def with_password(address: str) -> str:
    return address.replace("://", f"://eve:{ADDRESS_PASSWORD}@")


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return SECRETS


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs a command with its arguments as those of the process, and checks what is printed."""

    def run(arguments: Sequence[str], cwd: Path, *, code: int | None = 0) -> Finished:
        monkeypatch.setattr(sys, "argv", ["prunescope", *arguments])
        capfd.readouterr()
        done = run_cli(arguments, cwd)
        beside = capfd.readouterr()  # what went past Python's own streams
        printed = done.stdout + done.stderr + beside.out + beside.err
        assert leaks_in_text(printed, SECRETS) == []
        assert code is None or done.exit_code == code, printed
        return done

    return run


def assert_no_leak(folder: Path) -> None:
    assert leaks_in(folder, SECRETS) == []


# --- the search itself --------------------------------------------------------------------------


def planted(folder: Path, kind: str, secret: str) -> None:
    """A file that holds the secret in the way that ``kind`` packs it."""
    text = f"before {secret} after"
    if kind == "parquet":
        pd.DataFrame({"context": [text]}).to_parquet(folder / "a.parquet", compression="zstd")
    elif kind == "npz":
        np.savez_compressed(folder / "a.npz", text=np.array([text]))
    elif kind == "sqlite":
        with sqlite3.connect(folder / "a.db") as connection:
            connection.execute("CREATE TABLE tags (value TEXT)")
            connection.execute("INSERT INTO tags VALUES (?)", ("x" * 5000 + text,))
        connection.close()
    elif kind == "bundle":
        planted(folder, "parquet", secret)
        with tarfile.open(folder / "bundle.tar", "w") as archive:
            archive.add(folder / "a.parquet", "samples/a.parquet")
        (folder / "a.parquet").unlink()
    elif kind == "gzip":
        (folder / "a.log.gz").write_bytes(gzip.compress(text.encode()))
    elif kind == "view":
        state = zlib.compress(json.dumps({"name": text}).encode())
        (folder / "tag").write_text("deflate;" + base64.b64encode(state).decode())
    elif kind == "basic":
        (folder / "log").write_bytes(b"Basic " + base64.b64encode(f"ada:{secret}".encode()))
    elif kind == "name":
        (folder / quote(secret, safe="")).touch()
    else:
        (folder / "a.json").write_text(json.dumps({"note": text}))


KINDS = ["json", "parquet", "npz", "sqlite", "bundle", "gzip", "view", "basic", "name"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", list(SECRETS))
def test_the_search_finds_a_planted_secret(tmp_path: Path, kind: str, name: str) -> None:
    planted(tmp_path, kind, SECRETS[name])
    assert name in {found for _, found in leaks_in(tmp_path, SECRETS)}


# --- evaluations --------------------------------------------------------------------------------


def test_a_finished_evaluation_and_all_that_is_done_with_it(
    secrets: dict[str, str],
    command: Command,
    tiny_llama: Path,
    tiny_llama_pruned: Path,
    empty_store: Path,
    mlflow_server: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = empty_store.parent
    server = with_password(mlflow_server)
    there = ["--tracking-uri", server]
    command(["eval", str(tiny_llama), *SMALL, *LABELS, "--role", "original", *there], folder)
    pruned = ["eval", str(tiny_llama_pruned), *SMALL, *LABELS, *there, "--baseline"]
    command([*pruned, f"latest:{tiny_llama.name}"], folder)
    runs = command(["runs", "--json", *there], folder)
    one, other = [run["run_id"] for run in json.loads(runs.stdout)[:2]]
    for more in (
        ["compare", other, one, "--log", *there, *FORMATS],
        ["compare", other, one, "--json", *there],
        ["leaderboard", *there],
        ["leaderboard", "--json", *there],
        ["export", one, "--out", "bundle.tar", *there],
        ["import", "bundle.tar"],  # into the embedded store
        ["sync", "--to", f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}", *there],
        ["sync", "--json", *there],
        ["eval", str(tiny_llama), *SMALL, *LABELS, "--role", "original", "--json", *there],
    ):
        command(more, folder)
    command(["doctor", "--json", *there, str(tiny_llama)], folder, code=None)
    assert_no_leak(folder)
    for served in tmp_path_factory.getbasetemp().glob("mlflow-server?"):  # not what links there
        assert (served / "server.db").is_file()
        assert_no_leak(served)
    kept = read_record(list_records(folder / "mlruns")[0])
    assert kept.labels.tags["store"] == "http://mlflow.invalid/"  # only the secret has gone
    assert "***" in kept.provenance.command


def test_an_evaluation_that_fails_with_secrets_in_its_words(
    secrets: dict[str, str],
    command: Command,
    tiny_llama: Path,
    empty_store: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from prunescope.evaluate import runner

    def refuse(*_: object, progress: runner.Progress, **__: object) -> None:
        words = f"401 for http://eve:{ADDRESS_PASSWORD}@hub.invalid: {sorted(SECRETS.values())}"
        progress.say(f"trying again: {words}")
        raise RuntimeError(words)

    monkeypatch.setattr(runner, "run_task", refuse)
    folder = empty_store.parent
    uri = f"sqlite:///{empty_store / 'mlflow.db'}"
    arguments = ["eval", str(tiny_llama), *SMALL, *LABELS, "--tracking-uri", uri]
    done = command(arguments, folder, code=1)
    assert "RuntimeError: 401 for http://hub.invalid" in done.stderr
    (directory,) = list_records(folder / "mlruns")
    failed = read_record(directory)
    assert failed.error is not None
    assert failed.error.message.startswith("401 for http://hub.invalid: ")
    assert any(note.startswith("trying again: 401") for note in failed.provenance.notes)
    command(["runs", "--status", "failed", "--json"], folder)
    assert_no_leak(folder)


@pytest.mark.slow
def test_an_evaluation_that_is_interrupted(
    secrets: dict[str, str], tiny_llama: Path, empty_store: Path
) -> None:
    folder = empty_store.parent
    options = ["--checkpoint-every", "0", "--batch-size", "1", "--limit", "200"]
    arguments = ["eval", str(tiny_llama), *SMALL, *LABELS, *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "prunescope", *arguments],
        preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL),
        cwd=folder,
        env={**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while not list(folder.glob("mlruns/records/*/.unfinished.json")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.terminate()
    printed = process.communicate(timeout=90)
    assert process.returncode == 143, printed
    assert leaks_in_text("".join(printed), SECRETS) == []
    assert list(folder.glob("mlruns/records/*/.unfinished.json"))
    assert_no_leak(folder)


def test_an_evaluation_whose_server_is_away(
    secrets: dict[str, str],
    command: Command,
    tiny_llama: Path,
    tmp_path: Path,
) -> None:
    gone = ["--tracking-uri", with_password(f"http://127.0.0.1:{free_port()}")]
    done = command(["eval", str(tiny_llama), *SMALL, *LABELS, *gone], tmp_path)
    assert "not tracked" in done.stderr
    command(["eval", str(tiny_llama), *SMALL, *LABELS, "--json", *gone], tmp_path)
    for more in (["sync"], ["runs"], ["compare", "a", "b"], ["leaderboard"]):
        done = command([*more, *gone], tmp_path, code=2)
        assert len(done.error_lines) == 1
    command(["doctor", "--json", *gone, str(tiny_llama)], tmp_path, code=None)
    assert_no_leak(tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", f"https://eve:{ADDRESS_PASSWORD}@hub.invalid/model"],
        ["eval", "model", "--tasks", SECRETS["a token in an argument"]],
        ["eval", "model", "--limit", SECRETS["a token in an argument"]],
        ["eval", "model", SECRETS["a token in an argument"]],
        ["runs", "--tracking-uri", f"ftp://eve:{ADDRESS_PASSWORD}@mlflow.invalid"],
        ["runs", "--tracking-uri", f"postgresql://eve:{ADDRESS_PASSWORD}@127.0.0.1:1/mlflow"],
        ["import", f"/no/such/{SECRETS['HF_TOKEN']}"],
        ["export", SECRETS["HF_TOKEN"], "--out", "bundle.tar"],
        ["compare", SECRETS["HF_TOKEN"], SECRETS["MLFLOW_TRACKING_PASSWORD"]],
    ],
    ids=lambda arguments: " ".join(arguments[:2])[:30],
)
def test_what_a_refused_command_says(
    secrets: dict[str, str],
    command: Command,
    arguments: list[str],
    empty_store: Path,
) -> None:
    command(arguments, empty_store.parent, code=2)
    assert_no_leak(empty_store.parent)


def test_a_mirror_with_a_password_in_its_address(
    secrets: dict[str, str],
    command: Command,
    tiny_llama: Path,
    empty_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = empty_store.parent
    with running_hub() as hub:
        hub.add_model("someone/tiny", tiny_llama)
        hub.use(monkeypatch, tmp_path / "home")
        monkeypatch.setenv("HF_ENDPOINT", with_password(os.environ["HF_ENDPOINT"]))
        monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
        found = command(["doctor", "--json"], folder, code=None)
        assert "hub.invalid" not in found.stdout and "127.0.0.1" in found.stdout
        command(["eval", "someone/absent", *SMALL], folder, code=2)
        hub.status = 500
        command(["eval", "someone/tiny", *SMALL], folder, code=2)
        command(["doctor", "--json"], folder, code=None)
        hub.stop()
        command(["eval", "someone/tiny", *SMALL], folder, code=2)
        command(["doctor"], folder, code=None)
    assert_no_leak(folder)


def test_older_results_that_hold_a_token(
    secrets: dict[str, str], command: Command, empty_store: Path
) -> None:
    folder = empty_store.parent
    results = json.loads(HARNESS.read_text())
    address = with_password("http://model.invalid/tiny")
    token = SECRETS["HUGGING_FACE_HUB_TOKEN"]
    results["config"]["model_args"] = f"pretrained={address},token={token}"
    for name in ("model_name", "model_name_sanitized"):
        results[name] = address
    results["pretty_env_info"] = "\n".join(f"{name}={value}" for name, value in SECRETS.items())
    path = folder / HARNESS.name
    path.write_text(json.dumps(results))
    command(["import", str(path)], folder)
    path.unlink()
    command(["runs", "--json"], folder)
    assert_no_leak(folder)


# --- the function behind it ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see http://host:8080/path@rev", "see http://host:8080/path@rev"),
        ("http://u:p@ss@host/x and http://v:q@i/y", "http://host/x and http://i/y"),
        ("http://u:p/a@ss@host:1/x", "http://host:1/x"),
        ("postgresql+psycopg2://u:p%40@db:5432/m", "postgresql+psycopg2://db:5432/m"),
        ("https://ada@host", "https://host"),
        ("mail a@b.c about https://host:5000", "mail a@b.c about https://host:5000"),
        ("Authorization: Basic dXNlcjpwYXNz, next", "Authorization: Basic ***, next"),
        ("{'authorization': 'Bearer a.b-c'}", "{'authorization': 'Bearer ***'}"),
        ("models/hf_llama_2_7b_wanda_50", "models/hf_llama_2_7b_wanda_50"),
        ("task-sk-learn-metrics", "task-sk-learn-metrics"),
    ],
)
def test_only_what_is_secret_goes(text: str, shown: str) -> None:
    assert redact(text, {}) == shown


def test_variables_that_hold_no_secret_do_not_blank_out_words() -> None:
    environment = {
        "HF_TOKEN_PATH": "/home/ada/.cache/token",
        "MAX_TOKENS": "100000",
        "MAX_TOKEN_LENGTH": "1048576",
        "TOKENIZERS_PARALLELISM": "enabled",
        "DB_PASSWORD": "abc",
    }
    text = "/home/ada/.cache/token 100000 1048576 enabled abc"
    assert redact(text, environment) == text
