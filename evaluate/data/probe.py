"""What answers at the hub's address (a hub, a mirror, something else, nobody), and what does not
need it because it was downloaded before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prunescope.evaluate.data.corpora import CORPORA
from prunescope.evaluate.data.hub import PROBE_PATH, PROBE_SECONDS, cache_only, is_offline
from prunescope.evaluate.loading.address import hub_endpoint

__all__ = ["HubAnswer", "cached_rows", "probe_hub"]

_MARKS = ("x-repo-commit", "x-error-code", "x-linked-etag")
"""Headers that a hub, or a mirror that passes its answers on, gives and a login page does not."""


@dataclass(frozen=True)
class HubAnswer:
    """How the hub answered one request."""

    endpoint: str
    state: Literal["hub", "offline", "failing", "something else", "unreachable"]
    detail: str = ""
    """The status, or why there was no answer."""


def probe_hub() -> HubAnswer:
    """Ask the hub for the head of one small file that the tasks' data need, once.

    Nothing is asked where HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set.
    """
    import requests

    endpoint = hub_endpoint()
    if is_offline():
        return HubAnswer(endpoint, "offline")
    try:
        answer = requests.head(endpoint + PROBE_PATH, timeout=PROBE_SECONDS, allow_redirects=False)
    except requests.Timeout:
        return HubAnswer(endpoint, "unreachable", f"no answer within {PROBE_SECONDS:.0f} s")
    except requests.RequestException as error:
        return HubAnswer(endpoint, "unreachable", _reason(error))
    status = f"status {answer.status_code}"
    if answer.status_code >= 500:
        return HubAnswer(endpoint, "failing", status)
    if any(mark in answer.headers for mark in _MARKS) or 300 <= answer.status_code < 400:
        return HubAnswer(endpoint, "hub", status)
    return HubAnswer(endpoint, "something else", status)


def _reason(error: Exception) -> str:
    text = str(error).lower()
    known = {
        "failed to resolve": "the host name is not known",
        "name or service": "the host name is not known",
        "certificate": "its certificate cannot be verified",
        "proxy": "the proxy does not let it through",
        "refused": "connection refused",
    }
    return next((meaning for mark, meaning in known.items() if mark in text), type(error).__name__)


def cached_rows(names: Sequence[str]) -> tuple[str, ...]:
    """Those of the tasks and corpora whose rows were downloaded before; nothing is downloaded.

    Args:
        names: lm-eval's tasks, or of :data:`~prunescope.evaluate.data.corpora.CORPORA`.

    Raises:
        TaskError: lm-eval is not installed.
    """
    import datasets

    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity_error()  # it warns of using its cache
    try:
        with cache_only():
            return tuple(
                name for name, path, config in _data_sets(names) if _is_cached(path, config)
            )
    finally:
        datasets.logging.set_verbosity(verbosity)


def _data_sets(names: Sequence[str]) -> Iterator[tuple[str, str, str | None]]:
    """For each name the data set on the hub, and the part of it that is read."""
    from prunescope.evaluate.task_files import builtin_files, read_task_file

    tasks = [name for name in names if name not in CORPORA]
    files = builtin_files(tasks)
    for name in names:
        settings = read_task_file(files[name]) if name in files else {}
        hub = CORPORA[name].hub if name in CORPORA else {}
        if path := hub.get("path") or settings.get("dataset_path"):
            yield name, str(path), hub.get("name") or settings.get("dataset_name")


def _is_cached(path: str, config: str | None) -> bool:
    from datasets import load_dataset_builder

    try:
        return Path(load_dataset_builder(path, config).cache_dir).is_dir()
    except (OSError, ValueError):
        return False  # offline, and not there
