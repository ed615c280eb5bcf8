"""A real ``mlflow server`` on a loopback port, one for the whole test session."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from prunescope.tracking.store import Store, open_store

__all__ = [
    "empty_database",
    "empty_store",
    "free_port",
    "fresh_store",
    "mlflow_server",
    "proxy",
    "running_server",
    "started",
]

_START_SECONDS = 90


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_server(folder: Path, *extra: str) -> Iterator[str]:
    """Start a server whose SQLite file and proxied artifacts lie in ``folder``; stop it after.

    Yields:
        Its address, for example ``http://127.0.0.1:41357``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts"), *extra]
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    address = f"http://127.0.0.1:{port}"
    log = folder / "server.log"
    with started(command, f"{address}/health", log, cwd=folder, env=environment):
        yield address


@contextmanager
def started(
    command: list[str], probe: str, log: Path, *, cwd: Path, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends.

    Args:
        command: starts it in the foreground.
        probe: an address that answers once it is ready.
        log: takes what it prints.
        cwd: where it runs.
        env: its environment, by default this process's.

    Yields:
        The process.
    """
    with open(log, "wb") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=env, cwd=cwd
        )
    try:
        _wait(probe, server, log)
        yield server
    finally:
        server.terminate()
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait(probe: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if requests.get(probe, timeout=2).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"{log.stem} did not start:\n{log.read_text(errors='replace')[-4000:]}")


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[str]:
    """The address of a server that all tests of the session share."""
    folder = tmp_path_factory.mktemp("mlflow-server")
    shutil.copy(empty_database, folder / "server.db")
    with running_server(folder) as address:
        yield address


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SQLite file of a store without runs, to be copied: creating one takes seconds."""
    root = tmp_path_factory.mktemp("empty-store")
    open_store(None, root=root)
    return root / "mlflow.db"


@pytest.fixture
def empty_store(empty_database: Path, tmp_path: Path) -> Path:
    """The folder of an embedded store that has no runs."""
    root = tmp_path / "mlruns"
    fresh_store(empty_database, root)
    return root


def fresh_store(empty_database: Path, root: Path) -> Store:
    """Copy an empty store into the folder ``root`` and open it."""
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(empty_database, root / "mlflow.db")
    return open_store(f"sqlite:///{root / 'mlflow.db'}", root=root)


Headers = dict[str, str]
Answer = tuple[int, bytes] | tuple[int, bytes, Headers]
"""Status, body, and headers of its own."""


def _anything(method: str, path: str) -> Answer | None:
    return None


def _as_they_are(headers: Headers) -> Headers | Answer:
    return headers


@contextmanager
def proxy(
    target: str | None,
    rule: Callable[[str, str], Answer | None] = _anything,
    *,
    headers: Callable[[Headers], Headers | Answer] = _as_they_are,
    tls: ssl.SSLContext | None = None,
    below: str = "",
) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """An HTTP server on a loopback port that passes requests on to ``target``.

    It is also the proxy that HTTP_PROXY names: a request for ``http://HOST/PATH`` goes to
    ``target`` with HOST as its Host header, whatever that name's address is.

    Args:
        target: address of the real server; None: there is none, and ``rule`` answers everything.
        rule: is given method and path, and returns an answer of its own, or None to pass it on.
        headers: is given the request's headers, and returns those to pass on, or an answer.
        tls: has the certificate with which it speaks TLS.
        below: the path under which ``target`` is found; elsewhere is nothing.

    Yields:
        Its address, and the list of requests it has seen so far.
    """
    seen: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            """Nothing on the tests' stderr."""

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked = urlsplit(self.path)
            path = asked._replace(scheme="", netloc="").geturl()
            seen.append((self.command, asked.path))
            answer = rule(self.command, path) or self._pass_on(asked.netloc, path, body)
            status, content, *more = answer
            self.send_response(status)
            for name, value in (more[0] if more else {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _pass_on(self, host: str, path: str, body: bytes) -> Answer:
            if target is None or not path.startswith(f"{below}/"):
                return 404, b"nothing here"
            kept: Headers | Answer = {
                k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")
            }
            kept = headers(kept | ({"Host": host} if host else {}))
            if isinstance(kept, tuple):
                return kept
            with requests.Session() as session:
                session.trust_env = False
                answer = session.request(
                    self.command,
                    target + path.removeprefix(below),
                    data=body,
                    headers=kept,
                    timeout=30,
                )
            return answer.status_code, answer.content

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()
