"""Experiments and runs, page by page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunescope.errors import TrackingError

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run
    from mlflow.tracking import MlflowClient

__all__ = ["all_experiments", "get_or_create_experiment", "search_runs"]

_PAGE = 1000


def all_experiments(client: MlflowClient) -> list[Experiment]:
    """Every experiment that is not deleted: MLflow searches runs only in those it is told."""
    found: list[Experiment] = []
    token: str | None = None
    while True:
        page = client.search_experiments(max_results=_PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def search_runs(
    client: MlflowClient, wanted: str | None, experiment_ids: Sequence[str], limit: int | None
) -> list[Run]:
    """The newest ``limit`` runs that the filter ``wanted`` lets through; none where it is None."""
    found: list[Run] = []
    token: str | None = None
    while wanted is not None and experiment_ids:
        page = client.search_runs(
            list(experiment_ids),
            wanted,
            max_results=_PAGE if limit is None else min(_PAGE, limit - len(found)),
            order_by=["attributes.start_time DESC"],
            page_token=token,
        )
        found += page
        token = page.token
        if not token or (limit is not None and len(found) >= limit):
            break
    return found


def get_or_create_experiment(client: MlflowClient, name: str, place: str | None) -> Experiment:
    """The experiment of this name.

    Args:
        client: of the store.
        name: of the experiment.
        place: where a new one keeps its artifacts; None lets the server decide.

    Raises:
        TrackingError: it was deleted.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            client.create_experiment(name, artifact_location=place)
        except MlflowException as error:
            # Another process may have been quicker.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        raise TrackingError(
            f"the experiment '{name}' was deleted",
            hint="Restore it in MLflow, or name another with --experiment",
        )
    return found
