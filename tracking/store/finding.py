"""Runs of a store: by what they are tagged with, by id, and those that a killed process left."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING

from prunescope.records import RunRef
from prunescope.tracking.links import is_http
from prunescope.tracking.runs import StoredRun, filter_string
from prunescope.tracking.store.bulk import search_all_runs
from prunescope.tracking.store.search import search_runs
from prunescope.tracking.store.upload import is_alive

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

__all__ = ["fail_orphans", "find_runs", "get_run", "stored_run"]


def find_runs(
    client: MlflowClient,
    uri: str,
    wanted: str | None,
    experiment_ids: Sequence[str],
    limit: int | None,
) -> list[Run]:
    """The newest ``limit`` runs that a filter lets through.

    Args:
        client: of the store.
        uri: the store's address; a server's runs are read several pages at once.
        wanted: from :func:`~prunescope.tracking.runs.filter_string`; None lets nothing through.
        experiment_ids: where to look.
        limit: None for all.
    """
    if wanted and experiment_ids and limit is None and is_http(uri):
        return search_all_runs(uri, wanted, experiment_ids)
    return search_runs(client, wanted, experiment_ids, limit)


def get_run(client: MlflowClient, run_id: str) -> Run | None:
    """The run with this id, one in MLflow's trash too; None where there is none.

    Raises:
        MlflowException: the store refuses.
    """
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    return None


def fail_orphans(client: MlflowClient, experiment_ids: Sequence[str]) -> list[Run]:
    """Mark as FAILED the runs that a process of this machine left RUNNING when it was killed.

    Raises:
        MlflowException: the store refuses.
    """
    wanted = filter_string(
        tags={"prunescope.host": socket.gethostname()}, status="RUNNING", only_prunescope=True
    )
    running = search_runs(client, wanted, experiment_ids, None)
    orphans = [run for run in running if not is_alive(run.data.tags.get("prunescope.pid"))]
    for run in orphans:
        client.set_terminated(run.info.run_id, "FAILED")
    return orphans


def stored_run(run: Run, ref: RunRef) -> StoredRun:
    """A run of MLflow's as a frozen value.

    Args:
        run: as the store gave it.
        ref: how it is named outside.
    """
    info, data = run.info, run.data
    return StoredRun(
        ref=ref,
        status=str(info.status),
        started_at=datetime.fromtimestamp((info.start_time or 0) / 1000, UTC),
        metrics=MappingProxyType(dict(data.metrics)),
        params=MappingProxyType(dict(data.params)),
        tags=MappingProxyType(dict(data.tags)),
        is_deleted=info.lifecycle_stage == "deleted",
    )
