"""Which run a user means."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from prunescope.errors import RunNotFoundError
from prunescope.tracking.runs import StoredRun

if TYPE_CHECKING:
    from prunescope.tracking.store import Store

__all__ = ["model_name", "resolve_original", "resolve_run"]

_ID = re.compile(r"[0-9a-f]{32}")
_ID_PREFIX = re.compile(r"[0-9a-f]{4,31}")
_CANDIDATES = 5
_RECENT = 100
_LIST_HINT = "List runs: prunescope runs"


def resolve_run(store: Store, selector: str) -> StoredRun:
    """The one finished run that ``selector`` names.

    Args:
        store: where to look, in all of its experiments.
        selector: a run id, the beginning of one (4 digits at least), ``runs:/ID``, a run's name,
            or ``latest:MODEL``, the newest run of a model.

    Raises:
        RunNotFoundError: none, several (the message lists them), or one that has not finished.
        TrackingError: the store refuses.
    """
    selector = selector.strip()
    if not selector:
        raise RunNotFoundError("expected the name of a run, found nothing", hint=_LIST_HINT)
    if selector.startswith("latest:"):
        return _latest(store, selector.removeprefix("latest:").strip())
    if selector.startswith("runs:/"):
        rest = selector.removeprefix("runs:/").strip("/").partition("/")[0]
        return _by_id(store, rest, selector)
    if _ID.fullmatch(selector):
        return _finished(store.get(selector))
    return _by_name(store, selector)


def resolve_original(store: Store, selector: str) -> StoredRun:
    """The finished run that ``selector`` names as for :func:`resolve_run`, or else the newest of
    the model that it names, a path or hub id.

    Raises:
        RunNotFoundError: there is none; it tells of the run that ``selector`` would have named.
        TrackingError: the store refuses.
    """
    try:
        return resolve_run(store, selector)
    except RunNotFoundError as unknown:
        try:
            return _latest(store, selector.strip())
        except RunNotFoundError:
            raise unknown from None


def model_name(model: str) -> str:
    """The name under which the runs of a model are found: the last part of its path or hub id,
    without a revision."""
    return PurePosixPath(model.rstrip("/")).name.partition("@")[0]


def _latest(store: Store, model: str) -> StoredRun:
    for name in dict.fromkeys((model, model_name(model))):
        if name and (found := store.search(model=name, limit=1)):
            return found[0]
    models = sorted({run.model for run in store.search(limit=_RECENT) if run.model})
    near = difflib.get_close_matches(model, models, _CANDIDATES, 0.3) or models[:_CANDIDATES]
    known = f"; the nearest: {', '.join(near)}" if near else ""
    raise RunNotFoundError(
        f"no finished run of a model '{model}' in {store.uri}{known}", hint=_LIST_HINT
    )


def _by_id(store: Store, run_id: str, selector: str) -> StoredRun:
    if _ID.fullmatch(run_id):
        return _finished(store.get(run_id))
    found = _with_prefix(store, run_id)
    return _only(store, found, selector)


def _by_name(store: Store, selector: str) -> StoredRun:
    named = store.search(name=selector, limit=_RECENT)
    named = named or store.search(name=selector, limit=_RECENT, status=None, only_prunescope=False)
    found = {run.ref.run_id: run for run in (*named, *_with_prefix(store, selector))}
    return _only(store, list(found.values()), selector)


def _with_prefix(store: Store, prefix: str) -> list[StoredRun]:
    if not _ID_PREFIX.fullmatch(prefix.lower()):
        return []
    return store.search(
        id_prefix=prefix.lower(), status=None, only_prunescope=False, limit=_CANDIDATES + 1
    )


def _only(store: Store, found: list[StoredRun], selector: str) -> StoredRun:
    if len(found) == 1:
        return _finished(found[0])
    if found:
        raise RunNotFoundError(
            f"'{selector}' names {len(found)} runs: {_list(found)}",
            hint="Name one by its id, or the newest of a model by latest:MODEL",
        )
    recent = store.search(limit=_RECENT)
    if not recent:
        raise RunNotFoundError(
            f"no run '{selector}' in {store.uri}: it has no finished run yet",
            hint="Make one: prunescope eval MODEL",
        )
    raise RunNotFoundError(
        f"no run '{selector}' in {store.uri}; the nearest: {_list(_nearest(selector, recent))}",
        hint=_LIST_HINT,
    )


def _nearest(selector: str, runs: list[StoredRun]) -> list[StoredRun]:
    """The runs whose name, model or id reads most like ``selector``, the likest first."""

    def likeness(run: StoredRun) -> float:
        names = (run.ref.run_name, run.model or "", run.ref.run_id[: len(selector)])
        return max(
            difflib.SequenceMatcher(None, selector.lower(), name.lower()).ratio() for name in names
        )

    return sorted(runs, key=likeness, reverse=True)[:_CANDIDATES]


def _list(runs: Iterable[StoredRun]) -> str:
    all_runs = list(runs)
    shown = [f"{run.ref.run_name} ({run.ref.run_id[:8]})" for run in all_runs[:_CANDIDATES]]
    return ", ".join(shown) + (", …" if len(all_runs) > _CANDIDATES else "")


def _finished(run: StoredRun) -> StoredRun:
    if run.status == "FINISHED":
        return run
    raise RunNotFoundError(
        f"expected a finished run, but {run.ref.run_name} ({run.ref.run_id[:8]}) is {run.status}",
        hint="Wait for it, or evaluate again",
    )
