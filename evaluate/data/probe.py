"""What answers at the hub's address: a hub, a mirror, something else, or nobody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prunescope.evaluate.data.hub import PROBE_PATH, PROBE_SECONDS, is_offline
from prunescope.evaluate.loading.address import hub_endpoint

__all__ = ["HubAnswer", "probe_hub"]

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
