"""One record directory as one run: complete, or an error; never twice."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from prunescope.errors import RecordError, TrackingError
from prunescope.records import EvalRecord, samples_path
from prunescope.tracking.codec import RunFields
from prunescope.tracking.samples import TABLE_PATH, samples_table

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.store.artifact.artifact_repo import ArtifactRepository
    from mlflow.tracking import MlflowClient

__all__ = [
    "ARTIFACT_PATHS",
    "File",
    "artifact_files",
    "artifacts_of",
    "is_alive",
    "log_fields",
    "process_tags",
    "record_lock",
    "send_artifacts",
    "start_run",
]

ARTIFACT_PATHS = re.compile(
    r"record\.json|sparsity\.json|report\.(md|html)"
    r"|plots/[^/]+\.(png|svg)|samples/[^/]+\.parquet|tokens/[^/]+\.npz|tables/[^/]+\.json"
)
"""What of a record directory belongs to the run, and all that is ever taken out of one."""

_LOCK_SECONDS = 60


@dataclass(frozen=True)
class File:
    """A local file and its path among the run's artifacts."""

    local: Path
    path: PurePosixPath

    @property
    def size(self) -> int:
        """Bytes of the local file."""
        return self.local.stat().st_size


# --- the run ------------------------------------------------------------------------------------


def process_tags() -> dict[str, str]:
    """Who is writing a run now, so that one left RUNNING by a killed process can be told."""
    return {"prunescope.host": socket.gethostname(), "prunescope.pid": str(os.getpid())}


def is_alive(pid: str | None) -> bool:
    """Whether a process of this machine may still be writing; true where it cannot be told."""
    if pid is None or not pid.isdecimal():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def start_run(
    client: MlflowClient, fields: RunFields, experiment_id: str, existing: list[Run]
) -> Run:
    """The run to write into: one of ``existing`` that a former attempt left, else a new one.

    Of several (a ``create_run`` that was retried after its answer had got lost makes two) the
    most complete stays and the others are deleted.
    """
    order = {"FINISHED": 0, "FAILED": 1}
    ranked = sorted(
        existing,
        key=lambda run: (
            order.get(run.info.status, 2),
            -len(run.data.metrics),
            run.info.run_id,
        ),
    )
    for double in ranked[1:]:
        client.delete_run(double.info.run_id)
    if ranked:
        return ranked[0]
    return client.create_run(
        experiment_id,
        start_time=fields.start_ms,
        tags={**fields.tags, **process_tags()},
        run_name=fields.name,
    )


def log_fields(
    client: MlflowClient, run_id: str, fields: RunFields, tags: Mapping[str, str]
) -> None:
    """Log params, metrics, ``tags`` and data sets; the same again changes nothing.

    Metrics carry the record's own time, so that a second attempt writes the same points.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    client.log_batch(
        run_id,
        metrics=[Metric(m.name, m.value, fields.end_ms, m.step) for m in fields.metrics],
        params=[Param(name, value) for name, value in fields.params.items()],
        tags=[RunTag(name, value) for name, value in tags.items()],
    )
    datasets = [
        DatasetInput(
            Dataset(d.name, d.digest, d.source_type, d.source, profile=d.profile),
            [InputTag("mlflow.data.context", "eval")],
        )
        for d in fields.datasets
    ]
    if datasets:
        client.log_inputs(run_id, datasets)


# --- artifacts ----------------------------------------------------------------------------------


@contextlib.contextmanager
def artifact_files(directory: Path, record: EvalRecord) -> Iterator[list[File]]:
    """The files of a record directory that belong to the run, and the table made from them.

    Raises:
        RecordError: a file of samples is damaged.
    """
    with tempfile.TemporaryDirectory(prefix="prunescope-") as scratch:
        found = [
            File(path, PurePosixPath(path.relative_to(directory).as_posix()))
            for path in sorted(directory.rglob("*"))
            if path.is_file() and not path.is_symlink()
        ]
        files = [file for file in found if ARTIFACT_PATHS.fullmatch(str(file.path))]
        samples = {
            task: path for task in record.tasks if (path := samples_path(directory, task)).is_file()
        }
        if samples and not any(str(file.path) == TABLE_PATH for file in files):
            table = Path(scratch) / PurePosixPath(TABLE_PATH).name
            table.write_text(_table(directory, samples), encoding="utf-8")
            files.append(File(table, PurePosixPath(TABLE_PATH)))
        yield files


def _table(directory: Path, samples: Mapping[str, Path]) -> str:
    try:
        return samples_table(samples)
    except (OSError, ValueError) as error:
        raise RecordError(
            f"the samples of {directory} are damaged: {error}", hint="Evaluate again with --force"
        ) from error


def artifacts_of(run: Run, tracking_uri: str) -> ArtifactRepository:
    """Where a run's artifacts lie.

    MlflowClient keeps these by run id alone, and asks for the run again on each call: a second
    address of the same server would use the first one's.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(run.info.artifact_uri, tracking_uri=tracking_uri)


def send_artifacts(store: ArtifactRepository, files: list[File], *, resume: bool) -> None:
    """Store ``files`` as artifacts of a run, then list them to see that they have arrived.

    An upload that a login page answered looks like one that succeeded.

    Args:
        store: the run's artifacts.
        files: from :func:`artifact_files`.
        resume: whether some may be there already, which are left alone.

    Raises:
        TrackingError: some are not there, or not whole, after all.
    """
    missing = _missing(store, files) if resume else files
    for file in missing:
        folder = str(file.path.parent) if file.path.parent.name else None
        store.log_artifact(str(file.local), folder)  # type: ignore[no-untyped-call]
    if missing:
        missing = _missing(store, files)
    if missing:
        names = ", ".join(str(file.path) for file in missing[:3])
        raise TrackingError(
            f"{len(missing)} of {len(files)} artifacts did not arrive whole: {names}",
            hint="Check the server's artifact store; the record on disk is complete",
        )


def _missing(store: ArtifactRepository, files: list[File]) -> list[File]:
    sizes: dict[str, int | None] = {}
    for folder in dict.fromkeys(file.path.parent for file in files):
        listed = store.list_artifacts(str(folder) if folder.name else None)
        sizes.update({entry.path: entry.file_size for entry in listed if not entry.is_dir})
    # A store that tells no sizes (None) is believed.
    return [
        file
        for file in files
        if str(file.path) not in sizes or sizes[str(file.path)] not in (None, file.size)
    ]


@contextlib.contextmanager
def record_lock(directory: Path) -> Iterator[None]:
    """Let one process at a time send a record.

    Raises:
        TrackingError: another process has been sending it for a minute.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(directory / ".upload.lock", timeout=_LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout as error:
        raise TrackingError(
            f"another process is sending {directory}", hint="Wait for it, then try again"
        ) from error
    except OSError:
        # A folder that may only be read: sending is still possible, and still idempotent.
        yield
        return
    try:
        yield
    finally:
        lock.release()
