"""The Hugging Face hub: whether it answers, where it caches, and what its errors mean."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunescope.errors import DataError

__all__ = [
    "PROBE_PATH",
    "PROBE_SECONDS",
    "cache_only",
    "check_hub",
    "datasets_cache",
    "describe_dataset",
    "first_line",
    "hub_error",
    "hub_or_cache",
    "is_offline",
]

PROBE_SECONDS = 5.0
PROBE_PATH = "/datasets/Salesforce/wikitext/resolve/main/README.md"
"""A route that ``datasets`` will need: a mirror's front page may answer when nothing else does."""

_WAYS_OUT = (
    "Set HF_ENDPOINT to a mirror, pass --data-dir with a folder made by `prunescope data pull`, "
    "or set HF_HUB_OFFLINE=1 to use what was downloaded before"
)


def check_hub() -> None:
    """Ask the hub for one answer before anything big is tried: libraries retry for minutes.

    Nothing is asked when HF_HUB_OFFLINE (or HF_DATASETS_OFFLINE) is set: then data that was
    downloaded before is used. Any answer counts, except that the server is failing.

    Raises:
        DataError: no answer within :data:`PROBE_SECONDS`, or an answer 5xx.
    """
    import requests
    from huggingface_hub import constants

    if is_offline():
        return
    endpoint = constants.ENDPOINT
    try:
        answer = requests.head(endpoint + PROBE_PATH, timeout=PROBE_SECONDS, allow_redirects=False)
    except requests.Timeout as error:
        raise DataError(
            f"the hub at {endpoint} did not answer within {PROBE_SECONDS:.0f} s", hint=_WAYS_OUT
        ) from error
    except requests.RequestException as error:
        raise DataError(f"cannot reach the hub at {endpoint}", hint=_WAYS_OUT) from error
    if answer.status_code >= 500:
        raise DataError(
            f"the hub at {endpoint} is failing (status {answer.status_code})", hint=_WAYS_OUT
        )


def is_offline() -> bool:
    """Whether the user told Hugging Face's libraries to use their caches only."""
    from huggingface_hub import constants

    offline = os.environ.get("HF_DATASETS_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    return bool(constants.HF_HUB_OFFLINE) or offline


@contextmanager
def hub_or_cache() -> Iterator[None]:
    """Use the hub where it answers, else only what was downloaded before.

    Raises:
        DataError: of :func:`check_hub`, where the block then fails for want of data.
    """
    try:
        check_hub()
    except DataError as error:
        unreachable = error
    else:
        yield
        return
    try:
        with cache_only():
            yield
    except DataError:
        raise unreachable from None


@contextmanager
def cache_only() -> Iterator[None]:
    """Let Hugging Face's libraries use only what was downloaded before."""
    from datasets import config
    from huggingface_hub import constants

    before = (config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE)
    config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


@contextmanager
def datasets_cache(cache_dir: str | None) -> Iterator[None]:
    """Let ``datasets`` cache in ``cache_dir``: lm-eval has no setting for it."""
    if cache_dir is None:
        yield
        return
    from datasets import config
    from huggingface_hub import constants

    before: tuple[Any, Any] = (config.HF_DATASETS_CACHE, constants.HF_HUB_CACHE)
    config.HF_DATASETS_CACHE = Path(cache_dir) / "datasets"
    constants.HF_HUB_CACHE = cache_dir
    try:
        yield
    finally:
        config.HF_DATASETS_CACHE, constants.HF_HUB_CACHE = before


def describe_dataset(path: str, config: str | None) -> tuple[str, str]:
    """Where rows came from, with the revision, and their licence, as far as the hub says.

    Args:
        path: id of the data set on the hub, or the name of a local format such as ``json``.
        config: name of the part of it that was read.
    """
    from huggingface_hub import HfApi

    source = f"hub: {path} {config}" if config else f"hub: {path}"
    if "/" not in path:
        return source.replace("hub", "files", 1), "not stated"
    failures: tuple[type[Exception], ...] = (*_transport_errors(), OSError, ValueError)
    try:
        info = HfApi().dataset_info(path, timeout=PROBE_SECONDS)
    except failures:
        return source, "not stated"  # the rows are there all the same
    said = info.card_data.get("license") if info.card_data else None
    license_name = ", ".join(said) if isinstance(said, list) else said
    return f"{source} @ {info.sha}", str(license_name or "not stated")


def hub_error(error: Exception, what: str) -> DataError | None:
    """What an error of the hub's libraries means for the user; None where it is another kind.

    Args:
        error: raised by ``datasets`` or ``huggingface_hub``.
        what: what was being fetched, for example ``task boolq``.
    """
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub import constants

    endpoint = constants.ENDPOINT
    status = _status(error)
    if status in (401, 403) or "gated dataset" in str(error).lower():
        return DataError(
            f"the hub at {endpoint} does not let you read the data of {what}",
            hint="Ask for access on the data set's page and set HF_TOKEN, or pass --data-dir",
        )
    uncached = isinstance(error, OSError | DatasetsError) or "find cache" in str(error)
    if is_offline() and uncached:
        return DataError(
            f"the data of {what} were not downloaded before, and HF_HUB_OFFLINE is set",
            hint="Unset HF_HUB_OFFLINE, or pass --data-dir with a folder made by "
            "`prunescope data pull`",
        )
    if isinstance(error, DatasetNotFoundError) or status == 404:
        return DataError(
            f"the hub at {endpoint} has no data for {what} that you may read",
            hint="Check HF_ENDPOINT (a mirror may lack data sets) and HF_TOKEN, or pass --data-dir",
        )
    network = (*_transport_errors(), ConnectionError, TimeoutError)
    lost = isinstance(error, FileNotFoundError) and "Hub" in str(error)
    if lost or any(isinstance(cause, network) for cause in _causes(error)):
        reason = "its answers failed" if lost else first_line(error)
        return DataError(
            f"cannot fetch the data of {what} from {endpoint}: {reason}", hint=_WAYS_OUT
        )
    return None


def _transport_errors() -> tuple[type[Exception], ...]:
    """What the HTTP client of huggingface_hub raises, whichever it is."""
    from huggingface_hub.errors import HfHubHTTPError

    bases: tuple[type, ...] = HfHubHTTPError.__bases__
    return (*(base for base in bases if issubclass(base, Exception) and base is not OSError),)


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its class where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _status(error: BaseException) -> int | None:
    """HTTP status of an error or of what caused it."""
    for cause in _causes(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what caused it, what caused that, and so on."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__
