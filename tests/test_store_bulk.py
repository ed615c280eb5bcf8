"""All runs of a server, asked for in parts, are those that one query gives, in its order."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from prunescope.tracking.store import bulk, open_store


def test_parts_give_every_run_once_newest_first(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "FIRST", 10)
    monkeypatch.setattr(bulk, "PAGE", 8)
    client = MlflowClient(mlflow_server)
    experiment = client.create_experiment("many runs")
    tags = {"prunescope.schema": "1", "prunescope.model": "m"}
    made = []
    for number in range(40):
        # Eleven have the same time, and lie across pages of either end.
        start = 1_700_000_000_000 + (number if number > 25 else min(number, 15))
        run = client.create_run(experiment, start_time=start, tags=tags)
        if number % 10 == 3:
            client.log_batch(run.info.run_id, tags=[RunTag("prunescope.model", "other")])
        made.append((run.info.run_id, start, number % 10 == 3))
    store = open_store(mlflow_server, root=tmp_path)
    found = store.search(experiment="many runs", status=None)
    assert sorted(run.ref.run_id for run in found) == sorted(run_id for run_id, _, _ in made)
    times = [run.started_at for run in found]
    assert times == sorted(times, reverse=True)
    others = store.search(experiment="many runs", status=None, model="other")
    assert {run.ref.run_id for run in others} == {i for i, _, other in made if other}
    newest = store.search(experiment="many runs", status=None, limit=5)
    assert [run.ref.run_id for run in newest] == [run.ref.run_id for run in found[:5]]


def test_runs_are_those_of_the_client(mlflow_server: str) -> None:
    client = MlflowClient(mlflow_server)
    experiment = client.create_experiment("odd runs")
    values = [float("nan"), float("inf"), -float("inf"), 1e300, 0.1, -0.0, 12345678901234567.0]
    for number in range(3):
        run = client.create_run(experiment, start_time=1_700_000_000_000 + number, run_name="é|\n")
        metrics = [Metric(f"m/{i}", v, 1_700_000_000_123, i) for i, v in enumerate(values)]
        params = [Param("empty", ""), Param("text", "a\nb ü")]
        client.log_batch(run.info.run_id, metrics, params, [RunTag("t", "x" * 5000)])
        if number:
            client.set_terminated(run.info.run_id, "FAILED", end_time=1_700_000_009_999)
    found = bulk.search_all_runs(mlflow_server, "", [experiment])
    expected = client.search_runs([experiment], order_by=["attributes.start_time DESC"])
    assert len(found) == 3
    for ours, theirs in zip(found, expected, strict=True):
        assert dict(ours.info) == dict(theirs.info)
        assert ours.data.params == theirs.data.params
        assert ours.data.tags == theirs.data.tags
        assert repr(ours.data.metrics) == repr(theirs.data.metrics)
