"""What an experiment opens with in MLflow's pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunescope.records import EvalRecord
from prunescope.tracking.codec import metric_points
from prunescope.tracking.notes import experiment_note, is_ours
from prunescope.tracking.view import VIEW_ID, VIEW_TAG, read_view, view_value

if TYPE_CHECKING:
    from mlflow.entities import Experiment
    from mlflow.tracking import MlflowClient

__all__ = ["preset_experiment"]

_NOTE = "mlflow.note.content"


def preset_experiment(
    client: MlflowClient, experiment: Experiment, run_id: str, record: EvalRecord
) -> None:
    """Set the experiment's view and note where they are not yet what they should be.

    Args:
        client: of the store.
        experiment: the run's, as it was before.
        run_id: a run that has just been sent; an original, or the baseline of a pruned model,
            becomes the view's baseline.
        record: what was sent: the view shows its tasks and corpora.
    """
    have = dict(experiment.tags)
    names = [point.name for point in metric_points(record)[0]]
    view = read_view(have.get(VIEW_TAG))
    labels = record.labels
    baseline = run_id if labels.role == "original" else labels.baseline_run_id
    if record.provenance.imported and view.baseline_run_id:
        baseline = None  # old results do not take the place of what is being worked on
    wanted = {
        # Opens the pages for training runs; MLflow otherwise guesses, and asks.
        "mlflow.experimentKind": "custom_model_development",
        VIEW_TAG: view_value(view.extended(names, baseline)),
    }
    if is_ours(have.get(_NOTE)):
        wanted[_NOTE] = experiment_note(experiment.experiment_id, VIEW_ID)
    for key, value in wanted.items():
        if value is not None and have.get(key) != value:
            client.set_experiment_tag(experiment.experiment_id, key, value)
