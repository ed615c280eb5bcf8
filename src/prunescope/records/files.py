"""Record directories on disk: their files, read and written whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prunescope.errors import OutputError, RecordError
from prunescope.records.redacted import without_secrets
from prunescope.records.results import SCHEMA_VERSION, EvalRecord
from prunescope.records.zeros import SparsityResult

__all__ = [
    "SAMPLES_COLUMNS",
    "TOKENS_ARRAYS",
    "TOPK_ARRAYS",
    "canonical_hash",
    "new_record_id",
    "parse_record",
    "read_record",
    "read_tensors",
    "samples_path",
    "tokens_path",
    "topk_path",
    "utc_now",
    "write_file",
    "write_record",
]

SAMPLES_COLUMNS: dict[str, str] = {
    "doc_id": "int64, index of the row in its split",
    "doc_sha256": "string, hash of what is scored: contexts, continuations, gold index",
    "context": "string, the longest text that all choices' prompts begin with",
    "choices": "list of string, what follows the context for each choice",
    "gold": "int64, index of the right choice; null where there is none",
    "loglikelihoods": "list of float64, nats, one a choice",
    "lengths": "list of int64, characters of each continuation (what acc_norm divides by)",
    "greedy": "list of bool, whether each continuation is the model's own greedy one",
    "predicted": "int64, index of the choice with the largest loglikelihood; null without choices",
    "acc": "float64, 1 or 0; null where the task has none",
    "acc_norm": "float64, 1 or 0; null where the task has none",
    "metrics": "string, JSON object of every per-document metric that lm-eval gives",
    "response": "string, generated text for generation tasks; null otherwise",
    "document": "string, the row of the data set as JSON",
}
"""The columns of ``samples/<task>.parquet`` (zstd), one row a document."""

TOKENS_ARRAYS: dict[str, str] = {
    "logprob": "float32, (windows, seqlen - 1), log-probability of the target, nats",
    "target": "int32, (windows, seqlen - 1), the token that was predicted",
    "top1": "int32, (windows, seqlen - 1), the model's most probable token",
    "window_nll": "float64, (windows,), mean cross-entropy of each window, nats per token",
    "window_start": "int64, (windows,), where each window begins in the corpus, characters; "
    "absent where the tokenizer does not tell",
    "window_end": "int64, (windows,), where it ends, characters; absent likewise",
}
"""The arrays of ``tokens/<corpus>.npz``, one entry a scored token."""

TOPK_ARRAYS: dict[str, str] = {
    "token": "int32, (windows, seqlen - 1, k), the most probable tokens, the first one first",
    "logprob": "float32, (windows, seqlen - 1, k), their log-probabilities, nats",
    "tail": "float32, (windows, seqlen - 1), log-probability of all other tokens together, nats",
    "target": "int32, (windows, seqlen - 1), the token that was predicted",
}
"""The arrays of ``tokens/<corpus>.topk.npz``, for a later ``--kl-reference``."""


def new_record_id() -> str:
    """A fresh id for a record: 32 hexadecimal digits."""
    return uuid.uuid4().hex


def utc_now() -> datetime:
    """The present time, with its zone."""
    return datetime.now(UTC)


def canonical_hash(value: Any) -> str:
    """sha256 of a JSON value in one canonical spelling (sorted keys, no spaces, UTF-8)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file whole: temporary name, fsync, rename. Readers never see half of it.

    Raises:
        OutputError: the folder cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}",
            hint="Check the folder's permissions and the free disk space",
        ) from error


def _file_name(name: str, suffix: str) -> str:
    return re.sub(r"[^\w.\-]", "_", name)[:120] + suffix


def samples_path(directory: Path, task: str) -> Path:
    """Where a record directory keeps the documents of a task (see :data:`SAMPLES_COLUMNS`)."""
    return directory / "samples" / _file_name(task, ".parquet")


def tokens_path(directory: Path, corpus: str) -> Path:
    """Where a record directory keeps the tokens of a corpus (see :data:`TOKENS_ARRAYS`)."""
    return directory / "tokens" / _file_name(corpus, ".npz")


def topk_path(directory: Path, corpus: str) -> Path:
    """Where a record directory keeps log-probabilities of a corpus (see :data:`TOPK_ARRAYS`)."""
    return directory / "tokens" / _file_name(corpus, ".topk.npz")


def write_record(directory: Path, record: EvalRecord) -> EvalRecord:
    """Write ``record.json`` (and ``sparsity.json``, where it has tensors) into ``directory``.

    Returns:
        The record as ``record.json`` holds it: without secrets, its sparsity without the tensors.
    """
    record = without_secrets(record)
    if record.sparsity is not None and record.sparsity.tensors:
        write_file(directory / "sparsity.json", record.sparsity.model_dump_json(indent=1))
        slim = record.sparsity.model_copy(update={"tensors": ()})
        record = record.model_copy(update={"sparsity": slim})
    write_file(directory / "record.json", record.model_dump_json(indent=1))
    return record


def read_record(directory: Path) -> EvalRecord:
    """Read ``record.json`` from a record directory; the sparsity comes without its tensors.

    Raises:
        RecordError: there is none, it is damaged, or a newer prunescope wrote it.
    """
    path = directory / "record.json"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"no readable record at {path}: {error}") from error
    return parse_record(text, source=str(path))


def parse_record(text: str, *, source: str) -> EvalRecord:
    """Parse the text of a ``record.json``.

    Raises:
        RecordError: it is damaged, or a newer prunescope wrote it.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{source} is not JSON: {error}") from error
    if not isinstance(raw, Mapping):
        raise RecordError(f"expected a record in {source}, found {type(raw).__name__}")
    version = raw.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise RecordError(
            f"{source} has record schema {version}, this prunescope reads up to {SCHEMA_VERSION}",
            hint="Install a newer prunescope",
        )
    try:
        return EvalRecord.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"{source} is not a record: {place}: {first['msg']}") from error


def read_tensors(directory: Path) -> SparsityResult:
    """Read ``sparsity.json``, one entry a tensor, from a record directory.

    Raises:
        RecordError: there is none, or it is damaged.
    """
    path = directory / "sparsity.json"
    try:
        return SparsityResult.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise RecordError(f"no readable sparsity at {path}: {error}") from error
