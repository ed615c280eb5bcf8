"""Eight evaluations at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.faultbench import Bench, record_ids, runs_of
from support.ledger import Ledger, Row

AT_ONCE = 8


@pytest.mark.slow
@pytest.mark.parametrize("store", ["a fresh embedded store", "an existing store", "a server"])
def test_eight_at_once(bench: Bench, ledger: Ledger, tmp_path: Path, store: str) -> None:
    address = bench.server if store == "a server" else None
    if store == "an existing store":
        bench.start(bench.arguments(), tmp_path).wait()
    before = record_ids(tmp_path)
    commands = [bench.start(bench.arguments(address), tmp_path) for _ in range(AT_ONCE)]
    for command in commands:
        done = command.wait(240)
        assert done.exit_code == 0, done.stderr
        assert "not tracked" not in done.stderr, done.stderr
    opened = bench.store(tmp_path, address or f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    found = [runs_of(opened, one) for one in record_ids(tmp_path) if one not in before]
    runs = [run for each in found for run in each]
    whole = sum(run.is_complete and run.status == "FINISHED" for run in runs)
    equal = all(bench.is_undisturbed(run) for run in runs)
    doubled = len(runs) - len(found)
    ledger.add(Row(f"{AT_ONCE} at once into {store}", AT_ONCE, whole, whole, doubled, equal))
