"""Reports of a run that were made anew: the files, their manifest, and the tag that vouches."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from prunescope.tracking.runs import MANIFEST_TAG, StoredRun
from prunescope.tracking.store.artifacts import (
    MANIFEST_PATH,
    File,
    Manifest,
    artifacts_of,
    check_against_manifest,
    download_files,
    send_artifacts,
)
from prunescope.tracking.store.connect import tracking_errors

if TYPE_CHECKING:
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

    from prunescope.tracking.store import Store

__all__ = ["lacks_tag", "replace_reports"]


def replace_reports(store: Store, run: StoredRun, fetched: Path, reports: Sequence[Path]) -> None:
    """Put new reports in the place of a run's old ones, and have the manifest say so.

    At no time does the run vouch for what is not there: the tag goes before anything changes, and
    comes back when the new files were read back. An interrupted call leaves the run without the
    tag, or with the last report as it was: then it has to be repeated.

    Args:
        store: the run's.
        run: as it is now.
        fetched: what :meth:`Store.fetch` wrote of it, with everything.
        reports: ``report.md`` and the like; their names are their paths among the artifacts.

    Raises:
        RecordError: the run's files are not those of its manifest.
        TrackingError: the store refuses, or a file did not arrive.
    """
    client, uri = store.connection
    run_id = run.ref.run_id
    files = [File(path, PurePosixPath(path.name)) for path in reports]
    with tracking_errors(uri), tempfile.TemporaryDirectory(prefix="prunescope-") as scratch:
        there = artifacts_of(client.get_run(run_id), uri)
        if not _has_manifest(there):
            send_artifacts(there, files)  # sent before there were manifests
            return
        known = _read_manifest(there, Path(scratch), run, fetched)
        text = _with(known, files).model_dump_json(indent=1)
        new = Path(scratch) / "new" / MANIFEST_PATH
        new.parent.mkdir()
        new.write_text(text, encoding="utf-8")
        if MANIFEST_TAG in run.tags:
            client.delete_tag(run_id, MANIFEST_TAG)
        send_artifacts(there, [*files[:-1], File(new, PurePosixPath(MANIFEST_PATH)), files[-1]])
        client.set_tag(run_id, MANIFEST_TAG, hashlib.sha256(text.encode()).hexdigest())


def lacks_tag(store: Store, run: StoredRun) -> bool:
    """Whether an interrupted :func:`replace_reports` (or upload) has left a run without its tag.

    Raises:
        TrackingError: the store refuses.
    """
    if MANIFEST_TAG in run.tags:
        return False
    client, uri = store.connection
    with tracking_errors(uri):
        return _has_manifest(artifacts_of(client.get_run(run.ref.run_id), uri))


def _has_manifest(there: ArtifactRepository) -> bool:
    return any(entry.path == MANIFEST_PATH for entry in there.list_artifacts())


def _read_manifest(
    there: ArtifactRepository, scratch: Path, run: StoredRun, fetched: Path
) -> Manifest:
    """The run's manifest, once what was fetched is known to be what it says."""
    download_files(there, [MANIFEST_PATH], scratch)
    manifest = scratch / MANIFEST_PATH
    expected = run.tags.get(MANIFEST_TAG) or hashlib.sha256(manifest.read_bytes()).hexdigest()
    paths = [p.relative_to(fetched).as_posix() for p in fetched.rglob("*") if p.is_file()]
    check_against_manifest(fetched, paths, manifest, expected)
    return Manifest.model_validate_json(manifest.read_bytes())


def _with(manifest: Manifest, files: Sequence[File]) -> Manifest:
    """The manifest with these files in the place of those of the same paths."""
    new = {entry.path: entry for entry in Manifest.of(files).files}
    every = {entry.path: entry for entry in manifest.files} | new
    return Manifest(files=tuple(every[path] for path in sorted(every)))
