"""Conditions that a pruned model must meet, for continuous integration.

``ppl<=+5%, acc.mean>=-1pt, acc.boolq>=-2pt, sparsity>=50%, pattern=2:4``

A signed percentage is a change relative to the original (``+5%``), ``pt`` a change in percentage
points, and anything else the pruned model's own value (``12.5``, ``0.6``, ``50%``).
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prunescope.compare.delta import Comparison, Row
from prunescope.compare.paired_perplexity import Measured
from prunescope.compare.significance import Estimate
from prunescope.errors import SettingError

__all__ = [
    "Condition",
    "ConditionResult",
    "GateResult",
    "Status",
    "evaluate_gate",
    "parse_gate",
    "read_gate",
]

Status = Literal["pass", "fail", "inconclusive"]
Scale = Literal["value", "points", "relative"]

_CONDITION = re.compile(
    r"(?P<name>[A-Za-z_][\w.\-]*)\s*(?P<op><=|>=|==|=|<|>)\s*(?P<bound>[^\s,<>=]+)"
)
_BOUND = re.compile(r"(?P<sign>[+\-\u2212])?(?P<number>\d+(?:\.\d*)?|\.\d+)(?P<unit>%|pt)?")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
}
_EXAMPLE = "Write it like ppl<=+5%, acc.mean>=-1pt, acc.boolq>=-2pt, sparsity>=50%, pattern=2:4"
_Z = 1.959963984540054


@dataclass(frozen=True)
class Condition:
    """One thing that must hold."""

    text: str
    name: str
    """``ppl``, ``ppl.CORPUS``, ``acc.mean``, ``METRIC.TASK``, ``sparsity``, ``sparsity.total`` or
    ``pattern``."""
    op: str
    scale: Scale
    bound: float
    """A fraction for points, relative changes and percentages."""
    pattern: str | None = None
    """What ``pattern`` must be."""


@dataclass(frozen=True)
class ConditionResult:
    """A condition, what was found, and whether it holds."""

    condition: Condition
    status: Status
    observed: float | None = None
    low: float | None = None
    """95 % interval; None where the figure is exact or its error is not known."""
    high: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class GateResult:
    """All conditions together."""

    conditions: tuple[ConditionResult, ...]

    @property
    def status(self) -> Status:
        """``fail`` where one fails, else ``inconclusive`` where one is, else ``pass``."""
        found = {result.status for result in self.conditions}
        if "fail" in found:
            return "fail"
        return "inconclusive" if "inconclusive" in found else "pass"

    @property
    def exit_code(self) -> int:
        """0 pass, 1 fail, 3 inconclusive."""
        return {"pass": 0, "fail": 1, "inconclusive": 3}[self.status]


# --- reading ------------------------------------------------------------------------------------


def read_gate(text_or_file: str) -> tuple[Condition, ...]:
    """Conditions from a text, or from a file of that name (one a line, ``#`` begins a comment).

    Raises:
        SettingError: a condition cannot be understood, or there is none.
    """
    path = Path(text_or_file)
    if not re.search(r"[<>=]", text_or_file) or path.is_file():
        try:
            return parse_gate(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(
                f"the gate is neither conditions nor a readable file: '{text_or_file}'",
                hint=_EXAMPLE,
            ) from error
    return parse_gate(text_or_file)


def parse_gate(text: str) -> tuple[Condition, ...]:
    """Conditions separated by commas or newlines; ``#`` begins a comment.

    Raises:
        SettingError: a condition cannot be understood, or there is none.
    """
    lines = (line.partition("#")[0] for line in text.splitlines())
    parts = [part.strip() for line in lines for part in line.split(",") if part.strip()]
    if not parts:
        raise SettingError("the gate has no condition", hint=_EXAMPLE)
    return tuple(_condition(part) for part in parts)


def _condition(text: str) -> Condition:
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise SettingError(f"cannot understand the gate's condition '{text}'", hint=_EXAMPLE)
    name, op, bound = match["name"], match["op"], match["bound"]
    if name == "pattern":
        if op not in ("=", "==") or not re.fullmatch(r"\d+:\d+", bound):
            raise SettingError(f"expected pattern=N:M in the gate, found '{text}'", hint=_EXAMPLE)
        return Condition(text, name, "=", "value", math.nan, pattern=bound)
    found = _BOUND.fullmatch(bound)
    if found is None or op not in _COMPARE:
        raise SettingError(f"cannot understand the gate's condition '{text}'", hint=_EXAMPLE)
    if not (name in ("ppl", "sparsity", "sparsity.total") or re.match(r"\w[\w\-]*\..", name)):
        raise SettingError(
            f"the gate knows no figure '{name}'; expected ppl, acc.mean, acc.TASK, sparsity, ...",
            hint=_EXAMPLE,
        )
    return Condition(text, name, op, *_scaled(found))


def _scaled(found: re.Match[str]) -> tuple[Scale, float]:
    number = float(found["number"]) * (-1 if found["sign"] in ("-", "\u2212") else 1)
    if found["unit"] == "pt":
        return "points", number / 100
    if found["unit"] == "%":
        return ("relative" if found["sign"] else "value"), number / 100
    return "value", number


# --- judging ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Figure:
    value: float
    low: float | None = None
    high: float | None = None


def evaluate_gate(comparison: Comparison, conditions: tuple[Condition, ...]) -> GateResult:
    """Judge each condition by its figure's 95 % interval.

    A condition passes where the whole interval meets it, fails where the whole interval does not,
    and is inconclusive where the interval straddles the bound, or where the figure is missing or
    not comparable. A figure without an interval counts as exact. NaN and infinity fail.
    """
    return GateResult(tuple(_judge(comparison, condition) for condition in conditions))


def _judge(comparison: Comparison, condition: Condition) -> ConditionResult:
    if condition.name == "pattern":
        return _judge_pattern(comparison, condition)
    figure = _figure(comparison, condition)
    if isinstance(figure, str):
        return ConditionResult(condition, "inconclusive", reason=figure)
    if not math.isfinite(figure.value):
        return ConditionResult(condition, "fail", figure.value, reason=f"it is {figure.value}")
    holds = _COMPARE[condition.op]
    ends = [end for end in (figure.low, figure.high) if end is not None and math.isfinite(end)]
    met = {holds(end, condition.bound) for end in (ends or [figure.value])}
    status: Status = "inconclusive" if len(met) == 2 else ("pass" if met == {True} else "fail")
    reason = "the 95 % interval straddles the bound" if len(met) == 2 else None
    return ConditionResult(condition, status, figure.value, figure.low, figure.high, reason)


def _judge_pattern(comparison: Comparison, condition: Condition) -> ConditionResult:
    sparsity = comparison.pruned.sparsity
    if sparsity is None:
        return ConditionResult(condition, "inconclusive", reason="sparsity was not measured")
    found = sparsity.pattern
    if found == condition.pattern:
        return ConditionResult(condition, "pass")
    return ConditionResult(condition, "fail", reason=f"found {found or 'no pattern'}")


def _figure(comparison: Comparison, condition: Condition) -> _Figure | str:
    """The figure that a condition is about, or why there is none."""
    head, _, tail = condition.name.partition(".")
    if head == "sparsity":
        return _sparsity_figure(comparison, tail or "linear", condition)
    if head == "ppl":
        rows = [row for row in comparison.perplexity if not tail or row.key == tail]
        if not rows:
            return f"no perplexity{f' of {tail}' if tail else ''} was evaluated"
        return _perplexity_figure(comparison, rows[0], condition)
    if condition.name == "acc.mean":
        return _mean_figure(comparison, condition)
    row = _find(comparison, head, tail)
    return row if isinstance(row, str) else _task_figure(comparison, row, condition)


def _find(comparison: Comparison, metric: str, task: str) -> Row | str:
    rows = (*comparison.tasks, *comparison.groups, *comparison.further)
    for row in rows:
        label = row.label.partition(" (")[0]
        if label == task and metric in (row.key, row.metric.name):
            return row
    known = ", ".join(f"{row.key}.{row.label}" for row in rows) or "none"
    return f"no {metric} of {task} was evaluated; there is {known}"


def _sparsity_figure(comparison: Comparison, part: str, condition: Condition) -> _Figure | str:
    row = next((row for row in comparison.sparsity if row.key == part), None)
    if row is None:
        return "sparsity was not measured"
    return _exact(row, condition)


def _exact(row: Row, condition: Condition) -> _Figure | str:
    if row.mismatch and condition.scale != "value":
        return row.reason or "not comparable"
    found = {"value": row.pruned, "points": row.difference, "relative": row.relative}[
        condition.scale
    ]
    if found is not None:
        return _Figure(found)
    if condition.scale != "value" and row.pruned is not None and not math.isfinite(row.pruned):
        return _Figure(row.pruned)
    return row.reason or f"{row.label} has no such change"


def _perplexity_figure(comparison: Comparison, row: Row, condition: Condition) -> _Figure | str:
    exact = _exact(row, condition)
    if isinstance(exact, str) or not math.isfinite(exact.value):
        return exact
    if condition.scale == "points":
        return "a perplexity has no points; write a percentage, as in ppl<=+5%"
    if condition.scale == "value":
        stderr = comparison.pruned.perplexity[row.key].stderr_nll
        if stderr is None:
            return exact
        factor = math.exp(_Z * stderr)
        return _Figure(exact.value, exact.value / factor, exact.value * factor)
    tokens = comparison.analysis.tokens if comparison.analysis is not None else ()
    ratio = next((found.ratio for found in tokens if found.corpus == row.key), None)
    if ratio is None:
        return exact
    return _shifted(exact.value, ratio, -1.0)


def _shifted(value: float, measured: Measured, by: float) -> _Figure:
    return _Figure(value, measured.low + by, measured.high + by)


def _mean_figure(comparison: Comparison, condition: Condition) -> _Figure | str:
    row = comparison.average
    suite = comparison.analysis.suite if comparison.analysis is not None else None
    whole = suite is not None and len(suite.tasks) == comparison.averaged
    estimate = suite.mean if suite is not None and whole else None
    return _accuracy_figure(row, estimate, condition)


def _task_figure(comparison: Comparison, row: Row, condition: Condition) -> _Figure | str:
    suite = comparison.analysis.suite if comparison.analysis is not None else None
    tasks = suite.tasks if suite is not None and row in comparison.tasks else ()
    estimate = next((task.estimate for task in tasks if task.task == row.label), None)
    return _accuracy_figure(row, estimate, condition)


def _accuracy_figure(row: Row, estimate: Estimate | None, condition: Condition) -> _Figure | str:
    exact = _exact(row, condition)
    if isinstance(exact, str) or not math.isfinite(exact.value):
        return exact
    if condition.scale == "value":
        stderr = row.pruned_stderr
        if stderr is None or not math.isfinite(stderr):
            return exact
        return _Figure(exact.value, exact.value - _Z * stderr, exact.value + _Z * stderr)
    if estimate is None:
        return exact
    # A relative change is the difference over the original, which is taken as known.
    scale = 1.0 if condition.scale == "points" or not row.original else row.original
    ends = sorted((estimate.low / scale, estimate.high / scale))
    return _Figure(exact.value, ends[0], ends[1])
