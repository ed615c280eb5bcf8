"""What a tracking store lets this user do: for ``prunescope doctor``."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from prunescope.errors import PrunescopeError, TrackingError
from prunescope.tracking.links import is_http
from prunescope.tracking.store.connect import Location, connect, locate, tracking_errors

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

__all__ = ["StoreDiagnosis", "diagnose_store"]

_LOCK_SECONDS = 5
_TAG = "prunescope.doctor"


@dataclass(frozen=True)
class StoreDiagnosis:
    """What was found out about a store that answers, or that is yet to be created."""

    shown: str
    """Address without credentials."""
    kind: Literal["server", "database", "file", "absent file"]
    client_version: str
    server_version: str | None = None
    """None where the server does not say it, and for a store without a server."""
    tried_in: str | None = None
    """Experiment that was written to; None where nothing was."""
    experiment_exists: bool = True
    """Whether the experiment that runs would go to is there."""
    refusal: str | None = None
    """Why a write failed; None where all went well."""
    artifacts: str | None = None
    """Where artifacts go; a folder means: a folder of this machine."""


def diagnose_store(uri: str | None, *, root: Path, experiment: str) -> StoreDiagnosis:
    """Reach a store, ask its version, and write something that is removed again.

    Into a server: a tag of the experiment, and a small artifact. Into an SQLite file: a
    transaction that is rolled back. An embedded store that is not there yet is not created.

    Args:
        uri: as for :func:`~prunescope.tracking.store.open_store`.
        root: folder of the embedded store.
        experiment: where runs would go; where it does not exist, MLflow's own ``Default`` is
            written to.

    Raises:
        TrackingError: it cannot be reached, refuses, or is something else; within seconds.
    """
    location = locate(uri, root)
    version = metadata.version("mlflow")
    if location.database is not None:
        return _diagnose_file(location, location.database, version)
    client = connect(location)
    server_version = _server_version(location) if is_http(location.uri) else None
    with tracking_errors(location.uri):
        found: Any = client.get_experiment_by_name(experiment)
        target = found or client.get_experiment("0")
    refusal = _refusal(_tag_and_untag(client, location, target.experiment_id))
    artifacts = str(target.artifact_location)
    if refusal is None:
        refusal = _refusal(_put_and_delete(location, artifacts))
    return StoreDiagnosis(
        location.shown,
        "server" if is_http(location.uri) else "database",
        version,
        server_version,
        str(target.name),
        found is not None,
        refusal,
        artifacts,
    )


def _refusal(steps: Iterator[None]) -> str | None:
    """Why a step failed; None where none did."""
    try:
        for _ in steps:
            pass
    except (PrunescopeError, OSError) as error:
        return " ".join(str(error).split())
    return None


def _tag_and_untag(client: MlflowClient, location: Location, experiment_id: str) -> Iterator[None]:
    with tracking_errors(location.uri):
        client.set_experiment_tag(experiment_id, _TAG, "may be removed")
        yield
        client.delete_experiment_tag(experiment_id, _TAG)


def _put_and_delete(location: Location, artifacts: str) -> Iterator[None]:
    """A small file beside the runs' artifacts, listed, and removed."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    name = f"prunescope-doctor-{uuid4().hex[:12]}"
    with tracking_errors(location.uri), tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "probe.txt")
        file.write_text("may be removed\n", encoding="utf-8")
        there = get_artifact_repository(
            f"{artifacts.rstrip('/')}/{name}", tracking_uri=location.uri
        )
        there.log_artifact(str(file))  # type: ignore[no-untyped-call]
        yield
        # A login page in front of the server answers a PUT with 200 and keeps nothing.
        if [entry.path for entry in there.list_artifacts()] != [file.name]:
            raise TrackingError(f"an artifact that was sent to {artifacts} did not arrive")
        yield
        there.delete_artifacts()  # type: ignore[no-untyped-call]


def _server_version(location: Location) -> str | None:
    """What ``/version`` says; None where a proxy or an old server does not say it."""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    with contextlib.suppress(Exception):
        answer = http_request(  # type: ignore[no-untyped-call]
            get_default_host_creds(location.uri),  # type: ignore[no-untyped-call]
            "/version",
            "GET",
            max_retries=0,
            timeout=5,
            raise_on_status=False,
        )
        text = str(answer.text).strip()
        if answer.status_code == 200 and text[:1].isdigit() and len(text) < 40:
            return text
    return None


def _diagnose_file(location: Location, database: Path, version: str) -> StoreDiagnosis:
    artifacts = str(location.artifacts)
    if not database.exists():
        refusal = _unwritable(database.parent)
        return StoreDiagnosis(
            location.shown, "absent file", version, refusal=refusal, artifacts=artifacts
        )
    refusal = _unwritable(database.parent) or _locked(database)
    if refusal is None:
        # Reads the tables, so that a database of another MLflow's is recognised.
        connect(location)
    return StoreDiagnosis(location.shown, "file", version, refusal=refusal, artifacts=artifacts)


def _unwritable(folder: Path) -> str | None:
    place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not place.is_dir():
        return f"{place} is no folder"
    return None if os.access(place, os.W_OK | os.X_OK) else f"{place} cannot be written"


def _locked(database: Path) -> str | None:
    """Begin to write and roll back: a file may be read-only, or locked by another process."""
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=_LOCK_SECONDS)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
    except sqlite3.Error as error:
        return f"{database}: {error}"
    return None
