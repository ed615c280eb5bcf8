"""What a store's refusal means, and what to do about it, in one line.

MLflow's client raises the status and the text of an answer, often as a sentence of its own. The
cause is elsewhere: in the credentials that were sent, in the server's list of its own names, in a
page that stands before the server.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from prunescope.errors import TrackingError
from prunescope.tracking.links import is_http, redact, redact_uri
from prunescope.tracking.store.patience import causes, timed_out

__all__ = ["Answer", "not_mlflow", "refused", "tracking_errors"]

_USER = "MLFLOW_TRACKING_USERNAME"
_PASSWORD = "MLFLOW_TRACKING_PASSWORD"  # noqa: S105 - the name of a setting
_TOKEN = "MLFLOW_TRACKING_TOKEN"  # noqa: S105
_CREDENTIALS_HINT = f"Set {_USER} and {_PASSWORD}, or {_TOKEN}"
_STATUS = (
    re.compile(r"failed with error code (?P<status>\d{3})\b"),
    re.compile(r"too many (?P<status>\d{3}) error responses"),
    re.compile(r"\b(?P<status>[45]\d\d) (?:Client|Server) Error"),
)
_BODY = re.compile(r"Response (?:body|text): '?(?P<body>.*)", re.DOTALL)
_CODES = {
    "UNAUTHENTICATED": 401,
    "CUSTOMER_UNAUTHORIZED": 401,
    "PERMISSION_DENIED": 403,
}
_PROXY_STATUSES = (502, 503, 504)


@dataclass(frozen=True)
class Answer:
    """What a server answered in place of what was asked for."""

    status: int
    body: str = ""


@contextlib.contextmanager
def tracking_errors(uri: str) -> Iterator[None]:
    """Tell what MLflow, its server or its database raise as one clear line.

    Args:
        uri: of the store; it may hold credentials.

    Raises:
        TrackingError: in place of any of them.
    """
    from alembic.util.exc import CommandError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, CommandError, OSError, ImportError) as error:
        # requests' own errors are OSErrors; a missing database driver is an ImportError.
        raise _told(error, uri) from error


def _told(error: BaseException, uri: str) -> TrackingError:
    shown = redact_uri(uri)
    text = str(error)
    if isinstance(error, ModuleNotFoundError):
        return TrackingError(
            f"the tracking store {shown} needs the Python package {error.name}",
            hint="Install it, or name a driver that you have, such as postgresql+psycopg2://",
        )
    answer = _answer(error) if is_http(uri) else None
    if answer is not None and (answer.status in (401, 403) or answer.status >= 500):
        return refused(uri, answer)
    if "out-of-date database schema" in text or "db upgrade" in text:
        return TrackingError(
            f"the database {shown} was made by another version of MLflow",
            hint=f"Back it up, then run: mlflow db upgrade {shown}",
        )
    if timed_out(error):
        limit = os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", "")
        return TrackingError(
            f"the tracking store {shown} did not answer in {limit} s",
            hint="Where it is only slow, set MLFLOW_HTTP_REQUEST_TIMEOUT to more seconds",
        )
    if _is_no_json(error) or (answer is not None and answer.status == 404):
        return not_mlflow(shown)
    said = next((cause for one in causes(error) if (cause := getattr(one, "orig", None))), error)
    unwritable = isinstance(said, sqlite3.OperationalError) and "locked" not in str(said)
    return TrackingError(
        f"the tracking store {shown} failed: {_first_line(said)}",
        hint="Check the folder's permissions and the free disk space" if unwritable else None,
    )


def _answer(error: BaseException) -> Answer | None:
    """The answer that an error tells of."""
    for one in causes(error):
        response: Any = getattr(one, "response", None)
        if getattr(response, "status_code", None):
            return Answer(int(response.status_code), str(response.text))
        text = str(one)
        if found := next((m for pattern in _STATUS if (m := pattern.search(text))), None):
            body = _BODY.search(text)
            return Answer(int(found["status"]), body["body"].rstrip("'") if body else "")
        if status := _CODES.get(str(getattr(one, "error_code", ""))):
            return Answer(status, text)
    return None


def _is_no_json(error: BaseException) -> bool:
    import requests

    return any(
        isinstance(one, requests.exceptions.JSONDecodeError) or "a valid JSON format" in str(one)
        for one in causes(error)
    )


def not_mlflow(shown: str, moved_to: str | None = None) -> TrackingError:
    """Something else than an MLflow server answers.

    Args:
        shown: the address, without credentials.
        moved_to: where the answer sends whoever asks.
    """
    if moved_to is not None:
        return TrackingError(
            f"expected an MLflow server at {shown}, found a redirection to {redact(moved_to)}",
            hint="Use the address to which it leads; a page to log in needs a token or a password "
            "that is sent along",
        )
    return TrackingError(
        f"expected an MLflow server at {shown}, found something else",
        hint="Check the address; a login page in front of the server also looks like this",
    )


# --- an answer with a status --------------------------------------------------------------------


def refused(uri: str, answer: Answer) -> TrackingError:
    """What an answer of status 401, 403 or 500 and above means.

    Args:
        uri: of the server; it may hold credentials.
        answer: what it said.
    """
    server = f"the tracking server {redact_uri(uri)}"
    sent = _credentials(uri)
    if answer.status >= 500:
        return _failing(server, answer.status, sent)
    if answer.status == 401:
        if sent.what is None:
            return TrackingError(f"{server} asks for credentials (status 401)", hint=sent.remedy)
        return TrackingError(f"{server} does not accept {sent.what} (status 401)", hint=sent.remedy)
    if "Invalid Host header" in answer.body:
        name = urlsplit(uri).netloc.rpartition("@")[2]
        return TrackingError(
            f"{server} does not know itself by the name {name} (status 403: Invalid Host header)",
            hint=f"Who runs it adds {name} to its --allowed-hosts; or use a name that is there",
        )
    if sent.what is None:
        return TrackingError(
            f"{server} does not allow this without credentials (status 403)", hint=sent.remedy
        )
    return TrackingError(
        f"{server} does not allow this with {sent.what} (status 403)",
        hint="Ask who runs it for permission to edit the experiment, or name one of your own "
        "with --experiment",
    )


def _failing(server: str, status: int, sent: _Credentials) -> TrackingError:
    hint = "See the server's log"
    if status in _PROXY_STATUSES:
        hint = "See the server's log, and that of the proxy before it"
    elif sent.is_token:
        # MLflow's own accounts (basic-auth) answer a token with 500.
        hint = f"See the server's log; one that has accounts takes {_USER} and {_PASSWORD}, "
        hint += f"not {_TOKEN}"
    return TrackingError(f"{server} answers with status {status}", hint=hint)


@dataclass(frozen=True)
class _Credentials:
    what: str | None
    """What was sent, without the secret; None where nothing was."""
    remedy: str
    is_token: bool = False


def _credentials(uri: str) -> _Credentials:
    """What MLflow's client sends to this address: its order of places is MLflow's and requests'."""
    from mlflow.utils.credentials import get_default_host_creds

    inside = urlsplit(uri)
    if inside.username:
        what = f"the user name '{inside.username}' and the password in its address"
        return _Credentials(what, "Check both, or leave them out and set " + _USER)
    known: Any = get_default_host_creds(uri)  # type: ignore[no-untyped-call]
    if known.username and known.password:
        places = f"{_USER} and {_PASSWORD}"
        if not (os.environ.get(_USER) and os.environ.get(_PASSWORD)):
            places += " or ~/.mlflow/credentials"
        return _Credentials(f"the user name '{known.username}' and its password", f"Check {places}")
    if known.token:
        return _Credentials(
            f"the token in {_TOKEN}", f"Check {_TOKEN}; it may have expired", is_token=True
        )
    if known.username or known.password:
        missing = _PASSWORD if known.username else _USER
        return _Credentials(None, f"Set {missing} too: nothing is sent without it")
    return _Credentials(None, _CREDENTIALS_HINT)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return redact(lines[0][:300].rstrip(". ")) if lines else type(error).__name__
