"""From ``--kl-reference`` to what an evaluation takes: a model, or a record directory."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from prunescope.errors import PrunescopeError, RunNotFoundError, TrackingError

if TYPE_CHECKING:
    from prunescope.cli.publishing import Tracker

__all__ = ["kl_reference"]

_HUB_ID = re.compile(r"[\w.\-]+/[\w.\-]+(@[\w.\-/]+)?")


@contextlib.contextmanager
def kl_reference(selector: str | None, tracker: Tracker) -> Iterator[str | None]:
    """What ``EvalConfig.kl_reference`` shall be, for as long as the context lasts.

    A path is a model or a record directory as it is. Anything else names a run, whose record is
    fetched; a hub id that no run is named like is a model.

    Raises:
        RunNotFoundError: neither a run nor a model answers to the name.
        TrackingError: the tracking server cannot be reached.
    """
    if selector is None or Path(selector).exists():
        yield selector
        return
    if tracker.store is None:
        if _HUB_ID.fullmatch(selector):
            yield selector
            return
        raise tracker.problem or TrackingError("--kl-reference needs the tracking server")
    from prunescope.tracking.query import resolve_run

    try:
        run = resolve_run(tracker.store, selector)
    except RunNotFoundError as unknown:
        if not _HUB_ID.fullmatch(selector):
            raise _explained(unknown) from unknown
        yield selector
        return
    with tempfile.TemporaryDirectory(prefix="prunescope-") as folder:
        yield str(tracker.store.fetch(run, Path(folder) / "original", everything=True))


def _explained(unknown: RunNotFoundError) -> PrunescopeError:
    return RunNotFoundError(
        f"--kl-reference: {unknown.message}, and no model folder of that name",
        hint=unknown.hint,
    )
