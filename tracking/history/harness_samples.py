"""lm-eval's ``samples_*.jsonl`` as the documents of a record.

The hash of a document is the one that a fresh evaluation gives it, so that both can be compared
document by document. It covers contexts, continuations and the right choice. lm-eval writes the
first two word for word; the right choice it writes as text, and for tasks with one continuation
behind several contexts (winogrande) not at all: there it follows from which of two choices the
model took and whether that was right.
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunescope.errors import RecordError
from prunescope.metrics import metric_key
from prunescope.records import SAMPLES_COLUMNS, canonical_hash
from prunescope.tracking.history.outside import number

__all__ = ["TaskDocuments", "read_documents", "write_documents"]

_CHOICE = "multiple_choice"
_UNKNOWN = object()


@dataclass(frozen=True)
class TaskDocuments:
    """The documents of one task."""

    rows: list[dict[str, Any]]
    """With the columns of :data:`prunescope.records.SAMPLES_COLUMNS`."""
    sha256: str | None
    """Hash over the documents' hashes; None where a right choice is not known."""


def read_documents(path: Path, config: Mapping[str, Any]) -> TaskDocuments:
    """Read a file of samples.

    Args:
        path: of the file.
        config: lm-eval's configuration of the task, as its result file gives it; may be empty.

    Raises:
        RecordError: the file is damaged.
    """
    documents: dict[int, dict[str, Any]] = {}
    for line, sample in _samples(path):
        try:
            document = documents.setdefault(int(sample["doc_id"]), {**sample, "values": {}})
            document["values"] |= _metrics(sample)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise _damaged(path, line, error) from error
    rows, unknown = [], False
    for number_of, document in documents.items():
        try:
            row, known = _row(number_of, document, config)
            _check_range(row)
        except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise _damaged(path, number_of + 1, error) from error
        rows.append(row)
        unknown = unknown or not known
    hashes = [row["doc_sha256"] for row in rows]
    return TaskDocuments(rows, None if unknown or not rows else canonical_hash(hashes))


def _check_range(row: Mapping[str, Any]) -> None:
    """Numbers must fit the columns that they are kept in."""
    for name in ("doc_id", "gold"):
        value = row[name]
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise OverflowError(f"{name} {value} does not fit 64 bits")


def write_documents(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as ``samples/<task>.parquet``.

    Raises:
        OutputError: the folder cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from prunescope.records import write_file

    kinds = {
        "doc_id": pa.int64(),
        "gold": pa.int64(),
        "predicted": pa.int64(),
        "acc": pa.float64(),
        "acc_norm": pa.float64(),
        "choices": pa.list_(pa.string()),
        "loglikelihoods": pa.list_(pa.float64()),
        "lengths": pa.list_(pa.int64()),
        "greedy": pa.list_(pa.bool_()),
    }
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in SAMPLES_COLUMNS])
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_file(path, sink.getvalue().to_pybytes())


def _damaged(path: Path, line: int, error: Exception) -> RecordError:
    return RecordError(
        f"{path} is damaged near line {line}: {type(error).__name__}: {error}",
        hint="Move it away to import the result without its documents",
    )


def _samples(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    line = 0
    try:
        with open(path, encoding="utf-8") as file:
            for line, text in enumerate(file, start=1):
                if text.strip():
                    sample = json.loads(text)
                    if not isinstance(sample, Mapping):
                        raise ValueError(f"expected an object, found {type(sample).__name__}")
                    yield line, sample
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, line, error) from error


def _metrics(sample: Mapping[str, Any]) -> dict[str, Any]:
    names = sample.get("metrics")
    if not isinstance(names, list):
        names = [name for name in ("acc", "acc_norm", "exact_match") if name in sample]
    kind = str(sample.get("filter", "none"))
    return {metric_key(f"{name},{kind}"): sample[name] for name in names}


# --- one document -------------------------------------------------------------------------------


def _row(
    doc_id: int, document: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[dict[str, Any], bool]:
    """A document's row, and whether its right choice is known."""
    arguments = _arguments(document["arguments"])
    contexts = [_text(args[0]) for args in arguments]
    continuations = [_text(args[1]) if len(args) > 1 else "" for args in arguments]
    answers = [_first(response) for response in document["resps"]]
    kind = config.get("output_type") or _guess_kind(arguments, answers)
    values = document["values"]
    row: dict[str, Any] = dict.fromkeys(SAMPLES_COLUMNS)
    row |= {
        "doc_id": doc_id,
        "context": contexts[0],
        "choices": [],
        "loglikelihoods": [],
        "lengths": [],
        "greedy": [],
        "acc": number(values.get("acc")),
        "acc_norm": number(values.get("acc_norm")),
        "metrics": _json(values),
        "document": _json(document.get("doc")),
    }
    gold: Any = _written_target(document, config)
    if kind == "generate_until":
        row["response"] = _text(answers[0])
    elif kind == "loglikelihood_rolling":
        row["loglikelihoods"] = [float(answer) for answer in answers]
    else:
        row["loglikelihoods"] = [float(answer[0]) for answer in answers]
        row["greedy"] = [str(answer[1]) == "True" for answer in answers]
        row |= _choices(contexts, continuations)
        if kind == _CHOICE:
            gold = _complete(row, document, config, contexts, continuations)
    known = gold is not _UNKNOWN
    row["doc_sha256"] = canonical_hash([contexts, continuations, gold if known else None])
    return row, known


def _arguments(raw: Any) -> list[list[Any]]:
    """``{"gen_args_0": {"arg_0": ...}}``, or lists as earlier versions wrote them."""
    if isinstance(raw, Mapping):
        requests = [raw[f"gen_args_{i}"] for i in range(len(raw))]
        return [[args[f"arg_{j}"] for j in range(len(args))] for args in requests]
    found = [list(args) for args in raw]
    if not found or not all(found):
        raise ValueError("no arguments")
    return found


def _first(response: Any) -> Any:
    return response[0] if isinstance(response, list) else response


def _text(value: Any) -> str:
    return str(value).encode("utf-8", "replace").decode("utf-8")


def _guess_kind(arguments: Sequence[Sequence[Any]], answers: Sequence[Any]) -> str:
    if len(arguments[0]) > 1 and isinstance(arguments[0][1], Mapping):
        return "generate_until"
    if len(arguments[0]) == 1:
        return "loglikelihood_rolling"
    return _CHOICE if len(answers) > 1 else "loglikelihood"


def _choices(contexts: Sequence[str], continuations: Sequence[str]) -> dict[str, Any]:
    shared = _common_prefix(contexts)
    pairs = zip(contexts, continuations, strict=True)
    return {
        "context": shared,
        "choices": [context[len(shared) :] + continuation for context, continuation in pairs],
        "lengths": [len(continuation) for continuation in continuations],
    }


def _common_prefix(texts: Sequence[str]) -> str:
    low, high = min(texts), max(texts)
    end = next((i for i, c in enumerate(low) if c != high[i]), len(low))
    return low[:end]


def _written_target(document: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    """The target as the task gave it: lm-eval writes it as text, the row may have it as it was."""
    target, row = document.get("target"), document.get("doc")
    field = config.get("doc_to_target")
    if isinstance(row, Mapping) and isinstance(field, str) and str(row.get(field)) == target:
        return row[field]
    return target


# --- the right choice ---------------------------------------------------------------------------


def _complete(
    row: dict[str, Any],
    document: Mapping[str, Any],
    config: Mapping[str, Any],
    contexts: Sequence[str],
    continuations: Sequence[str],
) -> Any:
    """Fill in what only multiple choice has; returns the right choice as lm-eval has it."""
    scores: list[float] = row["loglikelihoods"]
    # acc_mutual_info adds as many requests without a context.
    count = len(scores) // 2 if "acc_mutual_info" in document["values"] else len(scores)
    conditional = scores[:count]
    row["predicted"] = max(
        range(count), key=lambda i: (math.isnan(conditional[i]), conditional[i], -i)
    )
    if len(set(continuations)) == 1 and len(set(contexts)) == count > 1:
        row["lengths"] = [len(context) for context in contexts]
        gold = _from_score(row, count)
    else:
        delimiter = str(config.get("target_delimiter", " "))
        texts = [text.removeprefix(delimiter) for text in continuations[:count]]
        row["lengths"] = [len(text) for text in texts]
        gold = _index(_written_target(document, config), texts)
    row["gold"] = gold if isinstance(gold, int) else None
    return gold


def _from_score(row: Mapping[str, Any], count: int) -> Any:
    """Of two choices the right one is what was chosen, or else the other."""
    scores: list[float] = row["loglikelihoods"]
    if row["acc"] == 1.0:
        return row["predicted"]
    if row["acc"] == 0.0 and count == 2 and not any(map(math.isnan, scores)):
        return 1 - row["predicted"]
    return _UNKNOWN


def _index(target: Any, texts: Sequence[str]) -> Any:
    """What lm-eval's ``process_results`` makes of a target."""
    if isinstance(target, int | list):
        return target
    text = str(target)
    if text in texts and not text.isdecimal():
        return list(texts).index(text)
    if text.isdecimal() and len(text) < 10:
        return int(text)
    if text.startswith("["):
        try:
            found = ast.literal_eval(text[:1000])
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return text
        return found if isinstance(found, list) and all(isinstance(i, int) for i in found) else text
    return text


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-8", "replace").decode("utf-8")
