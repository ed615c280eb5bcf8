"""Conditions that choose runs: ``method=wanda*``, ``sparsity>=50%``, ``acc.boolq>0.6``."""

from __future__ import annotations

import fnmatch
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from prunescope.compare.leaderboard import LeaderboardRun
from prunescope.errors import SettingError

__all__ = ["RunFilter", "matches", "parse_filters"]

_FILTER = re.compile(r"\s*(?P<name>[\w.\-/: ]+?)\s*(?P<op><=|>=|!=|==|=|<|>)\s*(?P<value>.*?)\s*")
_NUMBER = re.compile(r"(?P<number>[+\-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+\-]?\d+)?)(?P<percent>%?)")
_ORDER: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
}
_EXAMPLE = "Write it like method=wanda*, model!=opt-125m, sparsity>=50% or acc.boolq>0.6"


@dataclass(frozen=True)
class RunFilter:
    """One condition on a run."""

    name: str
    """``model``, ``method``, ``role``, ``name``, ``sparsity``, ``mean``, ``ppl``, ``ppl.CORPUS``,
    ``acc.TASK``, or a param or tag of the run."""
    op: str
    value: str
    """A text with ``*`` and ``?`` for what may be anything, or a number."""
    number: float | None
    """The value as a number, a percentage as a fraction."""


def parse_filters(texts: Iterable[str]) -> tuple[RunFilter, ...]:
    """Conditions, each as ``NAME=VALUE`` or with ``!=``, ``<``, ``<=``, ``>``, ``>=``.

    Raises:
        SettingError: a text is no condition, or orders by something that is no number.
    """
    return tuple(_parse(text) for text in texts)


def _parse(text: str) -> RunFilter:
    found = _FILTER.fullmatch(text)
    if found is None or not found["value"]:
        raise SettingError(f"expected a filter like NAME=VALUE, found '{text}'", hint=_EXAMPLE)
    as_number = _NUMBER.fullmatch(found["value"])
    number = None
    if as_number is not None:
        number = float(as_number["number"]) / (100 if as_number["percent"] else 1)
    if found["op"] in _ORDER and number is None:
        raise SettingError(
            f"the filter '{text}' compares with '{found['value']}', which is no number",
            hint=_EXAMPLE,
        )
    op = "=" if found["op"] == "==" else found["op"]
    return RunFilter(found["name"], op, found["value"], number)


def matches(
    run: LeaderboardRun,
    filters: Iterable[RunFilter],
    params: Mapping[str, str],
    tags: Mapping[str, str],
) -> bool:
    """Whether a run meets every condition. What a run does not have meets only ``!=``."""
    return all(_meets(_figure_or_text(run, f.name, params, tags), f) for f in filters)


def _figure_or_text(
    run: LeaderboardRun, name: str, params: Mapping[str, str], tags: Mapping[str, str]
) -> str | float | None:
    kind, _, rest = name.partition(".")
    if kind == "acc" and rest:
        return run.mean if rest == "mean" else run.accuracy.get(rest)
    if kind == "ppl":
        return run.perplexity.get(rest) if rest else next(iter(run.perplexity.values()), None)
    known: dict[str, str | float | None] = {
        "model": run.model,
        "method": run.method,
        "role": run.role,
        "name": run.name,
        "sparsity": run.sparsity,
        "mean": run.mean,
    }
    if name in known:
        return known[name]
    return next((found[name] for found in (params, tags) if name in found), None)


def _meets(found: str | float | None, wanted: RunFilter) -> bool:
    if wanted.op in _ORDER:
        number = _as_number(found)
        return (
            number is not None
            and wanted.number is not None
            and _ORDER[wanted.op](number, wanted.number)
        )
    return _equal(found, wanted) == (wanted.op == "=")


def _equal(found: str | float | None, wanted: RunFilter) -> bool:
    if found is None:
        return False
    if isinstance(found, str):
        return fnmatch.fnmatchcase(found, wanted.value)
    return wanted.number is not None and math.isclose(found, wanted.number, rel_tol=1e-9)


def _as_number(found: str | float | None) -> float | None:
    if not isinstance(found, str):
        return found
    try:
        return float(found)
    except ValueError:
        return None
