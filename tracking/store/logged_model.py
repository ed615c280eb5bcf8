"""The evaluated model as one of MLflow's logged models, where somebody asked for it.

Its page shows the run's figures, each with the data set that it was taken on. Nothing of the
weights is stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prunescope.errors import TrackingError
from prunescope.records import EvalRecord, RunRef
from prunescope.tracking.codec import dataset_inputs, encode, params
from prunescope.tracking.store.connect import tracking_errors

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Metric
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    from prunescope.tracking.store import Store

__all__ = ["MODEL_TAG", "WANTED_TAG", "add_model", "check_models", "log_model", "wants_model"]

WANTED_TAG = "prunescope.logged_model"
"""Label of a record whose run is to have a logged model, whatever server it comes to."""
MODEL_TAG = "prunescope.logged_model_id"
"""Tag of a run that has one."""

_RECORD = "prunescope.record_id"
_OF_THE_RUN = ("layers/", "time/", "tokens_per_s")
"""Metrics that say nothing about the model as a whole."""


def wants_model(record: EvalRecord) -> bool:
    """Whether a record's run is to have a logged model: it finished, and somebody asked."""
    return record.status == "finished" and WANTED_TAG in record.labels.tags


def check_models(store: Store) -> None:
    """See that a store can keep logged models, before anything is done for one.

    Raises:
        TrackingError: it cannot, or it refuses.
    """
    client, uri = store.connection
    with tracking_errors(uri):
        try:
            client.search_logged_models(["0"], max_results=1)
        except _mlflow_exception() as error:
            if not _is_unknown(error):
                raise
            raise TrackingError(
                f"{store.uri} has no logged models, which came with MLflow 3",
                hint="Leave out --logged-model",
            ) from error


def add_model(store: Store, run: RunRef, record: EvalRecord) -> None:
    """Give a run that is on the server its logged model, as :func:`log_model` does.

    Raises:
        TrackingError: the store refuses.
    """
    client, uri = store.connection
    with tracking_errors(uri):
        log_model(client, run, record)


def log_model(client: MlflowClient, run: RunRef, record: EvalRecord) -> str | None:
    """Give a run its logged model: one request that looks for it, four that write.

    The run's page shows a model only where it is among the run's inputs. The model becomes READY
    last, so one that is READY has everything, and an interrupted call is completed by the next.

    Args:
        client: of the run's store.
        run: a run that was sent whole.
        record: what it stands for.

    Returns:
        Id of the model; None where the server has no logged models.

    Raises:
        MlflowException: the store refuses.
    """
    from mlflow.entities import LoggedModelInput, LoggedModelStatus, RunTag

    try:
        model = _known(client, run)
    except _mlflow_exception() as error:
        if _is_unknown(error):
            return None
        raise
    model = model or client.create_logged_model(
        run.experiment_id,
        name=_name(run.run_name),
        source_run_id=run.run_id,
        tags=_tags(record),
        params=params(record),
        model_type=record.model.architecture,
    )
    model_id = str(model.model_id)
    if model.status != LoggedModelStatus.READY:
        tag = RunTag(MODEL_TAG, model_id)
        client.log_batch(run.run_id, metrics=list(_metrics(record, model_id)), tags=[tag])
        client.log_inputs(run.run_id, models=[LoggedModelInput(model_id)])
        client.finalize_logged_model(model_id, "READY")
    return model_id


def _mlflow_exception() -> type[MlflowException]:
    from mlflow.exceptions import MlflowException

    return MlflowException


def _is_unknown(error: MlflowException) -> bool:
    """Whether a server does not know the request, as those before MLflow 3."""
    return str(error.error_code) == "ENDPOINT_NOT_FOUND"


def _known(client: MlflowClient, run: RunRef) -> LoggedModel | None:
    """The model that the run has. A request that was retried may have made a second: it goes."""
    found = client.search_logged_models(
        [run.experiment_id],
        f"source_run_id = '{run.run_id}' AND tags.`{_RECORD}` LIKE '%'",
        order_by=[{"field_name": "creation_timestamp", "ascending": True}],
    )
    ranked = sorted(found, key=lambda model: str(model.status) != "READY")
    for double in ranked[1:]:
        client.delete_logged_model(double.model_id)
    return ranked[0] if ranked else None


def _tags(record: EvalRecord) -> dict[str, str]:
    known = {
        _RECORD: record.record_id,
        "prunescope.role": record.labels.role,
        "prunescope.weights_sha256": record.model.weights_sha256,
        "prunescope.mask_sha256": record.model.mask_sha256,
        "mlflow.user": record.provenance.user or None,
        "mlflow.source.name": "prunescope",
        "mlflow.source.type": "LOCAL",
    }
    return {name: value for name, value in known.items() if value is not None}


def _name(run_name: str) -> str:
    """The run's name without the characters that MLflow keeps for other things."""
    return re.sub(r"[/:.%\"']", "_", run_name).strip() or "model"


def _metrics(record: EvalRecord, model_id: str) -> Iterator[Metric]:
    """The run's own points once more, so that the run keeps them once, now with their model."""
    from mlflow.entities import Metric

    digests = {one.name: one.digest for one in dataset_inputs(record)}
    fields = encode(record)
    for point in fields.metrics:
        if point.name.startswith(_OF_THE_RUN):
            continue
        last = point.name.rpartition("/")[2]
        dataset = next((name for name in (last, last.partition(".")[0]) if name in digests), None)
        yield Metric(
            point.name,
            point.value,
            fields.end_ms,
            point.step,
            model_id=model_id,
            dataset_name=dataset,
            dataset_digest=digests.get(dataset) if dataset else None,
        )
