"""Ask a store again where that may help, and soon give up where it does not.

MLflow's client has one number of attempts for everything: with it a server that says nothing costs
the time limit three times over, request by request. What is refused, cut off or answered with a
server error is over at once and worth another attempt; a time limit that has passed is not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, Generic, ParamSpec, TypeVar, cast

__all__ = ["ATTEMPTS", "causes", "patient", "patiently", "timed_out"]

ATTEMPTS = 3
_WAIT_SECONDS = 0.5
"""Before the second attempt; each further wait is twice as long."""
_PASSING_CODES = ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")

T = TypeVar("T")
P = ParamSpec("P")


def patient(target: T) -> T:
    """The same object, whose methods are called up to :data:`ATTEMPTS` times."""
    return cast("T", _Patient(target))


def patiently(call: Callable[P, T]) -> Callable[P, T]:
    """The same function, called up to :data:`ATTEMPTS` times.

    Each call has to be one that may be made twice: what it did may be done although its answer
    was lost.
    """

    @functools.wraps(call)
    def several(*args: P.args, **kwargs: P.kwargs) -> T:
        from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

        attempts = Retrying(
            retry=retry_if_exception(_may_pass),
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential(multiplier=_WAIT_SECONDS),
            reraise=True,
        )
        return attempts(call, *args, **kwargs)

    return several


class _Patient(Generic[T]):
    """Stands before an object of MLflow's."""

    def __init__(self, target: T) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        return patiently(found) if callable(found) else found


def timed_out(error: BaseException) -> bool:
    """Whether a time limit had passed without an answer."""
    import requests

    return any(
        isinstance(one, requests.Timeout) or "timed out" in str(one) for one in causes(error)
    )


def _may_pass(error: BaseException) -> bool:
    import requests
    from sqlalchemy.exc import DBAPIError

    if timed_out(error):
        return False
    passing = (
        requests.ConnectionError,
        requests.exceptions.ChunkedEncodingError,
        requests.exceptions.ContentDecodingError,
        requests.exceptions.RetryError,
        # A database that is locked, or a row that another process was quicker to insert.
        DBAPIError,
    )
    return any(
        isinstance(one, passing) or getattr(one, "error_code", "") in _PASSING_CODES
        for one in causes(error)
    )


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from, one after the other."""
    seen: set[int] = set()
    step: BaseException | None = error
    while step is not None and id(step) not in seen:
        yield step
        seen.add(id(step))
        step = step.__cause__ or step.__context__
