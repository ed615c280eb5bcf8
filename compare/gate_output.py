"""A gate's result for people and for continuous integration."""

from __future__ import annotations

import json
import math
import re
from typing import Any
from xml.etree import ElementTree

from prunescope.compare.gate import ConditionResult, GateResult
from prunescope.plain import printable, visible_json

__all__ = ["describe", "gate_json", "gate_junit"]


def gate_json(result: GateResult) -> str:
    """The result as JSON: ``status``, ``exit_code`` and each condition."""
    conditions = [
        {
            "condition": found.condition.text,
            "status": found.status,
            "observed": _number(found.observed),
            "low": _number(found.low),
            "high": _number(found.high),
            "bound": _number(found.condition.bound),
            "reason": found.reason,
        }
        for found in result.conditions
    ]
    report: dict[str, Any] = {
        "status": result.status,
        "exit_code": result.exit_code,
        "conditions": conditions,
    }
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    return visible_json(text) + "\n"


def gate_junit(result: GateResult, name: str = "prunescope.gate") -> str:
    """The result as JUnit XML: a test case a condition; what is inconclusive is an error."""
    statuses = [found.status for found in result.conditions]
    suite = ElementTree.Element(
        "testsuite",
        name=name,
        tests=str(len(statuses)),
        failures=str(statuses.count("fail")),
        errors=str(statuses.count("inconclusive")),
    )
    for found in result.conditions:
        case = ElementTree.SubElement(
            suite, "testcase", classname=name, name=_xml(found.condition.text)
        )
        if found.status != "pass":
            kind = "failure" if found.status == "fail" else "error"
            ElementTree.SubElement(case, kind, message=_xml(describe(found)))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def describe(found: ConditionResult) -> str:
    """A condition's result in a line: ``fail: acc.mean>=-1pt: -10.58 (-16.32 to -4.85)``."""
    condition = found.condition
    percent = condition.scale != "value" or condition.name.startswith("sparsity")
    parts = [f"{found.status}: {condition.text}"]
    if found.observed is not None:
        shown = _shown(found.observed, percent)
        if found.low is not None and found.high is not None:
            shown += f" ({_shown(found.low, percent)} to {_shown(found.high, percent)})"
        parts.append(shown)
    if found.reason is not None:
        parts.append(found.reason)
    return ": ".join(parts)


def _shown(value: float, percent: bool) -> str:
    return f"{100 * value:.2f}" if percent else f"{value:.4f}"


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _xml(text: str) -> str:
    """Text without the control characters that XML forbids."""
    return printable(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", " ", text))
