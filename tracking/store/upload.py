"""One record directory as one run: complete, or an error; never twice."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from prunescope.errors import TrackingError
from prunescope.records import EvalRecord
from prunescope.tracking.codec import RunFields
from prunescope.tracking.runs import MANIFEST_TAG
from prunescope.tracking.store.artifacts import artifact_files, artifacts_of, send_record

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

__all__ = [
    "is_alive",
    "log_fields",
    "process_tags",
    "record_lock",
    "send_files",
    "start_run",
]

_LOCK_SECONDS = 60
_COMPLAINTS = {"prunescope.alarms", "prunescope.broken", "prunescope.error"}


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
    client: MlflowClient,
    run_id: str,
    fields: RunFields,
    tags: Mapping[str, str],
    before: Mapping[str, str],
) -> None:
    """Log params, metrics, ``tags`` and data sets; the same again changes nothing.

    Metrics carry the record's own time, so that a second attempt writes the same points. Of the
    tags that the run had ``before``, complaints that no longer hold are deleted.
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
    for name in _COMPLAINTS & (before.keys() - tags.keys()):
        client.delete_tag(run_id, name)


def send_files(
    client: MlflowClient, uri: str, run: Run, directory: Path, record: EvalRecord, *, resume: bool
) -> None:
    """Send the files of a record directory, and have the run vouch for them once they are there.

    While files change that the run vouched for, it does not: a run that an interrupted second
    upload has left can be read.

    Args:
        client: of the store.
        uri: the store's address.
        run: as it was before.
        directory: the record directory.
        record: its record.
        resume: whether some may be there already.

    Raises:
        TrackingError: some did not arrive whole.
    """
    run_id, verified = str(run.info.run_id), run.data.tags.get(MANIFEST_TAG)
    with artifact_files(directory, record) as files:
        digest = send_record(
            artifacts_of(run, uri),
            files,
            resume=resume,
            verified=verified,
            disown=lambda: client.delete_tag(run_id, MANIFEST_TAG),
        )
    if digest != verified:
        client.set_tag(run_id, MANIFEST_TAG, digest)


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
