"""The published JSON Schema of ``comparison_*.json``."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from prunescope.compare.analysis import TaskGroups
from prunescope.compare.divergence import ChoiceDivergence, Collapse, DocumentLoss
from prunescope.compare.export import COMPARISON_SCHEMA_VERSION
from prunescope.compare.paired_perplexity import TokenComparison
from prunescope.compare.significance import Estimate
from prunescope.compare.verdict import TaskStatistics, Verdict
from prunescope.records import RunRef

__all__ = [
    "Average",
    "LegacySide",
    "LegacyTask",
    "MaskGroup",
    "Masks",
    "Part",
    "Report",
    "Row",
    "Run",
    "Runs",
    "Setting",
    "Statistics",
    "Suite",
    "comparison_schema",
    "comparison_schema_text",
]


class Part(BaseModel):
    """A part of the document; it refuses fields that are not named."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class LegacyTask(Part):
    """What the older script wrote of a task."""

    accuracy: float | None
    """Primary metric."""
    full_results: dict[str, Any]
    """lm-eval's own dictionary."""


class LegacySide(Part):
    """What the older script wrote of a model."""

    model_name: str
    model_path: str
    sparsity: float | None
    """Zeros among the linear layers of the decoder blocks, a fraction."""
    wikitext_ppl: float | None
    eval_time_seconds: float
    tasks: dict[str, LegacyTask]


class Row(Part):
    """One figure of both evaluations."""

    label: str
    metric: str
    key: str
    original: float | None
    pruned: float | None
    difference: float | None
    relative: float | None
    better: bool | None
    original_stderr: float | None
    pruned_stderr: float | None
    mismatch: bool
    reason: str | None


class Average(Row):
    """The plain mean of the primary metric."""

    tasks: int
    """Over how many tasks it was taken."""


class Setting(Part):
    """A setting in which the two evaluations differ."""

    setting: str
    original: str
    pruned: str


class Run(Part):
    """Identity, model, protocol and provenance of one side; the parts that ``record.json`` has
    too are as they are there."""

    record_id: str
    record_key: str | None
    run: RunRef | None
    started_at: datetime
    labels: dict[str, Any]
    model: dict[str, Any]
    protocol: dict[str, Any]
    perplexity: dict[str, dict[str, Any]]
    divergence: dict[str, dict[str, Any]]
    sparsity: dict[str, Any] | None
    broken: list[dict[str, Any]]
    alarms: list[dict[str, Any]]
    provenance: dict[str, Any]


class Runs(Part):
    """Both sides."""

    original: Run
    pruned: Run


class MaskGroup(Part):
    """Linear layers of one kind."""

    tensors: int
    changed: int
    original_zeros: int
    pruned_zeros: int
    parameters: int
    returned_at_least: int


class Masks(Part):
    """Whether pruned weights came back."""

    same_mask: bool | None
    kept: bool | None
    groups: dict[str, MaskGroup]
    other_shapes: list[str]
    only_original: list[str]
    only_pruned: list[str]


class Suite(Part):
    """All comparable tasks together."""

    tasks: list[TaskStatistics]
    margin: float
    mean: Estimate
    lost: int
    gained: int
    p_pooled: float | None
    p_fisher: float
    p_same: float
    p_value: float | None = None
    verdict: Verdict


class Statistics(Part):
    """What the documents and tokens of two evaluations tell."""

    suite: Suite | None
    tokens: list[TokenComparison]
    divergences: list[ChoiceDivergence]
    margins: list[TaskGroups]
    fields_: list[TaskGroups] = Field(alias="fields")
    collapses: list[Collapse]
    worst: list[DocumentLoss]
    masks: Masks | None
    noise: Suite | None
    notes: list[str]


class Report(Part):
    """The whole document."""

    original: LegacySide
    pruned: LegacySide
    timestamp: str = Field(pattern=r"^\d{8}_\d{6}$")
    schema_version: Literal[1]
    created_at: datetime
    headline: str
    runs: Runs
    sparsity: list[Row]
    perplexity: list[Row]
    tasks: list[Row]
    average: Average
    groups: list[Row]
    further_metrics: list[Row]
    protocol_differences: list[Setting]
    statistics: Statistics | None
    notes: list[str]


def comparison_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of version :data:`COMPARISON_SCHEMA_VERSION` of the report.

    A number that is NaN or infinite is one of the strings ``NaN``, ``Infinity``, ``-Infinity``.
    """
    raw = Report.model_json_schema(mode="serialization")
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"prunescope comparison, version {COMPARISON_SCHEMA_VERSION}",
    }
    schema: dict[str, Any] = _readable({**raw, **head})
    return schema


def comparison_schema_text() -> str:
    """:func:`comparison_schema` as the file that is published."""
    return json.dumps(comparison_schema(), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _readable(value: Any) -> Any:
    """Numbers may be named constants; titles that only repeat a field's name are left out."""
    if isinstance(value, list):
        return [_readable(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("type") == "number":
        rest = {k: _readable(v) for k, v in value.items() if k not in ("type", "title", "default")}
        return {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}], **rest}
    repeated = "title" in value and "$schema" not in value and isinstance(value["title"], str)
    return {k: _readable(v) for k, v in value.items() if not (k == "title" and repeated)}
