"""The preset view of an experiment: columns, order and charts that MLflow's pages open with.

MLflow keeps shared views as tags of the experiment. Their form is not documented (these are the
keys of ``ExperimentPageUIState`` and ``runs-charts.types.ts`` of MLflow 3): a server that does
not know it ignores the tag, and nothing depends on it.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from prunescope.records import DEFAULT_TASKS

__all__ = ["VIEW_ID", "VIEW_TAG", "View", "read_view", "view_value"]

VIEW_ID = "prunescope"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_ID}"

_PREFIX = "deflate;"
_MAX_VALUE = 20_000
_CREATED_MS = 1_767_225_600_000
"""A fixed time, so that equal views are equal tags and need no second request."""

_MAX_COLUMNS = 20
_WIDTHS = {
    "attributes.`Run Name`": 250,
    "runDateAndNestInfo": 150,
    "tags.`prunescope.role`": 130,
    "tags.`prunescope.method`": 150,
    "tags.`prunescope.model`": 180,
    "metrics.`delta/mean_points`": 145,
    "metrics.`sparsity/linear`": 120,
}
"""Pixels."""
_NUMBER, _HEADING, _LETTER = 85, 28, 7
"""Width of a column of numbers, what its heading needs beside its letters, and a letter, pixels."""


@dataclass(frozen=True)
class View:
    """What the preset view of an experiment shows."""

    baseline_run_id: str | None = None
    """The run that the chart of differences measures against."""
    perplexities: tuple[str, ...] = ()
    """Metrics ``ppl/<corpus>``."""
    percentages: tuple[str, ...] = field(default=tuple(f"pct/{task}" for task in DEFAULT_TASKS))
    """Metrics ``pct/<task>``."""

    def extended(self, metrics: Iterable[str], baseline_run_id: str | None) -> View:
        """The view that also shows ``metrics``, and another baseline where one is given."""
        ppl, pct = list(self.perplexities), list(self.percentages)
        for name in metrics:
            section = ppl if name.startswith("ppl/") else pct if name.startswith("pct/") else None
            if section is not None and name not in section and name != "pct/mean":
                section.append(name)
        return View(
            baseline_run_id or self.baseline_run_id,
            tuple(ppl[:_MAX_COLUMNS]),
            tuple(pct[:_MAX_COLUMNS]),
        )


def view_value(view: View) -> str | None:
    """The value of the tag :data:`VIEW_TAG`; None where it would be too long."""
    text = json.dumps(_state(view), separators=(",", ":"))
    packed = base64.b64encode(zlib.compress(text.encode(), 9)).decode()
    envelope = {
        "name": "prunescope",
        "createdAt": _CREATED_MS,
        "updatedAt": _CREATED_MS,
        "state": _PREFIX + packed,
    }
    value = json.dumps(envelope, separators=(",", ":"))
    return value if len(value) < _MAX_VALUE else None


def read_view(value: str | None) -> View:
    """The view that :func:`view_value` made; the default one where it cannot be read."""
    try:
        state = json.loads(value or "")["state"].removeprefix(_PREFIX)
        found = json.loads(zlib.decompress(base64.b64decode(state)))
        charts = found["compareRunCharts"]
        baseline = next(chart["baselineColumnUuid"] for chart in charts if "compareGroups" in chart)
        columns = [name.partition("`")[2].rstrip("`") for name in found["selectedColumns"]]
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration, zlib.error):
        return View()
    return View().extended(columns, baseline if isinstance(baseline, str) else None)


def _state(view: View) -> dict[str, Any]:
    metrics = ["sparsity/linear", *view.perplexities, "pct/mean", "delta/mean_points"]
    metrics += view.percentages
    tags = [f"tags.`prunescope.{name}`" for name in ("role", "method")]
    columns = [*tags, *(f"metrics.`{name}`" for name in metrics), "tags.`prunescope.model`"]
    order = ["attributes.`Run Name`", "runDateAndNestInfo", *columns]
    return {
        "selectedColumns": columns,
        "columnOrder": order,
        "columnWidths": {name: _width(name) for name in order},
        "orderByKey": "metrics.`sparsity/linear`",
        "orderByAsc": True,
        "runsHiddenMode": "FIRST_20_RUNS",
        "hideEmptyCharts": True,
        "isAccordionReordered": True,
        "compareRunCharts": _charts(view),
        "compareRunSections": _sections(view),
    }


def _width(column: str) -> int:
    """As narrow as shows the heading: what is to the right is seen only by scrolling."""
    heading = column.partition("`")[2].rstrip("`")
    return _WIDTHS.get(column, max(_NUMBER, _HEADING + _LETTER * len(heading)))


# --- charts -------------------------------------------------------------------------------------

_OVERVIEW, _DIFFERENCES = "Overview", "Differences from the baseline"
_SECTIONS: dict[str, dict[str, Any]] = {
    _OVERVIEW: {"display": True, "columns": 2, "cardHeight": 380},
    _DIFFERENCES: {"display": True, "columns": 1, "cardHeight": 940},
    **{name: {"display": True} for name in ("pct", "ppl", "delta", "sparsity")},
    **{name: {"display": False} for name in ("acc", "acc_norm", "stderr/acc", "stderr/acc_norm")},
    # The last is what MLflow calls metrics without a slash.
    **{name: {"display": False} for name in ("time", "Model metrics")},
}


def _sections(view: View) -> list[dict[str, Any]]:
    """Named as MLflow names them (what is before a metric's last slash), so that charts of
    metrics that this view does not know fall into place. It shows empty ones as such."""
    return [
        {
            "uuid": _section_id(name),
            "name": name,
            "isReordered": False,
            "deleted": False,
            "isGenerated": True,
            **settings,
        }
        for name, settings in _SECTIONS.items()
        if name != "ppl" or view.perplexities
    ]


def _section_id(name: str) -> str:
    return f"prunescope-section-{name.replace('/', '-').replace(' ', '-')}"


def _charts(view: View) -> list[dict[str, Any]]:
    change = _bar("delta/mean_points", _OVERVIEW)
    trade_offs = [_scatter(name) for name in ("pct/mean", *view.perplexities)]
    bars = ["pct/mean", *view.percentages, *view.perplexities]
    bars += ["delta/ppl_ratio", "sparsity/linear", "sparsity/total"]
    return [change, *trade_offs, _layers(), _difference(view), *(_bar(name) for name in bars)]


def _difference(view: View) -> dict[str, Any]:
    return _chart(
        "DIFFERENCE",
        _DIFFERENCES,
        "difference",
        compareGroups=["Model metrics", "Parameters"],
        # MLflow paints whatever rose green.
        chartName="Each run against the first column (a rise is green, of perplexity too)",
        showChangeFromBaseline=True,
        showDifferencesOnly=True,
        baselineColumnUuid=view.baseline_run_id or "",
    )


def _layers() -> dict[str, Any]:
    return _chart(
        "LINE",
        _OVERVIEW,
        "layers/sparsity",
        metricKey="layers/sparsity",
        selectedMetricKeys=["layers/sparsity"],
        displayName="Sparsity of each layer",
        xAxisKey="step",
        scaleType="linear",
        xAxisScaleType="linear",
        lineSmoothness=0,
        useGlobalXaxisKey=False,
        useGlobalLineSmoothing=True,
        yAxisKey="metric",
        yAxisExpressions=[],
        range={},
    )


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


def _bar(metric: str, section: str | None = None) -> dict[str, Any]:
    where = metric.rpartition("/")[0] if section is None else section
    return _chart("BAR", where, metric, metricKey=metric)


def _scatter(metric: str) -> dict[str, Any]:
    return _chart(
        "SCATTER",
        _OVERVIEW,
        metric,
        xaxis={"key": "sparsity/linear", "type": "METRIC"},
        yaxis={"key": metric, "type": "METRIC"},
    )
