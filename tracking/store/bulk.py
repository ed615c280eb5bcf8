"""Every run that a filter lets through, from a server that answers several requests at once.

A server takes milliseconds to spell a run as JSON. So beyond the newest runs a store is read from
both ends at once, until the two meet: the work then spreads over as many processes as the server
has. The pages are read as JSON, since MLflow's client builds protobuf messages of them first,
which takes it a third as long again as the server has needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from prunescope.tracking.store.patience import patiently

if TYPE_CHECKING:
    from mlflow.entities import Run

__all__ = ["search_all_runs"]

FIRST = 100
"""How many of the newest runs are asked for first; a store that has no more is done then."""
PAGE = 500
_PATH = "/api/2.0/mlflow/runs/search"


def search_all_runs(uri: str, wanted: str, experiment_ids: Sequence[str]) -> list[Run]:
    """The runs in the order of :func:`~prunescope.tracking.store.search.search_runs`.

    Args:
        uri: address of a server.
        wanted: the filter.
        experiment_ids: where to look.

    Returns:
        Runs with their information, metrics, params and tags; without inputs and outputs.
    """
    newest = _End(uri, wanted, experiment_ids, "DESC")
    newest.read(FIRST)
    oldest = _End(uri, wanted, experiment_ids, "ASC")
    with ThreadPoolExecutor(2) as pool:
        while not newest.is_done and not oldest.is_done and not _have_met(newest, oldest):
            list(pool.map(lambda end: end.read(PAGE), (newest, oldest)))
    found = {run.info.run_id: run for run in [*newest.runs, *reversed(oldest.runs)]}
    return sorted(found.values(), key=lambda run: -(run.info.start_time or 0))


class _End:
    """The runs from one end of time, as far as they were read."""

    def __init__(self, uri: str, wanted: str, experiment_ids: Sequence[str], order: str) -> None:
        self._uri = uri
        self._query: dict[str, Any] = {
            "experiment_ids": list(experiment_ids),
            "filter": wanted,
            "order_by": [f"attributes.start_time {order}"],
        }
        self.runs: list[Run] = []
        self.is_done = False

    def read(self, count: int) -> None:
        """Read ``count`` more."""
        page = patiently(_post)(self._uri, {**self._query, "max_results": count})
        self.runs += [_run(one) for one in page.get("runs", [])]
        self._query["page_token"] = page.get("next_page_token")
        self.is_done = not self._query["page_token"]

    @property
    def reached(self) -> int:
        """Start of the last run; every run beyond it was read, of those at it perhaps not all."""
        return self.runs[-1].info.start_time or 0


def _have_met(newest: _End, oldest: _End) -> bool:
    return bool(newest.runs and oldest.runs) and newest.reached < oldest.reached


def _post(uri: str, query: dict[str, Any]) -> dict[str, Any]:
    """One request with MLflow's credentials and time limit."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request, verify_rest_response

    credentials = get_default_host_creds(uri)  # type: ignore[no-untyped-call]
    answer = http_request(credentials, _PATH, "POST", json=query)  # type: ignore[no-untyped-call]
    answer = verify_rest_response(answer, _PATH)
    try:
        found: dict[str, Any] = answer.json()
    except ValueError as error:
        raise MlflowException("The response is not in a valid JSON format") from error
    return found


def _run(found: dict[str, Any]) -> Run:
    """A run from its JSON; 64-bit integers may be spelled as text, as protobuf's JSON has it."""
    from mlflow.entities import Metric, Param, Run, RunData, RunInfo, RunTag

    info, data = found["info"], found.get("data", {})
    return Run(
        RunInfo(
            run_id=info["run_id"],
            experiment_id=info["experiment_id"],
            user_id=info.get("user_id", ""),
            status=info["status"],
            start_time=int(info.get("start_time", 0)),
            end_time=int(info["end_time"]) if info.get("end_time") else None,
            lifecycle_stage=info.get("lifecycle_stage", "active"),
            artifact_uri=info.get("artifact_uri"),
            run_name=info.get("run_name"),
        ),
        RunData(
            metrics=[
                Metric(m["key"], float(m["value"]), int(m["timestamp"]), int(m.get("step", 0)))
                for m in data.get("metrics", [])
            ],
            params=[Param(p["key"], p.get("value", "")) for p in data.get("params", [])],
            tags=[RunTag(t["key"], t.get("value", "")) for t in data.get("tags", [])],
        ),
    )
