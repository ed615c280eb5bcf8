"""What the faults are done to: evaluations of a tiny model, and a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.faultbench import Bench, lasting_metrics, record_ids, runs_of
from support.forks import Forks, forks
from support.ledger import Ledger


@pytest.fixture(scope="session")
def mother() -> Iterator[Forks]:
    """The process that starts all others."""
    with forks() as started:
        yield started


@pytest.fixture(scope="session")
def bench(
    mother: Forks,
    tiny_llama: Path,
    mlflow_server: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Bench:
    """An undisturbed evaluation, done twice: the second tells how long one takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    found = Bench(mother, tiny_llama, mlflow_server, {}, 0.0)
    seen = []
    for _ in range(2):
        command = found.start(found.arguments(mlflow_server), folder)
        done = command.wait()
        assert done.exit_code == 0, done.stderr
        found.seconds = command.seconds
    for record_id in record_ids(folder):
        (run,) = runs_of(found.store(folder), record_id)
        assert run.status == "FINISHED"
        seen.append(lasting_metrics(run))
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert len(seen[0]) > 15
    found.metrics = seen[0]
    return found


@pytest.fixture
def ledger() -> Ledger:
    """Takes a row from each test."""
    return Ledger()
