"""The documents that two evaluations have in common, matched by what was scored."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunescope.errors import RecordError
from prunescope.records import samples_path

__all__ = [
    "CLUSTER_FIELDS",
    "PairedTask",
    "TaskSamples",
    "choice_rows",
    "pair_samples",
    "read_samples",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CLUSTER_FIELDS = ("passage", "paragraph", "premise", "article", "story")
"""Fields of a document whose text may be shared: documents that share it are not independent."""


@dataclass(frozen=True)
class TaskSamples:
    """The documents of one task as ``samples/<task>.parquet`` holds them, column by column."""

    task: str
    path: Path
    sha256: NDArray[np.object_]
    """(n,), hash of what is scored."""
    doc_id: Ints
    gold: Ints
    """(n,), index of the right choice; -1 where there is none."""
    predicted: Ints
    """(n,), index of the likeliest choice; -1 where there is none."""
    scores: dict[str, Floats]
    """``acc`` and ``acc_norm`` -> (n,); NaN where the task has none."""
    loglikelihoods: Floats
    """All choices of all documents, one after another, nats."""
    offsets: Ints
    """(n + 1,), where each document's choices begin in ``loglikelihoods``."""

    def __len__(self) -> int:
        return len(self.sha256)

    def score(self, key: str) -> Floats | None:
        """Each document's value of a metric, (n,); None where documents do not have it."""
        if key in self.scores:
            found = self.scores[key]
        else:
            rows = self.texts("metrics")
            values = [json.loads(row).get(key) if row else None for row in rows]
            numbers = [v if isinstance(v, int | float) else np.nan for v in values]
            found = np.asarray(numbers, dtype=np.float64)
        return None if len(found) == 0 or bool(np.isnan(found).all()) else found

    def texts(self, column: str) -> list[Any]:
        """A column that is read only when it is asked for: ``context``, ``document``, ..."""
        import pyarrow.parquet as pq

        values: list[Any] = pq.read_table(self.path, columns=[column]).column(0).to_pylist()
        return values

    @cached_property
    def documents(self) -> list[dict[str, Any]]:
        """The rows of the data set; empty dictionaries where they were not kept."""
        read = (json.loads(text) if text else {} for text in self.texts("document"))
        return [row if isinstance(row, dict) else {} for row in read]

    @cached_property
    def _texts(self) -> tuple[list[str], list[list[str]]]:
        return self.texts("context"), self.texts("choices")

    def text_of(self, row: int) -> tuple[str, tuple[str, ...]]:
        """A document's context and choices as text."""
        contexts, choices = self._texts
        return contexts[row] or "", tuple(choices[row] or ())

    @cached_property
    def _fields(self) -> tuple[str, ...]:
        """The names of the first document's fields, read without the others."""
        first = json.loads(_first_document(self.path) or "{}") if len(self) else {}
        return tuple(first) if isinstance(first, dict) else ()

    def may_have(self, fields: tuple[str, ...]) -> bool:
        """Whether the documents have one of the fields, judged by the first."""
        return any(field in self._fields for field in fields)

    @cached_property
    def clusters(self) -> Ints | None:
        """(n,), the same number for documents that share a passage; None where none do."""
        field = next((f for f in CLUSTER_FIELDS if f in self._fields), None)
        if field is None:
            return None
        texts = [str(row.get(field)) for row in self.documents]
        _, numbers = np.unique(np.asarray(texts, dtype=object), return_inverse=True)
        return None if numbers.max() + 1 == len(numbers) else numbers.astype(np.int64)


@dataclass(frozen=True)
class PairedTask:
    """Documents that both evaluations scored, in the original's order."""

    original: TaskSamples
    pruned: TaskSamples
    original_rows: Ints
    """(n,), rows of ``original``."""
    pruned_rows: Ints
    """(n,), the rows of ``pruned`` with the same documents."""

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.original.task

    def __len__(self) -> int:
        return len(self.original_rows)

    @property
    def complete(self) -> bool:
        """Whether every document of either side found its partner."""
        return len(self) == len(self.original) == len(self.pruned)

    def scores(self, key: str) -> tuple[Floats, Floats] | None:
        """Both sides' values of a metric, (n,) each; None where a side has none."""
        a, b = self.original.score(key), self.pruned.score(key)
        if a is None or b is None:
            return None
        return a[self.original_rows], b[self.pruned_rows]

    def predictions(self) -> tuple[Ints, Ints]:
        """Both sides' likeliest choices, (n,) each; -1 where there is none."""
        return (
            self.original.predicted[self.original_rows],
            self.pruned.predicted[self.pruned_rows],
        )

    def gold(self) -> Ints:
        """(n,), the right choices; -1 where there is none."""
        return self.original.gold[self.original_rows]

    def clusters(self) -> Ints | None:
        """(n,), which documents share a passage; None where none do."""
        found = self.original.clusters
        return None if found is None else found[self.original_rows]


def read_samples(directory: Path, task: str) -> TaskSamples | None:
    """Read the documents of a task from a record directory.

    Returns:
        None where the record keeps none (imported results).

    Raises:
        RecordError: the file is damaged.
    """
    path = samples_path(directory, task)
    if not path.is_file():
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = ["doc_id", "doc_sha256", "gold", "predicted", "acc", "acc_norm", "loglikelihoods"]
    try:
        table = pq.read_table(path, columns=columns).combine_chunks()
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0]
        raise RecordError(
            f"the documents of {task} at {path} cannot be read: {first}",
            hint="Evaluate the model again with --force",
        ) from error
    lists = _one_chunk(table.column("loglikelihoods"))
    return TaskSamples(
        task=task,
        path=path,
        sha256=table.column("doc_sha256").to_numpy(),
        doc_id=_integers(table.column("doc_id")),
        gold=_integers(table.column("gold")),
        predicted=_integers(table.column("predicted")),
        scores={
            name: np.asarray(table.column(name).to_numpy(), dtype=np.float64)
            for name in ("acc", "acc_norm")
        },
        loglikelihoods=np.asarray(lists.flatten().to_numpy(zero_copy_only=False), np.float64),
        offsets=_offsets(lists),
    )


def pair_samples(original: TaskSamples, pruned: TaskSamples) -> PairedTask:
    """Match documents by their hashes; equal documents are matched in their order."""
    if np.array_equal(original.sha256, pruned.sha256):
        rows = np.arange(len(original), dtype=np.int64)
        return PairedTask(original, pruned, rows, rows)
    waiting: dict[Any, deque[int]] = defaultdict(deque)
    for row, sha in enumerate(pruned.sha256):
        waiting[sha].append(row)
    matched = [
        (row, waiting[sha].popleft()) for row, sha in enumerate(original.sha256) if waiting[sha]
    ]
    both = np.asarray(matched, dtype=np.int64).reshape(-1, 2)
    return PairedTask(original, pruned, both[:, 0], both[:, 1])


def _first_document(path: Path) -> str | None:
    """The first row's document, without reading the whole column."""
    import pyarrow.parquet as pq

    batch = next(pq.ParquetFile(path).iter_batches(batch_size=1, columns=["document"]), None)
    return None if batch is None or not batch.num_rows else batch.column(0)[0].as_py()


def _one_chunk(column: Any) -> Any:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _integers(column: Any) -> Ints:
    return np.asarray(column.fill_null(-1).to_numpy(), dtype=np.int64)


def _offsets(lists: Any) -> Ints:
    """Offsets by the lists' lengths, since a null list may still span values."""
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return np.concatenate(([0], np.cumsum(np.asarray(lengths, dtype=np.int64))))


def choice_rows(samples: TaskSamples, rows: Sequence[int]) -> list[Floats]:
    """Each named document's loglikelihoods of its choices, nats."""
    return [samples.loglikelihoods[samples.offsets[r] : samples.offsets[r + 1]] for r in rows]
