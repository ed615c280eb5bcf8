"""Which store to use, and whether it answers."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from prunescope.errors import OutputError, TrackingError
from prunescope.tracking.links import is_http, redact_uri
from prunescope.tracking.store.patience import patient, patiently
from prunescope.tracking.store.refusals import Answer, not_mlflow, refused, tracking_errors

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

__all__ = ["Location", "connect", "locate", "tracking_errors"]

_ENVIRONMENT = {
    # The client's own settings wait 4 minutes for a refused connection, 20 for a silent one.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # patience.py has its own
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # A server with an S3 store sends clients there by itself, to an address that only it may reach.
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
_PROBE_SECONDS = 5
_LOCK_SECONDS = 120
_LONGEST_PATH = 504
"""Bytes, measured: SQLite takes 512, of which it keeps some for the names beside the file."""
_CERTIFICATE_HINT = (
    "Name the file with the certificate of its authority in MLFLOW_TRACKING_SERVER_CERT_PATH"
)
_DATABASE = "mlflow.db"
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_OTHER_SCHEMES = ("databricks", "databricks-uc", "uc")


@dataclass(frozen=True)
class Location:
    """Where a store is."""

    uri: str
    """May hold credentials: show :attr:`shown` instead."""
    database: Path | None = None
    """File of an SQLite store; None for any other. Its lock and artifacts lie beside it."""

    @property
    def artifacts(self) -> Path | None:
        """Folder of an SQLite store's artifacts; None where a server decides."""
        return None if self.database is None else self.database.parent / "artifacts"

    @property
    def shown(self) -> str:
        """The URI without credentials."""
        return redact_uri(self.uri)


def locate(uri: str | None, root: Path) -> Location:
    """The store that ``uri`` names: by default MLFLOW_TRACKING_URI, else the embedded one.

    Raises:
        TrackingError: ``uri`` is no address of a store.
    """
    uri = (uri or os.environ.get("MLFLOW_TRACKING_URI") or "").strip()
    if not uri:
        folder = root.absolute()
        if set(str(folder)) & set("?%"):
            raise TrackingError(
                f"the folder of the tracking store may not have a ? or % in its path: {folder}",
                hint="Run from another folder, or use --tracking-uri",
            )
        return Location(f"sqlite:///{folder / _DATABASE}", folder / _DATABASE)
    scheme = urlsplit(uri).scheme.lower().partition("+")[0]
    if scheme == "sqlite":
        path = Path(unquote(uri.partition(":///")[2].partition("?")[0]))
        return Location(uri, path.absolute())
    if is_http(uri):
        return Location(uri.rstrip("/"))
    if scheme in _DATABASE_PORTS or scheme in _OTHER_SCHEMES:
        return Location(uri)
    raise TrackingError(
        f"expected the address of a tracking server, found {redact_uri(uri)}",
        hint="Use http://HOST:PORT, or sqlite:///PATH/mlflow.db for a file",
    )


def connect(location: Location) -> MlflowClient:
    """A client of the store, which has answered; an SQLite store is created where there is none.

    Raises:
        TrackingError: it cannot be reached, refuses, or is something else; within seconds.
        OutputError: the folder of an SQLite store cannot be written.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    # It logs a failed statement with its traceback at each of its attempts; we say it in a line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    with tracking_errors(location.uri):
        if is_http(location.uri):
            _probe(location)
        elif location.database is not None:
            _create_sqlite(location, location.database)
        else:
            _probe_database(location)
        client = patient(MlflowClient(tracking_uri=location.uri))
        client.search_experiments(max_results=1)
    return client


# --- servers ------------------------------------------------------------------------------------


def _probe(location: Location) -> None:
    """Ask ``/health`` before anything else, so that a dead server is noticed within seconds."""
    import requests
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    def ask() -> requests.Response:
        answer: requests.Response = http_request(  # type: ignore[no-untyped-call]
            get_default_host_creds(location.uri),  # type: ignore[no-untyped-call]
            "/health",
            "GET",
            max_retries=0,
            timeout=_PROBE_SECONDS,
            raise_on_status=False,
            allow_redirects=False,
        )
        if answer.status_code >= 500:
            raise requests.exceptions.RetryError(response=answer)
        return answer

    try:
        answer = patiently(ask)()
    except requests.exceptions.RetryError as error:
        assert error.response is not None
        raise refused(
            location.uri, Answer(error.response.status_code, error.response.text)
        ) from error
    except MlflowException as error:
        raise TrackingError(
            f"the tracking server {location.shown} cannot be reached{_reason(error)}",
            hint=_CERTIFICATE_HINT
            if "certificate" in str(error).lower()
            else "Check the address and that the server runs",
        ) from error
    if answer.status_code in (401, 403):
        raise refused(location.uri, Answer(answer.status_code, answer.text))
    # A proxy may hide /health (404); then the first real request decides.
    if answer.status_code != 404 and answer.text.strip()[:2] != "OK":
        raise not_mlflow(location.shown, answer.headers.get("Location"))


def _probe_database(location: Location) -> None:
    """See that something listens: MLflow tries a database server for two minutes otherwise."""
    parts = urlsplit(location.uri)
    port = parts.port or _DATABASE_PORTS.get(parts.scheme.partition("+")[0])
    if not parts.hostname or port is None:
        return
    try:
        socket.create_connection((parts.hostname, port), timeout=_PROBE_SECONDS).close()
    except OSError as error:
        raise TrackingError(
            f"the database {location.shown} cannot be reached{_reason(error)}",
            hint="Check the address and that the server runs",
        ) from error
    from sqlalchemy import create_engine

    # MLflow tries a wrong password for as long.
    engine = create_engine(location.uri)
    engine.connect().close()
    engine.dispose()


def _reason(error: BaseException) -> str:
    text = str(error).lower()
    known = {
        "refused": "connection refused",
        "timed out": f"no answer in {_PROBE_SECONDS} s",
        "timeout": f"no answer in {_PROBE_SECONDS} s",
        "resolve": "the host name is not known",
        "name or service": "the host name is not known",
        "certificate": "its certificate cannot be verified",
    }
    return next((f" ({meaning})" for mark, meaning in known.items() if mark in text), "")


# --- the embedded store -------------------------------------------------------------------------


def _create_sqlite(location: Location, database: Path) -> None:
    """Create the database where there is none, one process at a time.

    Processes that create the tables at once make each other crash.
    """
    from filelock import FileLock, Timeout

    if len(os.fsencode(database)) > _LONGEST_PATH:
        raise TrackingError(
            f"cannot open the tracking store {location.shown}: its path is too long",
            hint=f"SQLite takes at most {_LONGEST_PATH} bytes: use --tracking-uri",
        )
    folder = database.parent
    lock = FileLock(folder / f".{database.name}.lock", timeout=_LOCK_SECONDS)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise TrackingError(
            f"another process has been creating {location.shown} for {_LOCK_SECONDS} s",
            hint=f"If none does, delete {lock.lock_file}",
        ) from error
    except OSError as error:
        if database.is_file():
            return  # a store that may only be read needs no creating
        raise OutputError(
            f"cannot write the tracking store in {folder}: {error.strerror or error}",
            hint="Run from a folder that you may write, or use --tracking-uri",
        ) from error
    try:
        if not database.exists():
            _create_tables(database, str(location.artifacts))
        _check_sqlite(location, database)
    finally:
        lock.release()


def _create_tables(database: Path, artifacts: str) -> None:
    """Create the file under another name and rename it, so that no killed process leaves half."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = database.with_name(f".{database.name}.new")
    new.unlink(missing_ok=True)
    store = SqlAlchemyStore(f"sqlite:///{new}", artifacts)  # type: ignore[no-untyped-call]
    store.engine.dispose()
    new.rename(database)


def _check_sqlite(location: Location, database: Path) -> None:
    """Open the file once: MLflow tries a file that is no database for two minutes."""
    try:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error as error:
        raise TrackingError(
            f"cannot open the tracking store {location.shown}: {error}",
            hint="Move the file away to start a new store; records on disk can be sent again",
        ) from error
