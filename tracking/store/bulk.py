"""Every run that a filter lets through, from a server that answers several requests at once.

A server takes milliseconds to find a run and to spell it as JSON, and a client as long to read
it. So all but the newest runs are asked for in sixteenths, by the first digit of their ids, some
at a time: the server's work and ours then overlap, on as many processes as the server has.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from prunescope.tracking.store.search import search_runs

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

__all__ = ["search_all_runs"]

FIRST = 100
"""How many of the newest runs are asked for first; a store that has no more is done then."""
_AT_ONCE = 4
_DIGITS = "0123456789abcdef"


def search_all_runs(client: MlflowClient, wanted: str, experiment_ids: Sequence[str]) -> list[Run]:
    """The runs in the order of :func:`~prunescope.tracking.store.search.search_runs`.

    Args:
        client: of a server; run ids are MLflow's own, 32 hexadecimal digits.
        wanted: the filter, which says nothing of run ids.
        experiment_ids: where to look.
    """
    newest = search_runs(client, wanted, experiment_ids, FIRST)
    if len(newest) < FIRST:
        return newest
    # Equal times are asked for again, since more runs may have them than the first page held.
    rest = f"{wanted} AND attributes.start_time <= {newest[-1].info.start_time}"

    def sixteenth(digit: str) -> list[Run]:
        one = f"{rest} AND attributes.run_id LIKE '{digit}%'"
        return search_runs(client, one, experiment_ids, None)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        parts = list(pool.map(sixteenth, _DIGITS))
    found = {run.info.run_id: run for run in newest}
    for part in parts:
        found.update({run.info.run_id: run for run in part})
    return sorted(found.values(), key=lambda run: -(run.info.start_time or 0))
