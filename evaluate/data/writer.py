"""Write a data folder, all or nothing."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunescope.errors import DataError, OutputError
from prunescope.evaluate.data.folder import MANIFEST, DataFile, Manifest, parse_manifest
from prunescope.records import write_file

__all__ = ["FolderWriter", "RowSet", "staged_writer"]


@dataclass(frozen=True)
class RowSet:
    """Rows on their way into a folder."""

    task: str
    split: str
    rows: Sequence[Mapping[str, Any]]
    source: str
    license: str
    features: dict[str, Any] | None = None


class FolderWriter:
    """Collects files for a folder in a staging directory beside its final place."""

    def __init__(self, staging: Path) -> None:
        self._staging = staging
        self.files: list[DataFile] = []

    def add(self, rows: RowSet) -> DataFile:
        """Write one split's rows as JSON lines.

        Raises:
            DataError: a value that JSON cannot hold (an image, bytes, a date).
        """
        try:
            lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows.rows]
            content = "".join(line + "\n" for line in lines).encode()
        except (TypeError, ValueError) as error:
            raise DataError(
                f"the rows of {rows.task} ({rows.split}) cannot be written as JSON: {error}",
                hint="Leave this task out; it needs the hub",
            ) from error
        path = f"{_safe(rows.task)}/{_safe(rows.split)}.jsonl"
        write_file(self._staging / path, content)
        file = DataFile(
            path=path,
            task=rows.task,
            split=rows.split,
            rows=len(lines),
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            source=rows.source,
            license=rows.license,
            features=rows.features,
        )
        self.files.append(file)
        return file


def _safe(name: str) -> str:
    """A file name for a task or split; names that differ keep different file names."""
    plain = re.sub(r"[^\w\-]", "_", name)
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


@contextmanager
def staged_writer(directory: Path) -> Iterator[FolderWriter]:
    """Write into a folder all or nothing.

    Files go to a staging directory; when the block ends without an error they are moved into
    ``directory`` and its manifest is written last. What the folder held before stays, apart from
    files of the same task and split.

    Raises:
        OutputError: the folder cannot be written.
        DataError: the folder exists and is not a data folder.
    """
    before = _existing(directory)
    existed = directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=directory))
    except OSError as error:
        raise OutputError(
            f"cannot write {directory}: {error.strerror or error}",
            hint="Name a folder that you may write",
        ) from error
    done = False
    try:
        writer = FolderWriter(staging)
        yield writer
        _publish(directory, staging, before, writer.files)
        done = True
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not done and not existed:
            shutil.rmtree(directory, ignore_errors=True)


def _existing(directory: Path) -> Manifest:
    path = directory / MANIFEST
    if path.is_file():
        # A manifest that is no JSON (a full disk, a broken copy) is mended by pulling again.
        return parse_manifest(path) if _is_json(path) else Manifest()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise DataError(
            f"{directory} exists and is not a data folder", hint="Name a new or empty folder"
        )
    return Manifest()


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def _publish(directory: Path, staging: Path, before: Manifest, files: Iterable[DataFile]) -> None:
    merged = {(file.task, file.split): file for file in before.files}
    for file in files:
        target = directory / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        (staging / file.path).replace(target)
        merged[file.task, file.split] = file
    manifest = Manifest(files=tuple(merged.values()))
    write_file(
        directory / MANIFEST,
        json.dumps(manifest.model_dump(exclude_none=True), indent=1, ensure_ascii=False) + "\n",
    )
