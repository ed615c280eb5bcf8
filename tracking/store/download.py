"""A run's record, read back from its artifacts."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from prunescope.errors import RecordError
from prunescope.records import EvalRecord, read_record
from prunescope.tracking.runs import MANIFEST_TAG, StoredRun
from prunescope.tracking.store.artifacts import (
    ARTIFACT_PATHS,
    MANIFEST_PATH,
    check_against_manifest,
    download_files,
    refuse_pages,
)

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

__all__ = ["download_directory", "download_record"]

_RECORD = "record.json"
_FOLDERS = ("samples", "tokens", "plots", "tables")


def download_directory(
    store: ArtifactRepository, run: StoredRun, into: Path, *, everything: bool
) -> None:
    """Write the artifacts that make a record directory into the folder ``into``.

    Only names that a record directory has are taken, so a stranger's run cannot write elsewhere.
    Where the run tells what was sent, what came back must be the same.

    Raises:
        RecordError: the run has no record, or what it holds now is not what was sent.
        TrackingError: something else than the server answered.
    """
    listed = store.list_artifacts()
    paths = [entry.path for entry in listed if not entry.is_dir]
    if _RECORD not in paths:
        raise _no_record(run)
    if everything:
        for folder in _FOLDERS:
            if any(entry.is_dir and entry.path == folder for entry in listed):
                inside = store.list_artifacts(folder)
                paths += [entry.path for entry in inside if not entry.is_dir]
        paths = [path for path in paths if ARTIFACT_PATHS.fullmatch(path)]
    else:
        paths = [path for path in paths if path in (_RECORD, "sparsity.json")]
    into.mkdir(parents=True, exist_ok=True)
    download_files(store, paths, into)
    if expected := run.tags.get(MANIFEST_TAG):
        with tempfile.TemporaryDirectory(prefix="prunescope-") as scratch:
            download_files(store, [MANIFEST_PATH], Path(scratch))
            check_against_manifest(into, paths, Path(scratch) / MANIFEST_PATH, expected)


def download_record(store: ArtifactRepository, run: StoredRun) -> EvalRecord:
    """The record of a run; its sparsity comes without tensors.

    Raises:
        RecordError: the run has none, or it is damaged or too new.
        TrackingError: something else than the server answered.
    """
    listed = store.list_artifacts()
    if not any(entry.path == _RECORD for entry in listed):
        raise _no_record(run)
    with tempfile.TemporaryDirectory(prefix="prunescope-") as scratch:
        download_files(store, [_RECORD], Path(scratch))
        refuse_pages(Path(scratch), [_RECORD])
        return read_record(Path(scratch))


def _no_record(run: StoredRun) -> RecordError:
    return RecordError(
        f"run {run.ref.run_name} ({run.ref.run_id[:8]}) has no prunescope record; found metrics: "
        f"{_some(run.metrics)}; params: {_some(run.params)}",
        hint="Compare runs that prunescope eval logged",
    )


def _some(names: Iterable[str]) -> str:
    known = sorted(names)
    return ", ".join(known[:12]) + (", …" if len(known) > 12 else "") or "none"
