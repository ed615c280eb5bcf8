"""Addresses in the tracking server's pages, and what must not be written into them.

Every address is relative to the server (``#/experiments/…``), so that a link in a run's note
works under whatever name or port a reader reached the server. All carry
``workflowType=machine_learning``: a fresh browser opens MLflow's GenAI pages otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import quote, urlsplit, urlunsplit

from prunescope.redaction import redact

__all__ = [
    "compare_path",
    "experiment_path",
    "is_http",
    "redact",
    "redact_uri",
    "run_path",
    "ui_base",
]

_WORKFLOW = "workflowType=machine_learning"


def is_http(uri: str) -> bool:
    """Whether ``uri`` names a server and not a file or database."""
    return uri.lower().startswith(("http://", "https://"))


def redact_uri(uri: str) -> str:
    """A tracking URI that may be shown and stored: no credentials, no query, no slash at its end.

    Equal stores have equal redacted URIs, so it is also what uploads are remembered under.
    """
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    path = parts.path.rstrip("/") if is_http(uri) else parts.path
    if not parts.netloc and "://" in uri:
        # urlunsplit would drop a slash of sqlite:////absolute/path
        return redact(uri.partition("?")[0])
    return urlunsplit((parts.scheme, host, path, "", ""))


def ui_base(uri: str) -> str | None:
    """Where the server's pages begin, without a slash at the end; None without a server."""
    return redact_uri(uri) if is_http(uri) else None


def run_path(experiment_id: str, run_id: str) -> str:
    """The page of a run."""
    return f"#/experiments/{quote(experiment_id)}/runs/{quote(run_id)}?{_WORKFLOW}"


def compare_path(run_ids: Sequence[str], experiment_ids: Sequence[str]) -> str:
    """The page that shows runs side by side, in this order."""
    runs = quote(json.dumps(list(run_ids), separators=(",", ":")))
    experiments = quote(json.dumps(list(dict.fromkeys(experiment_ids)), separators=(",", ":")))
    return f"#/compare-runs?runs={runs}&experiments={experiments}&{_WORKFLOW}"


def experiment_path(experiment_id: str, *, view: str | None = None, charts: bool = False) -> str:
    """The table of an experiment's runs, or its charts, in the shared view named ``view``."""
    path = f"#/experiments/{quote(experiment_id)}/runs?{_WORKFLOW}"
    if charts:
        path += "&compareRunsMode=CHART"
    return f"{path}&viewStateShareKey={quote(view)}" if view else path
