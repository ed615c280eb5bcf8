"""A real server behind a proxy that fails at each step of an evaluation, in each way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.cli import Finished
from support.faultbench import Bench, record_ids, runs_of
from support.faulty import Asked, Fault, FaultyProxy, faulty_proxy
from support.ledger import Ledger, Row

LOGIN = b"<!DOCTYPE html><html><body><form>Please log in</form></body></html>"

FAULTS = {
    "resets connections": Fault("refuse"),
    "says nothing": Fault("hang"),
    "answers 401": Fault("answer", 401, b"Unauthorized"),
    "answers 403": Fault("answer", 403, b"Forbidden"),
    "answers 500": Fault("answer", 500, b"Internal Server Error"),
    "answers with a login page": Fault("answer", 200, LOGIN),
}
MOMENTS: dict[str, Callable[[Asked], bool]] = {
    "from the start": lambda asked: True,
    "when the run is made": lambda asked: asked.path.endswith("/runs/create"),
    "at the third upload": lambda asked: asked.method == "PUT" and "samples" in asked.path,
    "at the very end": lambda asked: asked.path.endswith("/runs/update"),
}
EVERYTHING = bool(os.environ.get("PRUNESCOPE_ALL_FAULTS"))
CHOSEN = [
    (fault, moment)
    for number, fault in enumerate(FAULTS)
    for place, moment in enumerate(MOMENTS)
    if EVERYTHING or place == number % len(MOMENTS) or fault == "says nothing"
]
"""`make faults` tries each fault at each moment, `make test` each of both."""
PASSING: dict[str, Callable[[Asked], Fault | None]] = {
    "every 9th connection reset": lambda asked: Fault("refuse") if asked.number % 9 == 0 else None,
    "every 9th answer lost": lambda asked: Fault("drop") if asked.number % 9 == 0 else None,
    "every 9th answer is 503": lambda asked: (
        Fault("answer", 503, b"busy") if asked.number % 9 == 0 else None
    ),
    "0.1 s before every answer": lambda asked: Fault("delay", seconds=0.1),
}
SPOILT: dict[str, Callable[[Asked], Fault | None]] = {
    "uploads arrive with another byte": lambda asked: (
        Fault("spoil") if asked.method == "PUT" and asked.path.endswith(".parquet") else None
    ),
    "downloads come back with another byte": lambda asked: (
        Fault("spoil") if asked.method == "GET" and asked.path.endswith(".parquet") else None
    ),
}


@pytest.fixture(scope="module")
def proxy(mlflow_server: str) -> Iterator[FaultyProxy]:
    with faulty_proxy(mlflow_server) as started:
        yield started


def from_then_on(is_moment: Callable[[Asked], bool], fault: Fault) -> Callable[[Asked], Fault]:
    """The fault, for good, once the moment has come."""
    come = False

    def decide(asked: Asked) -> Fault | None:
        nonlocal come
        come = come or is_moment(asked)
        return fault if come else None

    return decide  # type: ignore[return-value]


def faulty_evaluation(
    bench: Bench, proxy: FaultyProxy, folder: Path, fault: Callable[[Asked], Fault | None]
) -> tuple[Finished, float]:
    """What an evaluation says under the fault, and how much longer it took."""
    proxy.fail(fault)
    command = bench.start(bench.arguments(proxy.address), folder)
    done = command.wait()
    proxy.heal()
    assert "Traceback" not in done.stderr
    return done, command.seconds - bench.seconds


def row(bench: Bench, name: str, folder: Path, at_once: int, lost: float) -> Row:
    """What the server has in the end."""
    (record_id,) = record_ids(folder)
    runs = runs_of(bench.store(folder), record_id)
    whole = [run for run in runs if run.is_complete and run.status == "FINISHED"]
    equal = bool(whole) and all(bench.is_undisturbed(run) for run in runs)
    return Row(name, 1, at_once, len(whole), len(runs) - 1, equal, lost)


def complete(bench: Bench, folder: Path) -> int:
    """How many complete runs the server has of the folder's record."""
    (record_id,) = record_ids(folder)
    return sum(run.is_complete for run in runs_of(bench.store(folder), record_id))


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "moment"), CHOSEN)
def test_the_server_is_gone(
    bench: Bench, ledger: Ledger, proxy: FaultyProxy, tmp_path: Path, fault: str, moment: str
) -> None:
    decide = from_then_on(MOMENTS[moment], FAULTS[fault])
    done, lost = faulty_evaluation(bench, proxy, tmp_path, decide)
    assert done.exit_code == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert "not tracked" in said
    assert "the record is safe in" in said
    assert "prunescope sync" in said
    at_once = complete(bench, tmp_path)
    assert at_once == 0
    sync = ["sync", "--tracking-uri", proxy.address]
    sent = bench.start([*sync, "--experiment", "faults"], tmp_path).wait()
    assert sent.exit_code == 0, sent.stderr
    again = bench.start([*sync, "--json"], tmp_path).wait()
    assert again.exit_code == 0, again.stderr
    ledger.add(row(bench, f"the server {fault}, {moment}", tmp_path, at_once, lost))


@pytest.mark.slow
@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_waited_for(
    bench: Bench, ledger: Ledger, proxy: FaultyProxy, tmp_path: Path, fault: str
) -> None:
    done, lost = faulty_evaluation(bench, proxy, tmp_path, PASSING[fault])
    assert done.exit_code == 0, done.stderr
    assert "not tracked" not in done.stderr
    ledger.add(row(bench, fault, tmp_path, complete(bench, tmp_path), lost))


@pytest.mark.slow
@pytest.mark.parametrize("fault", SPOILT)
def test_what_arrives_changed_is_not_believed(
    bench: Bench, ledger: Ledger, proxy: FaultyProxy, tmp_path: Path, fault: str
) -> None:
    done, lost = faulty_evaluation(bench, proxy, tmp_path, SPOILT[fault])
    assert done.exit_code == 0, done.stderr
    assert "did not arrive whole" in " ".join(done.stderr.split())
    at_once = complete(bench, tmp_path)
    assert at_once == 0
    sent = bench.start(["sync", "--tracking-uri", proxy.address], tmp_path).wait()
    assert sent.exit_code == 0, sent.stderr
    ledger.add(row(bench, fault, tmp_path, at_once, lost))
