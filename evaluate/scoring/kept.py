"""Answers of a task that has not ended yet, kept on disk now and then.

Batches are planned from all of a task's requests, the answered ones included, and those that
are known are passed over. So the rest goes through the model in the same company as if nothing
had happened, and an evaluation that was cut off ends with the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from prunescope.records import write_file

__all__ = ["Answer", "KeptAnswers", "ScorerState", "loglikelihoods"]

Answer = tuple[float, bool] | float | str
"""Of loglikelihood, of rolling loglikelihood, of generate_until."""


class _Exact(BaseModel):
    """Written so that every float comes back, NaN and the infinities too."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class ScorerState(_Exact):
    """What the scorer has learned, and must know again to go on in the same way."""

    engine: str | None = None
    """The one that passed the check."""
    dropped: int = 0
    """Engines before it that did not."""
    budget: int | None = None
    """Tokens a batch after memory ran out; None: it did not."""
    batch_size: int | None = None
    """Sequences a batch of the plain path."""


class _Unfinished(_Exact):
    """The file."""

    record_key: str
    scorer: ScorerState = ScorerState()
    task: str | None = None
    count: int = 0
    """Requests of the task."""
    answers: dict[int, Answer] = {}
    settled: int = 0
    """The first of ``answers`` that came from batches of another size, before memory ran out."""


class KeptAnswers:
    """The answers of one task after the other.

    Args:
        path: the file; None keeps nothing on disk.
        record_key: of the evaluation; a file with another one is not read.
        every: seconds between two writes; 0 writes after each batch.

    Attributes:
        answers: request index -> answer, of the present task, in the order they came.
        scorer: as the scorer left it last.
        restored: how many of the answers were read from the file.
    """

    def __init__(self, path: Path | None, record_key: str, every: float) -> None:
        self._path = path
        self._every = every
        self._saved = time.monotonic()
        self._file = self._read(record_key) or _Unfinished(record_key=record_key)
        self._settled = 0
        self._task: str | None = None
        self._count = 0
        self.answers: dict[int, Answer] = {}
        self.scorer = self._file.scorer
        self.restored = 0

    def _read(self, record_key: str) -> _Unfinished | None:
        if self._path is None:
            return None
        try:
            found = _Unfinished.model_validate_json(self._path.read_bytes())
        except (OSError, ValidationError):
            return None  # nothing was kept, or it cannot be trusted: the task begins anew
        return found if found.record_key == record_key else None

    @contextmanager
    def of_task(self, task: str) -> Iterator[None]:
        """Keep the answers of ``task``, and what there is of them when it is cut off.

        Raises:
            OutputError: the file cannot be written.
        """
        self._task, self._count = task, 0
        self._forget()
        try:
            yield
        except BaseException:
            if self.answers:
                self.save()
            raise
        self._task = None
        self._forget()
        self.save()

    def begin(self, count: int) -> dict[int, Answer]:
        """Answers that an earlier process gave to the ``count`` requests of this task."""
        self._count = count
        self._forget()
        known = self._file
        if known.task == self._task and known.count == count:
            self.answers = dict(known.answers)
            self._settled = known.settled
        self._file = known.model_copy(update={"task": None, "answers": {}})
        self.restored = len(self.answers)
        return self.answers

    def reject(self) -> None:
        """Begin the present task anew: its answers came from another engine."""
        self._forget()

    def _forget(self) -> None:
        self.answers, self._settled, self.restored = {}, 0, 0

    @property
    def settled(self) -> list[int]:
        """Requests that were answered before memory ran out last; the rest is planned anew."""
        return list(self.answers)[: self._settled]

    def settle(self) -> None:
        """What is answered so far no longer takes part in planning."""
        self._settled = len(self.answers)

    def add(self, answers: Mapping[int, Answer], scorer: ScorerState) -> None:
        """Take in a batch; write the file when it is time.

        Raises:
            OutputError: the file cannot be written.
        """
        self.answers.update(answers)
        self.scorer = scorer
        if time.monotonic() - self._saved >= self._every:
            self.save()

    def save(self) -> None:
        """Write the file whole.

        Raises:
            OutputError: it cannot be written.
        """
        self._saved = time.monotonic()
        if self._path is None:
            return
        content = _Unfinished(
            record_key=self._file.record_key,
            scorer=self.scorer,
            task=self._task,
            count=self._count,
            answers=self.answers,
            settled=self._settled,
        )
        write_file(self._path, content.model_dump_json())


def loglikelihoods(answers: Mapping[int, Answer]) -> dict[int, tuple[float, bool]]:
    """Those of ``answers`` that a loglikelihood request got: nats, and whether it is greedy."""
    return {index: answer for index, answer in answers.items() if isinstance(answer, tuple)}
