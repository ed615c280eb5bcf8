"""An HTTP proxy that fails as servers, proxies and networks do, from a chosen request on."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests

__all__ = ["Asked", "Fault", "FaultyProxy", "faulty_proxy"]

_HANG_SECONDS = 60


@dataclass(frozen=True)
class Asked:
    """A request that came in."""

    number: int
    """Counted from 1, since the fault was set."""
    method: str
    path: str


@dataclass(frozen=True)
class Fault:
    """What happens to a request, in place of or beside passing it on."""

    kind: str
    """refuse (a reset at once), drop (closed after the server has done it), hang, answer, delay,
    spoil (one byte of what is sent or fetched is changed)."""
    status: int = 0
    body: bytes = b""
    seconds: float = 0.0


@dataclass
class FaultyProxy:
    """Stands before a real server; :attr:`fault` may be set at any time, None passes all on."""

    target: str
    address: str = ""
    seen: list[Asked] = field(default_factory=list)
    _fault: Callable[[Asked], Fault | None] | None = None
    _healed: threading.Event = field(default_factory=threading.Event)

    def fail(self, fault: Callable[[Asked], Fault | None]) -> None:
        """From now on each request is asked what happens to it."""
        self.seen.clear()
        self._healed.clear()
        self._fault = fault

    def heal(self) -> None:
        """Pass everything on again; what hangs is let go."""
        self._fault = None
        self._healed.set()

    def ask(self, method: str, path: str) -> Fault | None:
        """The fault for a request that has come in."""
        asked = Asked(len(self.seen) + 1, method, path)
        self.seen.append(asked)
        return self._fault(asked) if self._fault is not None else None

    def hang(self) -> None:
        """Until it is healed."""
        self._healed.wait(_HANG_SECONDS)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyProxy

    def log_message(self, *args: object) -> None:
        """Nothing on the tests' stderr."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.proxy.ask(self.command, self.path) or Fault("pass")
        if fault.kind == "hang":
            self.proxy.hang()
        if fault.kind in ("refuse", "hang"):
            self._reset()
        elif fault.kind == "answer":
            self._answer(fault.status, fault.body, "text/html")
        else:
            time.sleep(fault.seconds)
            self._pass_on(body, fault.kind)

    def _pass_on(self, body: bytes, kind: str) -> None:
        if kind == "spoil" and self.command == "PUT":
            body = _spoiled(body)
        kept = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
        address = self.proxy.target + self.path
        answer = requests.request(self.command, address, data=body, headers=kept, timeout=60)
        if kind == "drop":
            self._reset()
            return
        spoil = kind == "spoil" and self.command == "GET"
        content = _spoiled(answer.content) if spoil else answer.content
        self._answer(answer.status_code, content, answer.headers.get("Content-Type", ""))

    def _answer(self, status: int, content: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type or "application/octet-stream")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _reset(self) -> None:
        """Close with a reset, as a process that died does."""
        self.close_connection = True
        at_once = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        self.connection.close()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args: object) -> None:
        """A client that has given up is no error of the test's."""


@contextmanager
def faulty_proxy(target: str) -> Iterator[FaultyProxy]:
    """A proxy in front of ``target`` on a loopback port."""
    proxy = FaultyProxy(target)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": proxy}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    proxy.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield proxy
    finally:
        proxy.heal()
        server.shutdown()
        server.server_close()


def _spoiled(content: bytes) -> bytes:
    """The same length, another last byte."""
    return content[:-1] + bytes([content[-1] ^ 1]) if content else content
