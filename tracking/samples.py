"""The table of documents that a run shows, made from ``samples/<task>.parquet``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["MAX_ROWS", "TABLE_COLUMNS", "TABLE_PATH", "samples_table", "share_rows"]

TABLE_PATH = "tables/samples.json"
MAX_ROWS = 3000
"""Rows in all: MLflow's pages load the whole table."""

TABLE_COLUMNS = ("document", "score", "task", "answer", "gold", "prompt", "doc_sha256")
"""Columns of the table. The view across runs groups by the first and compares the second."""

_READ = ("doc_id", "doc_sha256", "context", "choices", "gold", "predicted", "acc", "response")
_MAX_TEXT = 300


def share_rows(counts: Mapping[str, int], limit: int = MAX_ROWS) -> dict[str, int]:
    """How many documents of each task to show, so that all tasks are there.

    Small tasks are shown whole and leave their part to the larger ones. The answer depends on
    the counts alone, so equal protocols show the same documents and can be read across runs.
    """
    shares: dict[str, int] = {}
    left, waiting = limit, len(counts)
    for task, count in sorted(counts.items(), key=lambda item: (item[1], item[0])):
        shares[task] = min(count, left // waiting)
        left -= shares[task]
        waiting -= 1
    return {task: shares[task] for task in counts}


def samples_table(files: Mapping[str, Path], limit: int = MAX_ROWS) -> str:
    """The documents of ``files`` (task -> parquet) as the JSON that MLflow's ``log_table`` writes.

    Returns:
        ``{"columns": [...], "data": [[...], ...]}`` with at most ``limit`` rows.

    Raises:
        OSError: a file cannot be read. pyarrow's errors on damaged files are among these or
            ``pyarrow.ArrowInvalid``, a ``ValueError``.
    """
    import pyarrow.parquet as pq

    counts = {task: pq.read_metadata(path).num_rows for task, path in files.items()}
    data: list[list[Any]] = []
    for task, count in share_rows(counts, limit).items():
        if not count:
            continue
        file = pq.ParquetFile(files[task])
        columns = [name for name in _READ if name in file.schema_arrow.names]
        batch = next(file.iter_batches(batch_size=count, columns=columns), None)
        data += [_table_row(task, row) for row in (batch.to_pylist() if batch else [])]
    table = {"columns": list(TABLE_COLUMNS), "data": data}
    return json.dumps(table, ensure_ascii=False, allow_nan=False)


def _table_row(task: str, row: Mapping[str, Any]) -> list[Any]:
    choices: Sequence[str] = row.get("choices") or ()
    score = row.get("acc")
    answer = row.get("response") if row.get("response") else _choice(choices, row.get("predicted"))
    prompt = str(row.get("context") or "")
    return [
        f"{task} {row.get('doc_id')}: {_short(prompt, 100)}",
        score if isinstance(score, (int, float)) and math.isfinite(score) else None,
        task,
        _short(str(answer), _MAX_TEXT),
        _short(_choice(choices, row.get("gold")), _MAX_TEXT),
        _short(prompt, _MAX_TEXT),
        row.get("doc_sha256"),
    ]


def _choice(choices: Sequence[str], index: object) -> str:
    if isinstance(index, int) and 0 <= index < len(choices):
        return choices[index].strip()
    return ""


def _short(text: str, longest: int) -> str:
    """The end of a prompt tells documents apart: few-shot examples come first."""
    line = " ".join(text.split())
    return line if len(line) <= longest else "…" + line[-(longest - 1) :]
