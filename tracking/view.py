"""The preset view of an experiment: columns, order and charts that MLflow's pages open with.

MLflow keeps shared views as tags of the experiment. Their form is not documented (these are the
keys of ``ExperimentPageUIState`` and ``runs-charts.types.ts`` of MLflow 3): a server that does
not know it ignores the tag, and nothing depends on it.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

from prunescope.records import DEFAULT_TASKS

__all__ = ["VIEW_ID", "VIEW_TAG", "baseline_in", "experiment_tags", "shared_view"]

VIEW_ID = "prunescope"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_ID}"

_PREFIX = "deflate;"
_MAX_VALUE = 20_000
_CREATED_MS = 1_767_225_600_000
"""A fixed time, so that equal views are equal tags and need no second request."""

_CORPORA = ("wikitext2", "c4", "boolq-passages")


def experiment_tags(baseline_run_id: str | None = None) -> dict[str, str]:
    """The tags of an experiment of evaluations.

    Args:
        baseline_run_id: the run that the chart of differences measures against.
    """
    found = {
        # Opens the pages for training runs; MLflow otherwise guesses, and asks.
        "mlflow.experimentKind": "custom_model_development",
    }
    value = shared_view(baseline_run_id)
    if len(value) < _MAX_VALUE:
        found[VIEW_TAG] = value
    return found


def shared_view(baseline_run_id: str | None = None) -> str:
    """The value of the tag :data:`VIEW_TAG`."""
    text = json.dumps(_state(baseline_run_id or ""), separators=(",", ":"))
    packed = base64.b64encode(zlib.compress(text.encode(), 9)).decode()
    envelope = {
        "name": "prunescope",
        "createdAt": _CREATED_MS,
        "updatedAt": _CREATED_MS,
        "state": _PREFIX + packed,
    }
    return json.dumps(envelope, separators=(",", ":"))


def baseline_in(value: str | None) -> str | None:
    """The baseline of a view made by :func:`shared_view`, None where there is none."""
    try:
        state = json.loads(value or "")["state"].removeprefix(_PREFIX)
        charts = json.loads(zlib.decompress(base64.b64decode(state)))["compareRunCharts"]
        found = next(chart["baselineColumnUuid"] for chart in charts if "compareGroups" in chart)
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration, zlib.error):
        return None
    return found if isinstance(found, str) and found else None


def _state(baseline_run_id: str) -> dict[str, Any]:
    columns = [f"tags.`prunescope.{name}`" for name in ("model", "role", "method")]
    columns += [f"metrics.`{name}`" for name in _column_metrics()]
    return {
        "selectedColumns": columns,
        "columnOrder": [],
        "columnWidths": {},
        "orderByKey": "metrics.`sparsity/linear`",
        "orderByAsc": True,
        "runsHiddenMode": "FIRST_20_RUNS",
        "hideEmptyCharts": True,
        "isAccordionReordered": True,
        "compareRunCharts": _charts(baseline_run_id),
        "compareRunSections": _sections(),
    }


def _column_metrics() -> list[str]:
    return [
        "sparsity/linear",
        *(f"ppl/{corpus}" for corpus in _CORPORA),
        "pct/mean",
        "delta/mean_points",
        *(f"pct/{task}" for task in DEFAULT_TASKS),
    ]


# --- charts -------------------------------------------------------------------------------------

_OPEN_SECTIONS = ("Overview", "pct", "ppl", "delta", "layers", "sparsity")
_CLOSED_SECTIONS = ("acc", "acc_norm", "stderr/acc", "stderr/acc_norm", "time", "")


def _sections() -> list[dict[str, Any]]:
    """Named as MLflow names them (what is before a metric's last slash), so that charts of
    metrics that this view does not know fall into place."""
    return [
        {
            "uuid": _section_id(name),
            "name": name,
            "display": name in _OPEN_SECTIONS,
            "isReordered": False,
            "deleted": False,
            "isGenerated": True,
        }
        for name in (*_OPEN_SECTIONS, *_CLOSED_SECTIONS)
    ]


def _section_id(name: str) -> str:
    return f"prunescope-section-{name.replace('/', '-') or 'rest'}"


def _charts(baseline_run_id: str) -> list[dict[str, Any]]:
    difference = _chart(
        "DIFFERENCE",
        "Overview",
        "difference",
        compareGroups=["Model metrics", "Parameters"],
        chartName="Differences from the baseline",
        showChangeFromBaseline=True,
        showDifferencesOnly=True,
        baselineColumnUuid=baseline_run_id,
    )
    trade_offs = [_scatter("Mean accuracy (%) over sparsity", "pct/mean")]
    trade_offs += [_scatter(f"Perplexity ({c}) over sparsity", f"ppl/{c}") for c in _CORPORA]
    layers = _chart("LINE", "layers", "layers/sparsity", metricKey="layers/sparsity")
    layers |= {
        "selectedMetricKeys": ["layers/sparsity"],
        "displayName": "Sparsity of each layer",
        "xAxisKey": "step",
        "scaleType": "linear",
        "xAxisScaleType": "linear",
        "lineSmoothness": 0,
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": True,
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "range": {},
    }
    bars = ["pct/mean", *(f"pct/{task}" for task in DEFAULT_TASKS)]
    bars += [f"ppl/{corpus}" for corpus in _CORPORA]
    bars += ["delta/mean_points", "delta/ppl_ratio", "sparsity/linear", "sparsity/total"]
    return [difference, *trade_offs, *(_bar(name) for name in bars), layers]


def _chart(kind: str, section: str, name: str, **more: Any) -> dict[str, Any]:
    return {
        "uuid": f"prunescope-chart-{kind.lower()}-{name.replace('/', '-')}",
        "type": kind,
        "runsCountToCompare": 20,
        "metricSectionId": _section_id(section),
        "deleted": False,
        "isGenerated": False,
        **more,
    }


def _bar(metric: str) -> dict[str, Any]:
    return _chart("BAR", metric.rpartition("/")[0], metric, metricKey=metric)


def _scatter(title: str, metric: str) -> dict[str, Any]:
    return _chart(
        "SCATTER",
        "Overview",
        metric,
        displayName=title,
        xaxis={"key": "sparsity/linear", "type": "METRIC"},
        yaxis={"key": metric, "type": "METRIC"},
    )
