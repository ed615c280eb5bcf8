"""Record directories on this machine, and which of them the tracking server does not have yet."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from prunescope.errors import OutputError, RecordError
from prunescope.records import EvalRecord, RunRef, read_record, write_file

__all__ = [
    "evaluation_lock",
    "find_interrupted",
    "find_record",
    "forget_uploads",
    "is_record_directory",
    "list_records",
    "mark_uploaded",
    "new_record_directory",
    "uploaded_to",
]

_UPLOADS = ".uploads.json"
_REFS = TypeAdapter(list[RunRef])
_MAX_MODEL_BYTES = 100


def new_record_directory(root: Path, record: EvalRecord) -> Path:
    """Create ``<root>/records/<date>-<model>-<short id>``, a name that is not taken.

    Raises:
        OutputError: the folder cannot be written.
    """
    day = record.started_at.strftime("%Y%m%d")
    name = f"{day}-{_folder_name(record.model.name)}-{record.record_id[:8]}"
    for number in range(1, 1000):
        directory = root / "records" / (name if number == 1 else f"{name}-{number}")
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise OutputError(
                f"cannot create {directory}: {error.strerror or error}",
                hint="Check the folder's permissions and the free disk space",
            ) from error
        return directory
    raise OutputError(f"cannot create {root / 'records' / name}: the name is taken")


def _folder_name(model: str) -> str:
    """A model's name without separators, short enough for every file system."""
    plain = re.sub(r"[^\w.\-]+", "-", model).strip("-.") or "model"
    return plain.encode("utf-8", "replace")[:_MAX_MODEL_BYTES].decode("utf-8", "ignore")


def is_record_directory(path: Path) -> bool:
    """Whether ``path`` is a folder with a ``record.json``."""
    with contextlib.suppress(OSError, ValueError):
        return (path / "record.json").is_file()
    return False


def list_records(root: Path) -> list[Path]:
    """The record directories under ``root``, in the order of their names (by date)."""
    try:
        found = sorted((root / "records").iterdir())
    except OSError:
        return []
    return [path for path in found if is_record_directory(path)]


def _readable(root: Path, containing: str = "") -> Iterator[tuple[Path, EvalRecord]]:
    """The records that can be read; damaged ones are passed over, not in anyone's way."""
    for directory in list_records(root):
        with contextlib.suppress(RecordError, OSError, UnicodeDecodeError):
            text = (directory / "record.json").read_text(encoding="utf-8")
            if containing in text:
                yield directory, read_record(directory)


def _latest(root: Path, record_key: str, *, finished: bool) -> Path | None:
    found = [
        (record.finished_at or record.started_at, directory)
        for directory, record in _readable(root, containing=record_key)
        if record.record_key == record_key and (record.status == "finished") is finished
    ]
    return max(found)[1] if found else None


def find_record(root: Path, record_key: str) -> Path | None:
    """The finished record directory with this key that ended last, None where there is none."""
    return _latest(root, record_key, finished=True)


def find_interrupted(root: Path, record_key: str) -> Path | None:
    """The record directory with this key whose evaluation was cut off last, None without one.

    Call it under :func:`evaluation_lock`: then a record that still says ``running`` was left by a
    process that is gone.
    """
    found = _latest(root, record_key, finished=False)
    if found is not None and any(part.is_symlink() for part in found.iterdir() if part.is_dir()):
        return None  # a stranger's, perhaps: what is written into it would end up elsewhere
    return found


@contextlib.contextmanager
def evaluation_lock(root: Path, record_key: str, say: Callable[[str], None]) -> Iterator[None]:
    """Let one process of this store at a time do the same evaluation; the others wait.

    The lock goes with the process, however it ends.

    Args:
        root: the store's folder.
        record_key: of the evaluation.
        say: hears that there is something to wait for.
    """
    from filelock import FileLock, Timeout

    folder = root / ".locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{record_key[:32]}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say("another process is doing the same evaluation: waiting for it to end")
            lock.acquire()
    except (OSError, NotImplementedError):
        yield  # a file system without locks: two processes write two records
        return
    try:
        yield
    finally:
        lock.release()


# --- what is on which server --------------------------------------------------------------------


def uploaded_to(directory: Path) -> list[RunRef]:
    """The runs that this record was sent as, one a server; empty where none is known."""
    try:
        return _REFS.validate_json((directory / _UPLOADS).read_bytes())
    except (OSError, ValidationError):
        # Unknown means "send it again", which changes nothing on a server that has it.
        return []


def mark_uploaded(directory: Path, ref: RunRef) -> None:
    """Remember that the record is on a server. Only what was complete there may be marked.

    Raises:
        OutputError: the folder cannot be written.
    """
    others = [known for known in uploaded_to(directory) if known.tracking_uri != ref.tracking_uri]
    refs = [one.model_dump(mode="json") for one in (*others, ref)]
    write_file(directory / _UPLOADS, json.dumps(refs, indent=1))


def forget_uploads(directory: Path) -> None:
    """Forget where the record was sent, for a copy that became a record of its own.

    Raises:
        OutputError: the folder cannot be written.
    """
    try:
        (directory / _UPLOADS).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {directory}: {error.strerror or error}") from error
