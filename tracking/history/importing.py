"""Result files that no tracker knows, as record directories: found, recognised, never doubled."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from prunescope.errors import RecordError
from prunescope.records import (
    EvalRecord,
    Labels,
    Protocol,
    Provenance,
    samples_path,
    utc_now,
    write_record,
)
from prunescope.tracking.history.harness_results import (
    is_harness_result,
    read_harness_result,
    samples_files,
)
from prunescope.tracking.history.harness_samples import write_documents
from prunescope.tracking.history.older_script import is_older_comparison, read_comparison
from prunescope.tracking.history.outside import (
    EVALUATED_TAG,
    IMPORT_TAG,
    Evaluation,
    imported_id,
    plausible_time,
)
from prunescope.tracking.history.pruning_log import is_pruning_log, read_pruning_log

__all__ = [
    "ImportedFile",
    "ImportedRun",
    "find_files",
    "kind_of",
    "read_results",
    "write_imported",
]

Kind = Literal["bundle", "results"]

_SUFFIXES = frozenset({".json", ".txt", ".log", ".tar"})
_MAX_BYTES = 200_000_000
_OURS = frozenset({"record.json", "sparsity.json", ".uploads.json"})


@dataclass(frozen=True)
class ImportedRun:
    """One evaluation out of a file."""

    record: EvalRecord
    baseline_record_id: str | None
    evaluation: Evaluation


@dataclass(frozen=True)
class ImportedFile:
    """What a file came to."""

    path: Path
    what: str
    """``older script``, ``lm-eval`` or ``wanda``."""
    runs: tuple[ImportedRun, ...]
    """Baselines first."""


def find_files(paths: Iterable[Path]) -> Iterator[Path]:
    """The files that may hold results: those named, and those in the folders named.

    Folders are walked without following links, in the order of names; of their files only those
    with a suffix that results have. Samples belong to the result file beside them.

    Raises:
        RecordError: a path does not exist.
    """
    for path in paths:
        if path.is_dir():
            for folder, folders, names in os.walk(path):
                folders.sort()
                for name in sorted(names):
                    file = Path(folder, name)
                    if file.suffix.lower() in _SUFFIXES and not name.startswith("."):
                        yield file
        elif path.exists():
            yield path
        else:
            raise RecordError(f"{path} does not exist", hint="Name a result file or a folder")


def kind_of(path: Path) -> Kind:
    """Whether a file is a bundle of records, by its suffix, or results to be read."""
    return "bundle" if path.suffix.lower() == ".tar" else "results"


def read_results(path: Path) -> ImportedFile:
    """Read a result file of another program.

    Raises:
        RecordError: it is something else, or damaged.
    """
    content = _read(path)
    what, evaluations, beside = _recognise(path, content)
    digest = hashlib.sha256(content)
    for file in beside:
        with open(file, "rb") as samples:
            digest.update(hashlib.file_digest(samples, "sha256").digest())
    content_sha256 = digest.hexdigest()
    try:
        runs = tuple(_imported(path, what, content_sha256, one) for one in evaluations)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"{path} is damaged: {place}: {first['msg']}") from error
    if not any(run.record.tasks or run.record.perplexity for run in runs):
        raise RecordError(f"{path} holds no figures")
    return ImportedFile(path, what, runs)


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if not path.is_file() or size > _MAX_BYTES:
            raise RecordError(f"{path} is no result file: {size:,} bytes, not a plain small file")
        content = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror or error}") from error
    if not content.strip():
        raise RecordError(f"{path} is empty")
    return content


def _recognise(path: Path, content: bytes) -> tuple[str, list[Evaluation], list[Path]]:
    if path.name in _OURS:
        raise RecordError(f"{path} belongs to a prunescope record", hint="Use prunescope sync")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unknown(path, "it is no text") from error
    if is_pruning_log(text):
        return "wanda", read_pruning_log(text, path), []
    if path.suffix.lower() in (".txt", ".log"):
        raise _unknown(path, "it is no log of wanda's")
    raw = _parse(path, text)
    if is_older_comparison(raw):
        return "older script", read_comparison(raw, path), []
    if is_harness_result(raw):
        return "lm-eval", [read_harness_result(raw, path)], list(samples_files(raw, path).values())
    if "original" in raw and "pruned" in raw:
        raise _unknown(path, "it is a report of prunescope compare, whose runs are tracked")
    raise _unknown(path, "its fields are others")


def _parse(path: Path, text: str) -> Mapping[str, Any]:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unknown(path, f"it is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise _unknown(path, f"it holds a {type(raw).__name__}")
    return raw


def _unknown(path: Path, why: str) -> RecordError:
    return RecordError(f"{path} is no result of lm-eval, wanda or the older script: {why}")


# --- records ------------------------------------------------------------------------------------


def _imported(path: Path, what: str, content_sha256: str, found: Evaluation) -> ImportedRun:
    started, notes = found.started_at, list(found.notes)
    if started is None:
        started = plausible_time(path.stat().st_mtime) or utc_now()
        notes.append("the file does not tell its time: taken from when it was last changed")
    baseline = found.baseline_side
    record = EvalRecord(
        record_id=imported_id(content_sha256, found.side),
        status="finished",
        started_at=started,
        finished_at=found.finished_at or started,
        labels=Labels(
            role=found.role,
            method=found.method,
            pattern=found.pattern,
            tags={IMPORT_TAG: content_sha256, EVALUATED_TAG: started.isoformat()},
        ),
        model=found.model,
        protocol=Protocol(**({"batch_size": ""} | dict(found.protocol))),
        sparsity=found.sparsity,
        perplexity=dict(found.perplexity),
        tasks=dict(found.tasks),
        broken=found.broken,
        provenance=Provenance(
            packages=dict(found.packages),
            timings=dict(found.timings),
            data_source="",
            notes=(f"imported from {path.name[:200]} ({what})", *notes),
            imported=True,
        ),
    )
    return ImportedRun(record, imported_id(content_sha256, baseline) if baseline else None, found)


def write_imported(
    run: ImportedRun, baseline_run_id: str | None, directory: Callable[[EvalRecord], Path]
) -> Path:
    """Write an imported evaluation as a record directory.

    Args:
        run: from :func:`read_results`.
        baseline_run_id: the run that its baseline has on the server.
        directory: gives the folder for a record.

    Raises:
        OutputError: the folder cannot be written.
    """
    labels = run.record.labels.model_copy(update={"baseline_run_id": baseline_run_id})
    record = run.record.model_copy(update={"labels": labels})
    into = directory(record)
    for task, rows in run.evaluation.samples.items():
        write_documents(samples_path(into, task), rows)
    write_record(into, record)
    return into
