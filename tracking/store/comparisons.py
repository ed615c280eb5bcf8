"""A comparison as a run of its own, which points at the two runs that it compares.

Such a run has neither a record nor the tags ``prunescope.schema`` and ``prunescope.model``, so no
search for evaluations finds it.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from prunescope.errors import TrackingError
from prunescope.records import RunRef, utc_now
from prunescope.tracking.links import compare_path, run_path
from prunescope.tracking.notes import compose_note
from prunescope.tracking.store.artifacts import File, artifacts_of, send_artifacts

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

__all__ = ["KIND_TAG", "comparison_tags", "send_comparison"]

KIND_TAG = "prunescope.kind"


def comparison_tags(original: RunRef, pruned: RunRef) -> dict[str, str]:
    """What marks a run as a comparison, and names its two sides."""
    return {
        KIND_TAG: "comparison",
        # In the run table it stands among evaluations, under the pruned run's name cut short.
        "prunescope.role": "comparison",
        "mlflow.runColor": "#c4c8ce",
        "prunescope.original_run_id": original.run_id,
        "prunescope.pruned_run_id": pruned.run_id,
        "mlflow.source.name": "prunescope",
        "mlflow.source.type": "LOCAL",
    }


def send_comparison(
    client: MlflowClient,
    uri: str,
    sides: tuple[RunRef, RunRef],
    files: Sequence[Path],
    metrics: Mapping[str, float],
    headline: str,
) -> tuple[str, str]:
    """Write the run; it goes to the pruned run's experiment.

    Args:
        client: of the store.
        uri: the store's address.
        sides: the original's run and the pruned model's.
        files: reports in different formats; as artifacts they are ``comparison.json`` and so on,
            the same names in every run.
        metrics: differences; those that are not finite are left out.
        headline: first line of the run's note, plain text.

    Returns:
        Its id and its name.

    Raises:
        TrackingError: a side is not in this store, or a file did not arrive.
    """
    from mlflow.entities import Metric, RunTag

    original, pruned = sides
    _require_present(client, sides)
    name = f"{pruned.run_name} against {original.run_name}"[:250]
    now = round(1000 * utc_now().timestamp())
    tags = comparison_tags(original, pruned)
    run = client.create_run(pruned.experiment_id, start_time=now, tags=tags, run_name=name)
    run_id = str(run.info.run_id)
    note = compose_note("", _links(original, pruned), first_line=headline)
    client.log_batch(
        run_id,
        metrics=[Metric(k, round(v, 4), now, 0) for k, v in metrics.items() if math.isfinite(v)],
        tags=[RunTag("mlflow.note.content", note)],
    )
    try:
        with tempfile.TemporaryDirectory(prefix="prunescope-") as scratch:
            kept = [_renamed(path, Path(scratch)) for path in files]
            send_artifacts(artifacts_of(run, uri), kept)
    except BaseException:
        with contextlib.suppress(Exception):  # what went wrong first is what is told
            client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")
    return run_id, name


def _renamed(path: Path, scratch: Path) -> File:
    """A copy under the name that the report has in every run."""
    name = f"comparison{path.suffix}"
    shutil.copyfile(path, scratch / name)
    return File(scratch / name, PurePosixPath(name))


def _require_present(client: MlflowClient, sides: Iterable[RunRef]) -> None:
    from mlflow.exceptions import MlflowException

    for side in sides:
        try:
            client.get_run(side.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise TrackingError(
                f"the run {side.run_name} ({side.run_id[:8]}) is not in this store"
            ) from error


def _links(original: RunRef, pruned: RunRef) -> dict[str, str]:
    return {
        "original": run_path(original.experiment_id, original.run_id),
        "pruned": run_path(pruned.experiment_id, pruned.run_id),
        "side by side": compare_path(
            [original.run_id, pruned.run_id], [original.experiment_id, pruned.experiment_id]
        ),
    }
