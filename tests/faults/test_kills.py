"""``kill -9`` at random moments of an evaluation, and the same command again."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from support.faultbench import Bench, record_ids, runs_of
from support.ledger import Ledger, Row

KILLS = 20 if os.environ.get("PRUNESCOPE_ALL_FAULTS") else 4


@pytest.mark.slow
def test_killed_at_random_moments(bench: Bench, ledger: Ledger, tmp_path: Path) -> None:
    chance = random.Random(20)
    store = bench.store(tmp_path)
    whole, ended, doubled, equal = 0, 0, 0, True
    for number in range(KILLS):
        folder = tmp_path / str(number)
        arguments = bench.arguments(bench.server)
        command = bench.start(arguments, folder)
        time.sleep(chance.uniform(0, bench.seconds))
        command.kill()
        command.wait()
        started = [run for one in record_ids(folder) for run in runs_of(store, one)]
        whole += any(run.status == "FINISHED" for run in started)
        again = bench.start(arguments, folder).wait()
        assert again.exit_code == 0, again.stderr
        (record_id,) = record_ids(folder)
        runs = runs_of(store, record_id)
        ended += any(run.is_complete and run.status == "FINISHED" for run in runs)
        doubled += len(runs) - 1
        equal &= all(bench.is_undisturbed(run) for run in runs)
    ledger.add(Row("`kill -9` at a random moment", KILLS, whole, ended, doubled, equal))
