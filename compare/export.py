"""A comparison as JSON: the older script's shape first, then everything new."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import Any

from prunescope.compare.delta import Comparison, Row, ordered_tasks
from prunescope.compare.drift import MaskDrift
from prunescope.compare.markdown import headline
from prunescope.plain import visible_json
from prunescope.records import EvalRecord, RunRef

__all__ = ["COMPARISON_SCHEMA_VERSION", "json_report", "json_text", "timestamp"]

COMPARISON_SCHEMA_VERSION = 1
"""The version of the shape of ``comparison_*.json``."""


def json_report(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON values.

    ``original`` and ``pruned`` have exactly the older script's keys (``sparsity`` is the linear
    layers' fraction, ``wikitext_ppl`` the perplexity of WikiText-2, ``accuracy`` the primary
    metric), ``timestamp`` its form. NaN and infinity are the strings ``"NaN"``, ``"Infinity"``
    and ``"-Infinity"``, what is missing is null.
    """
    report = {
        "original": _legacy(comparison.original),
        "pruned": _legacy(comparison.pruned),
        "timestamp": timestamp(comparison),
        "schema_version": COMPARISON_SCHEMA_VERSION,
        "created_at": comparison.created_at.isoformat(),
        "headline": headline(comparison),
        "runs": {
            "original": _run(comparison.original, comparison.original_run),
            "pruned": _run(comparison.pruned, comparison.pruned_run),
        },
        "sparsity": [_row(row) for row in comparison.sparsity],
        "perplexity": [_row(row) for row in comparison.perplexity],
        "tasks": [_row(row) for row in comparison.tasks],
        "average": {**_row(comparison.average), "tasks": comparison.averaged},
        "groups": [_row(row) for row in comparison.groups],
        "further_metrics": [_row(row) for row in comparison.further],
        "protocol_differences": [
            {"setting": d.what, "original": d.original, "pruned": d.pruned}
            for d in comparison.protocol_differences
        ],
        "statistics": _statistics(comparison),
        "notes": list(comparison.notes),
    }
    safe: dict[str, Any] = _safe(report)
    return safe


def json_text(comparison: Comparison) -> str:
    """:func:`json_report` as standard JSON text, indented by two."""
    text = json.dumps(json_report(comparison), indent=2, ensure_ascii=False, allow_nan=False)
    return visible_json(text) + "\n"


def timestamp(comparison: Comparison) -> str:
    """``YYYYMMDD_HHMMSS``, in the zone of the comparison's time."""
    return comparison.created_at.strftime("%Y%m%d_%H%M%S")


def _statistics(comparison: Comparison) -> dict[str, Any] | None:
    """The analysis field by field, as its data classes name them; null where there is none."""
    if comparison.analysis is None:
        return None
    analysis = comparison.analysis
    found = asdict(replace(analysis, masks=None))
    if analysis.masks is not None:
        found["masks"] = _masks(analysis.masks)
    if analysis.suite is not None:
        found["suite"]["p_value"] = analysis.suite.mean.p_value
    return found


def _masks(drift: MaskDrift) -> dict[str, Any]:
    groups = {"all": drift.total, **drift.kinds}
    return {
        "same_mask": drift.same_mask,
        "kept": drift.kept,
        "groups": {
            name: {
                "tensors": count.tensors,
                "changed": count.changed,
                "original_zeros": count.first.zeros,
                "pruned_zeros": count.second.zeros,
                "parameters": count.first.parameters,
                "returned_at_least": count.returned_at_least,
            }
            for name, count in groups.items()
        },
        "other_shapes": [pair.first.name for pair in drift.shapes],
        "only_original": list(drift.only_first),
        "only_pruned": list(drift.only_second),
    }


def _legacy(record: EvalRecord) -> dict[str, Any]:
    wikitext = record.perplexity.get("wikitext2")
    return {
        "model_name": record.model.name,
        "model_path": record.model.path or record.model.hub_id or record.model.requested,
        "sparsity": record.sparsity.linear.fraction if record.sparsity else None,
        "wikitext_ppl": wikitext.perplexity if wikitext else None,
        "eval_time_seconds": sum(record.provenance.timings.values()),
        "tasks": {
            name: {
                "accuracy": record.tasks[name].accuracy,
                "full_results": record.tasks[name].full_results,
            }
            for name in ordered_tasks(record)
        },
    }


def _run(record: EvalRecord, run: RunRef | None) -> dict[str, Any]:
    """Identity, model, protocol and provenance of one side."""
    return {
        "record_id": record.record_id,
        "record_key": record.record_key,
        "run": run.model_dump(mode="json") if run else None,
        "started_at": record.started_at.isoformat(),
        "labels": record.labels.model_dump(mode="json"),
        "model": record.model.model_dump(mode="json"),
        "protocol": record.protocol.model_dump(mode="json"),
        "perplexity": {
            corpus: found.model_dump(mode="json") for corpus, found in record.perplexity.items()
        },
        "divergence": {
            corpus: found.model_dump(mode="json") for corpus, found in record.divergence.items()
        },
        "sparsity": record.sparsity.model_dump(mode="json", exclude={"tensors"})
        if record.sparsity
        else None,
        "broken": [broken.model_dump(mode="json") for broken in record.broken],
        "alarms": [alarm.model_dump(mode="json") for alarm in record.alarms],
        "provenance": record.provenance.model_dump(mode="json"),
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "label": row.label,
        "metric": row.metric.name,
        "key": row.key,
        "original": row.original,
        "pruned": row.pruned,
        "difference": row.difference,
        "relative": row.relative,
        "better": row.better,
        "original_stderr": row.original_stderr,
        "pruned_stderr": row.pruned_stderr,
        "mismatch": row.mismatch,
        "reason": row.reason,
    }


def _safe(value: Any) -> Any:
    """Replace what standard JSON has no number for."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {str(key): _safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_safe(item) for item in value]
    return value
