"""``prunescope ui`` serves the embedded store, and says so once it does."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from support.cli import run_cli
from support.records import write_example
from support.server import free_port, fresh_store

from prunescope.records import write_record
from prunescope.tracking.store import open_store


@pytest.mark.slow
def test_the_links_are_printed_when_the_pages_answer_and_sigterm_stops_the_server(
    empty_database: Path, tmp_path: Path
) -> None:
    write_example(tmp_path / "record", "original")
    run = fresh_store(empty_database, tmp_path / "mlruns").upload(
        tmp_path / "record", experiment="prunescope"
    )
    port = free_port()
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    ui = subprocess.Popen(
        [sys.executable, "-m", "prunescope", "ui", "--port", str(port)],
        cwd=tmp_path,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert ui.stdout is not None
        line = ui.stdout.readline()
        link = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert link, line
        assert "workflowType=machine_learning" in line
        page = requests.get(link.group(), timeout=20)
        assert page.ok
        asked = requests.get(
            f"{link.group()}/api/2.0/mlflow/runs/get", params={"run_id": run.run_id}, timeout=20
        )
        assert asked.json()["run"]["info"]["run_id"] == run.run_id
        with pytest.raises(OSError):  # what listens on every address answers here as well
            socket.create_connection(("127.0.0.2", port), timeout=5).close()
    finally:
        ui.send_signal(signal.SIGTERM)
        ui.wait(timeout=30)
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{port}/health", timeout=5)


def test_a_servers_own_pages_are_named_for_a_person_and_for_a_script(
    mlflow_server: str, tmp_path: Path
) -> None:
    # Other tests send the same example to this server: under its own id it is another run.
    record = write_example(tmp_path / "record", "original")
    changed = record.model_copy(update={"record_id": os.urandom(16).hex()})
    write_record(tmp_path / "record", changed)
    open_store(mlflow_server, root=tmp_path).upload(tmp_path / "record", experiment="the pages")
    there = ["--tracking-uri", mlflow_server]
    told = run_cli(["ui", *there], tmp_path)
    assert told.exit_code == 0
    assert told.stderr == f"{mlflow_server} has its own pages:\n"
    (line,) = (line for line in told.stdout.splitlines() if line.startswith("the pages  "))
    link = line.removeprefix("the pages  ")
    assert link.startswith(f"{mlflow_server}/#/experiments/")
    document = json.loads(run_cli(["ui", "--json", *there], tmp_path).stdout)
    assert document["address"] == mlflow_server
    assert {"name": "the pages", "url": link} in document["experiments"]
    quiet = run_cli(["ui", "--quiet", *there], tmp_path)
    assert link in quiet.stdout.splitlines() and quiet.stderr == ""
