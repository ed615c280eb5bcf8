"""A Hugging Face hub on the loopback interface, for models and data sets that lie in folders.

It answers the routes that ``huggingface_hub`` and ``datasets`` call with the status codes and
``X-Error-Code`` headers of the real hub, so that their own error handling runs::

    with running_hub() as hub:
        hub.add_model("someone/tiny", folder, refs=("main", "v1"))
        hub.add_dataset("someone/rows", save_dataset(tmp_path / "rows", {...}))
        subprocess.run([...], env=hub.environment(tmp_path / "home"))
        hub.use(monkeypatch, tmp_path / "home")  # or in this very process

Switches: ``hub.delay`` seconds before each answer, ``hub.status`` one status for every answer,
``hub.page`` a web page instead, ``hub.gate(id)`` a repository whose files need permission,
``hub.stop()`` nobody listens.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

__all__ = ["TOKEN", "Hub", "running_hub", "save_dataset"]

TOKEN = "hf_" + "a" * 34
"""A token that the hub takes for a signed-in user without access to gated repositories."""

_BINARY = {".safetensors", ".bin", ".gguf", ".parquet", ".model"}
_API = re.compile(r"/api/(models|datasets)/(.+?)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
_RESOLVE = re.compile(r"/(datasets/)?(.+?)/resolve/([^/]+)/(.+)")


@dataclass
class _Repository:
    kind: str
    id: str
    commits: dict[str, Path] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def commit(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


@dataclass
class Hub:
    """A running hub. Requests are kept, as ``"GET /api/models/someone/tiny"``."""

    repositories: dict[tuple[str, str], _Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    delay: float = 0.0
    """Seconds before each answer."""
    status: int | None = None
    """The status of every answer, for example 404 or 503; None: what the repositories say."""
    page: str | None = None
    """An HTML page in place of every answer, as a login portal gives it."""
    url: str = ""
    _server: ThreadingHTTPServer | None = None
    _stopped: threading.Event = field(default_factory=threading.Event)
    _connections: list[socket.socket] = field(default_factory=list)

    def add_model(self, repo_id: str, folder: Path, refs: tuple[str, ...] = ("main",)) -> str:
        """Publish a folder as one commit, point ``refs`` at it and return the commit's hash."""
        return self._add("models", repo_id, folder, refs)

    def add_dataset(self, repo_id: str, folder: Path, refs: tuple[str, ...] = ("main",)) -> str:
        """Publish a folder of JSONL or Parquet files (see :func:`save_dataset`).

        The id has a namespace, as in ``"Rowan/hellaswag"``: datasets refuses others.
        """
        return self._add("datasets", repo_id, folder, refs)

    def _add(self, kind: str, repo_id: str, folder: Path, refs: tuple[str, ...]) -> str:
        repository = self.repositories.setdefault((kind, repo_id), _Repository(kind, repo_id))
        commit = _commit_hash(folder)
        repository.commits[commit] = folder
        repository.refs.update(dict.fromkeys(refs, commit))
        return commit

    def gate(self, repo_id: str, kind: str = "models") -> None:
        """Show the repository to everyone, and its files to nobody."""
        self.repositories[kind, repo_id].gated = True

    def environment(self, home: Path, **changes: str) -> dict[str, str]:
        """Environment for a subprocess that uses this hub, with its caches in ``home``."""
        removed = ("HF_TOKEN", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE")
        kept = {
            k: v for k, v in os.environ.items() if k not in removed and "proxy" not in k.lower()
        }
        ours = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
        }
        return {**kept, **ours, **changes}

    def use(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        """Let this process use the hub, with its caches in ``home``.

        The libraries read their environment when they are imported, so that what they read is
        changed as well. A subprocess with :meth:`environment` needs no such thing.
        """
        import datasets
        from huggingface_hub import constants

        monkeypatch.setenv("HF_ENDPOINT", self.url)
        monkeypatch.setenv("HF_HOME", str(home))
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", self.url)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
        monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(home / "modules"))

    def stop(self) -> None:
        """Close the port and what is connected: connections are refused from now on."""
        self._stopped.set()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub without repositories on a free port of 127.0.0.1."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub._server = server
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.stop()


def save_dataset(
    folder: Path,
    configurations: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
    *,
    suffix: Literal["parquet", "jsonl"] = "parquet",
) -> Path:
    """Write rows as the hub keeps them, for :meth:`Hub.add_dataset`, and return the folder.

    Args:
        folder: where to write.
        configurations: configuration name -> split -> rows; ``default`` for the only one.
        suffix: the format of the rows' files.
    """
    import pyarrow
    import pyarrow.parquet

    lines = ["---", "configs:"]
    for name, splits in configurations.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        (folder / name).mkdir(parents=True, exist_ok=True)
        for split, rows in splits.items():
            path = folder / name / f"{split}-00000-of-00001.{suffix}"
            lines += [f"  - split: {split}", f"    path: {name}/{split}-*"]
            if suffix == "parquet":
                table = pyarrow.Table.from_pylist([dict(row) for row in rows])
                pyarrow.parquet.write_table(table, path)
            else:
                text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                path.write_text(text, encoding="utf-8")
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")
    return folder


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        """Remember the connection, which outlives a request."""
        super().setup()
        self.hub._connections.append(self.connection)

    def log_message(self, *args: Any) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        form = parse_qs(self.rfile.read(length).decode()) if length else {}
        self.hub.requests.append(f"{self.command} {self.path}")
        if self.hub.delay and self.hub._stopped.wait(self.hub.delay):
            self.close_connection = True
            return
        try:
            if self.hub.status is not None:
                self._send_error(self.hub.status, "")
            elif self.hub.page is not None:
                self._send_bytes(self.hub.page.encode(), "text/html", {})
            else:
                self._route(urlsplit(self.path), form)
        except OSError:
            self.close_connection = True  # the client went away

    def _route(self, url: Any, form: dict[str, list[str]]) -> None:
        if match := _API.fullmatch(url.path):
            kind, repo_id, action, revision, rest = match.groups()
        elif match := _RESOLVE.fullmatch(url.path):
            prefix, repo_id, revision, rest = match.groups()
            kind, action = ("datasets" if prefix else "models"), "resolve"
        else:
            self._send_error(404, "")
            return
        repository = self.hub.repositories.get((kind, repo_id))
        if repository is None:
            # The hub tells a stranger nothing about which private repositories exist.
            self._send_error(404 if self._signed_in() else 401, "RepoNotFound")
            return
        commit = repository.commit(unquote(revision or "main"))
        if commit is None:
            self._send_error(404, "RevisionNotFound")
            return
        folder = repository.commits[commit]
        if action == "resolve":
            self._send_file(repository, commit, unquote(rest))
        elif action == "tree":
            recursive = parse_qs(url.query).get("recursive", ["false"])[0].lower() == "true"
            self._send_tree(folder, unquote(rest or ""), recursive)
        elif action == "paths-info":
            wanted = [folder / path for path in form.get("paths", [])]
            self._send_json([_entry(folder, path) for path in wanted if path.exists()])
        else:
            with_sizes = "blobs" in parse_qs(url.query)
            self._send_json(_repository_info(repository, commit, with_sizes))

    def _signed_in(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _send_tree(self, folder: Path, below: str, recursive: bool) -> None:
        start = folder / below
        if not start.is_dir():
            self._send_error(404, "EntryNotFound")
            return
        found = sorted(start.rglob("*") if recursive else start.iterdir())
        self._send_json([_entry(folder, path) for path in found])

    def _send_file(self, repository: _Repository, commit: str, name: str) -> None:
        path = repository.commits[commit] / name
        if repository.gated:
            self._send_error(403 if self._signed_in() else 401, "GatedRepo")
        elif not path.is_file():
            self._send_error(404, "EntryNotFound", {"X-Repo-Commit": commit})
        else:
            headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            headers["ETag"] = f'"{_content_hash(path)}"'
            headers["Content-Disposition"] = f'inline; filename="{path.name}"'
            self._send_bytes(path.read_bytes(), "application/octet-stream", headers)

    def _send_bytes(self, data: bytes, content_type: str, headers: dict[str, str]) -> None:
        status = 200
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
            if first > last:
                self._send_error(416, "", {"Content-Range": f"bytes */{len(data)}"})
                return
            headers = {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"}
            status, data = 206, data[first : last + 1]
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _send_json(self, value: Any) -> None:
        self._send_bytes(json.dumps(value).encode(), "application/json", {})

    def _send_error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        data = json.dumps({"error": code or self.responses[status][0]}).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _commit_hash(folder: Path) -> str:
    digest = hashlib.sha1()
    for path in _files(folder):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{_content_hash(path)}\n".encode())
    return digest.hexdigest()


def _content_hash(path: Path) -> str:
    """What the hub names a file by: sha256 for large (LFS) files, else git's own blob id."""
    data = path.read_bytes()
    if path.suffix in _BINARY:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(folder: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0} | {
            "path": name
        }
    size, oid = path.stat().st_size, _content_hash(path)
    entry: dict[str, Any] = {"type": "file", "oid": oid, "size": size, "path": name}
    if path.suffix in _BINARY:
        entry["oid"] = hashlib.sha1(oid.encode()).hexdigest()
        entry["lfs"] = {"oid": oid, "size": size, "pointerSize": 130}
    return entry


def _repository_info(repository: _Repository, commit: str, with_sizes: bool) -> dict[str, Any]:
    folder = repository.commits[commit]
    siblings: list[dict[str, Any]] = []
    for path in _files(folder):
        entry = {"rfilename": path.relative_to(folder).as_posix()}
        size = {"size": path.stat().st_size, "blobId": _content_hash(path)} if with_sizes else {}
        siblings.append({**entry, **size})
    return {
        "_id": commit[:24],
        "id": repository.id,
        "modelId": repository.id,
        "sha": commit,
        "private": False,
        "gated": "manual" if repository.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "lastModified": "2025-01-01T00:00:00.000Z",
        "createdAt": "2025-01-01T00:00:00.000Z",
        "siblings": siblings,
    }
