"""From a record directory to a run: its reports name it, and a baseline may be missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.records import pruned_record, write_example
from support.server import fresh_store, proxy

from prunescope.cli.publishing import Tracker, publish
from prunescope.records import write_record
from prunescope.tracking.store import open_store


def _pruned_of(folder: Path, baseline_run_id: str) -> Path:
    write_example(folder, "pruned")
    labels = pruned_record().labels.model_copy(update={"baseline_run_id": baseline_run_id})
    write_record(folder, pruned_record().model_copy(update={"labels": labels}))
    return folder


@pytest.mark.parametrize("name", ["report.md", "report.html"])
def test_a_runs_own_report_names_both_runs(empty_database: Path, tmp_path: Path, name: str) -> None:
    tracker = Tracker(tmp_path, fresh_store(empty_database, tmp_path / "mlruns"), "exp")
    write_example(tmp_path / "original")
    original = publish(tmp_path / "original", tracker).run
    assert original is not None and tracker.store is not None
    outcome = publish(_pruned_of(tmp_path / "pruned", original.run_id), tracker)
    assert outcome.run is not None
    stored = tracker.store.get(outcome.run.run_id)
    fetched = tracker.store.fetch(stored, tmp_path / "back", everything=True)
    text = (fetched / name).read_text()
    assert original.run_id in text and outcome.run.run_id in text
    note = stored.tags["mlflow.note.content"]
    assert tracker.store.compare_link(original, outcome.run) in note


def test_a_run_goes_to_a_server_that_does_not_have_its_baseline(
    empty_database: Path, tmp_path: Path
) -> None:
    tracker = Tracker(tmp_path, fresh_store(empty_database, tmp_path / "mlruns"), "exp")
    outcome = publish(_pruned_of(tmp_path / "pruned", "f" * 32), tracker)
    assert outcome.problem is None and outcome.comparison is None
    assert outcome.run is not None and tracker.store is not None
    assert tracker.store.get(outcome.run.run_id).status == "FINISHED"


def test_naming_the_run_costs_no_request(mlflow_server: str, tmp_path: Path) -> None:
    counts = []
    for number, prepared in enumerate((False, True)):
        folder = tmp_path / str(number)
        record = write_example(folder)
        write_record(folder, record.model_copy(update={"record_id": f"{number + 1:032x}"}))
        with proxy(mlflow_server) as (address, seen):
            store = open_store(address, root=tmp_path / f"root{number}")
            store.upload(folder, experiment="warm-up exp")
            before = len(seen)
            write_record(folder, record.model_copy(update={"record_id": f"{number + 8:032x}"}))
            store.upload(
                folder, experiment="warm-up exp", prepare=(lambda run: {}) if prepared else None
            )
            counts.append(len(seen) - before)
    assert counts[0] == counts[1]
