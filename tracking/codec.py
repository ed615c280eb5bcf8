"""An evaluation record as the fields of an MLflow run. Pure: nothing here talks to a server.

The record stays the authority; what is made here is an index over it, chosen for what MLflow's
pages do with it: metric names become chart sections, params are compared side by side, tags are
searched.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prunescope.metrics import KL, format_percent, mlflow_metric_name
from prunescope.records import EvalRecord, TaskResult
from prunescope.tracking.links import redact
from prunescope.tracking.samples import TABLE_PATH

__all__ = [
    "MAX_KEY",
    "MAX_PARAM",
    "MAX_TAG",
    "DatasetInput",
    "MetricPoint",
    "RunFields",
    "dataset_inputs",
    "encode",
    "headline",
    "metric_points",
    "params",
    "run_color",
    "run_name",
    "tags",
]

MAX_TAG = 8000
MAX_PARAM = 6000
MAX_KEY = 250
"""Longest value of a tag, of a param, and longest key that MLflow stores, characters."""

_MAX_DIGEST = 36
_GREY = "#7a7f87"
_METHOD_COLORS = {
    "magnitude": "#e69f00",
    "wanda": "#0072b2",
    "sparsegpt": "#009e73",
    "gptq": "#cc79a7",
    "random": "#8c564b",
}
_OTHER_COLORS = ("#d55e00", "#56b4e9", "#9467bd", "#bcbd22", "#17becf", "#e377c2", "#4c5fd5")


@dataclass(frozen=True)
class MetricPoint:
    """One finite value of a metric."""

    name: str
    value: float
    step: int = 0


@dataclass(frozen=True)
class DatasetInput:
    """What a run was evaluated on, as the run page's dataset list shows it."""

    name: str
    digest: str
    """At most 36 characters."""
    source_type: str
    source: str
    """JSON."""
    profile: str
    """JSON."""


@dataclass(frozen=True)
class RunFields:
    """Everything about a run but its artifacts."""

    name: str
    start_ms: int
    end_ms: int
    status: str
    """FINISHED or FAILED."""
    params: dict[str, str]
    metrics: tuple[MetricPoint, ...]
    tags: dict[str, str]
    datasets: tuple[DatasetInput, ...]


def encode(record: EvalRecord, extra_metrics: Mapping[str, float] | None = None) -> RunFields:
    """The fields of the run that stands for ``record``.

    Args:
        record: a finished or failed evaluation.
        extra_metrics: figures that the record alone does not give, such as
            ``delta/mean_points``; the names are those that MLflow shall show.
    """
    # A clock may have been put back meanwhile; a time of 0 means "now" to MLflow.
    start_ms = max(1, round(record.started_at.timestamp() * 1000))
    end = record.finished_at or record.started_at
    points, broken = metric_points(record, extra_metrics or {})
    return RunFields(
        name=run_name(record),
        start_ms=start_ms,
        end_ms=max(start_ms, round(end.timestamp() * 1000)),
        status="FAILED" if record.status == "failed" else "FINISHED",
        params=params(record),
        metrics=points,
        tags=tags(record, nonfinite=broken),
        datasets=dataset_inputs(record),
    )


# --- metrics ------------------------------------------------------------------------------------


def metric_points(
    record: EvalRecord, extra_metrics: Mapping[str, float] | None = None
) -> tuple[tuple[MetricPoint, ...], tuple[str, ...]]:
    """The metrics of a run, and the names of those left out because they are not finite.

    MLflow would store an infinity as 1.8e308, so NaN and infinity are not logged at all.
    Two figures whose names MLflow cannot tell apart keep both: the later one's name is given a
    short hash of what it was called.
    """
    points: list[MetricPoint] = []
    broken: list[str] = []
    taken: dict[tuple[str, int], str] = {}
    for parts, value, step in _figures(record, extra_metrics or {}):
        spelled = "/".join(parts)
        name = _metric_name(parts)
        if taken.setdefault((name, step), spelled) != spelled:
            name = f"{name[: MAX_KEY - 9]}_{_short_hash(spelled)}"
        if math.isfinite(value):
            points.append(MetricPoint(name, float(value), step))
        else:
            broken.append(name)
    return tuple(points), tuple(broken)


def _figures(
    record: EvalRecord, extra: Mapping[str, float]
) -> Iterator[tuple[tuple[str, ...], float, int]]:
    for corpus, result in record.perplexity.items():
        yield ("ppl", corpus), result.perplexity, 0
    for corpus, divergence in record.divergence.items():
        yield (KL.name, corpus), divergence.mean, 0
    if record.sparsity is not None:
        yield ("sparsity", "linear"), record.sparsity.linear.fraction, 0
        if record.sparsity.total.known:
            yield ("sparsity", "total"), record.sparsity.total.fraction, 0
        for layer in record.sparsity.layers:
            share = layer.zeros / layer.parameters if layer.parameters else 0.0
            yield ("layers", "sparsity"), share, layer.layer
    for task in record.tasks.values():
        yield from _task_figures(task)
    mean = record.mean_accuracy
    if mean is not None:
        yield ("acc", "mean"), mean, 0
        if all(_is_fraction(task) for task in record.tasks.values() if not task.group):
            yield ("pct", "mean"), round(100 * mean, 3), 0
    for name, value in extra.items():
        # MLflow's table shows all digits of a number.
        yield tuple(name.split("/")), round(value, 4) if math.isfinite(value) else value, 0
    for stage, seconds in record.provenance.timings.items():
        yield ("time", f"{stage}_s"), seconds, 0
    if record.provenance.tokens_per_second is not None:
        yield ("tokens_per_s",), record.provenance.tokens_per_second, 0


def _task_figures(task: TaskResult) -> Iterator[tuple[tuple[str, ...], float, int]]:
    for metric, value in task.metrics.items():
        yield (metric, task.task), value, 0
    for metric, error in task.stderr.items():
        yield ("stderr", metric, task.task), error, 0
    if task.accuracy is not None and _is_fraction(task):
        yield ("pct", task.task), round(100 * task.accuracy, 3), 0


def _is_fraction(task: TaskResult) -> bool:
    """Whether the primary metric is one that reads as a percentage."""
    value = task.accuracy
    higher = task.higher_is_better.get(task.primary, True)
    return value is None or not math.isfinite(value) or (higher and 0.0 <= value <= 1.0)


def _metric_name(parts: Iterable[str]) -> str:
    """A name that MLflow accepts, with one section for each part before the last.

    A slash inside a part (a corpus that is a file) would open a section of its own, and a part of
    dots alone is refused as a path. Where letters are lost, a hash keeps the name unique.
    """
    plain = [re.sub(r"[/\\]", "_", part).strip() or "_" for part in parts]
    name = mlflow_metric_name(*(f"_{part}" if set(part) == {"."} else part for part in plain))
    if len(name) > MAX_KEY or not all(part.isascii() for part in plain):
        name = f"{name[: MAX_KEY - 9]}_{_short_hash('/'.join(plain))}"
    return name


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


# --- params, tags, data sets --------------------------------------------------------------------


def params(record: EvalRecord) -> dict[str, str]:
    """The settings that matter when two runs are compared; what was left out has no entry."""
    protocol, labels = record.protocol, record.labels
    versions = {name.replace("-", "_"): v for name, v in record.provenance.packages.items()}
    ran_tasks = bool(protocol.requested_tasks or record.tasks)
    windows = [str(result.windows) for result in record.perplexity.values()]
    found: dict[str, object] = {
        "tasks": ",".join(protocol.requested_tasks or record.tasks) or None,
        "limit": ("all" if protocol.limit is None else protocol.limit) if ran_tasks else None,
        "num_fewshot": (
            ("task default" if protocol.num_fewshot is None else protocol.num_fewshot)
            if ran_tasks
            else None
        ),
        "dtype": protocol.dtype,
        "batch_size": protocol.batch_size or None,
        "scorer": protocol.scorer,
        "ppl_corpus": protocol.ppl_corpus,
        "seqlen": protocol.seqlen,
        "windows": ",".join(windows) or None,
        "lm_eval": versions.get("lm_eval"),
        "transformers": versions.get("transformers"),
        "torch": versions.get("torch"),
        "method": labels.method,
        "target_sparsity": labels.target_sparsity,
    }
    return {
        name: _cut(redact(str(value)), MAX_PARAM)
        for name, value in found.items()
        if value is not None
    }


def tags(record: EvalRecord, *, nonfinite: Iterable[str] = ()) -> dict[str, str]:
    """The tags that runs are searched by, the user's own among them.

    Args:
        record: the evaluation.
        nonfinite: names of the metrics that were left out because they are NaN or infinite.
    """
    labels, model, provenance = record.labels, record.model, record.provenance
    own: dict[str, object] = {
        "prunescope.role": labels.role,
        "prunescope.model": model.name,
        "prunescope.method": labels.method,
        "prunescope.baseline_run_id": labels.baseline_run_id,
        "prunescope.record_key": record.record_key,
        "prunescope.record_id": record.record_id,
        "prunescope.schema": record.schema_version,
        "prunescope.weights_sha256": model.weights_sha256,
        "prunescope.mask_sha256": model.mask_sha256,
        "prunescope.pattern": record.sparsity.pattern if record.sparsity else None,
        "prunescope.broken": _broken(record, nonfinite) or None,
        "prunescope.alarms": ", ".join(alarm.code for alarm in record.alarms) or None,
        "prunescope.error": _failure(record),
        "mlflow.runColor": run_color(record),
        "mlflow.source.name": "prunescope",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": provenance.git_commit,
        "mlflow.user": provenance.user or None,
    }
    if record.tasks:
        own["mlflow.loggedArtifacts"] = json.dumps([{"path": TABLE_PATH, "type": "table"}])
    known = {name: str(value) for name, value in own.items() if value is not None}
    theirs = {_tag_key(name): value for name, value in labels.tags.items()}
    return {name: _cut(redact(value), MAX_TAG) for name, value in {**theirs, **known}.items()}


def _tag_key(name: str) -> str:
    """A key that MLflow accepts for a tag of the user's."""
    key = re.sub(r"[^\w\-.:/ ]", "_", name, flags=re.ASCII)
    key = re.sub(r"(^|/)(?=/|\.{1,2}(/|$)|$)", r"\1_", key)
    return key[:MAX_KEY]


def _cut(value: str, longest: int) -> str:
    return value if len(value) <= longest else value[: longest - 1] + "…"


def _broken(record: EvalRecord, nonfinite: Iterable[str]) -> str:
    places = [f"{b.stage}: {b.where} ({b.what})" for b in record.broken]
    names = ", ".join(nonfinite)
    return "; ".join([*places, f"not finite: {names}"] if names else places)


def _failure(record: EvalRecord) -> str | None:
    if record.error is None:
        return None
    where = f" in {record.error.stage}" if record.error.stage else ""
    return f"{record.error.type}{where}: {record.error.message}"


def dataset_inputs(record: EvalRecord) -> tuple[DatasetInput, ...]:
    """One entry for each task and each perplexity corpus whose content is known."""
    source = json.dumps({"source": record.provenance.data_source})
    found = [
        DatasetInput(
            name=task.task[:MAX_KEY],
            digest=task.documents_sha256[:_MAX_DIGEST],
            source_type="lm-eval",
            source=source,
            profile=json.dumps({"num_rows": task.n, "version": task.version}),
        )
        for task in record.tasks.values()
        if task.documents_sha256
    ]
    found += [
        DatasetInput(
            name=corpus[:MAX_KEY],
            digest=result.corpus_sha256[:_MAX_DIGEST],
            source_type="text",
            source=source,
            profile=json.dumps({"num_tokens": result.tokens, "num_rows": result.windows}),
        )
        for corpus, result in record.perplexity.items()
        if result.corpus_sha256
    ]
    return tuple(found)


# --- what people read ---------------------------------------------------------------------------


def run_name(record: EvalRecord) -> str:
    """A short name: the user's, else the model with its pattern and method.

    For example ``SmolLM2-135M · 2:4 magnitude``; an original is its model's name alone.
    """
    if record.labels.run_name:
        return _cut(record.labels.run_name, MAX_KEY)
    name = _cut(record.model.name, 120)
    if record.labels.role == "original":
        return name
    about = " ".join(part for part in (_how_sparse(record), record.labels.method) if part)
    return f"{name} · {_cut(about, 80)}" if about else name


def _how_sparse(record: EvalRecord) -> str:
    if record.sparsity is None:
        return ""
    share = record.sparsity.linear.fraction
    return record.sparsity.pattern or (f"{100 * share:.0f}%" if share >= 0.005 else "")


def run_color(record: EvalRecord) -> str:
    """Grey for originals, one colour for each pruning method."""
    method = (record.labels.method or "").lower()
    if record.labels.role == "original" or not method:
        pruned = record.labels.role == "pruned"
        return _OTHER_COLORS[0] if pruned else _GREY
    known = [color for name, color in _METHOD_COLORS.items() if name in method]
    return known[0] if known else _OTHER_COLORS[int(_short_hash(method), 16) % len(_OTHER_COLORS)]


def headline(record: EvalRecord) -> str:
    """The evaluation in one line of plain text."""
    parts = [run_name(record)]
    if record.status == "failed":
        parts.append(f"failed: {_failure(record)}" if record.error else "failed")
    if record.sparsity is not None:
        parts.append(f"sparsity {format_percent(record.sparsity.linear.fraction)}")
    parts += [
        f"perplexity {r.perplexity:.2f} ({corpus}, {r.seqlen or 'unknown'} tokens a window)"
        for corpus, r in record.perplexity.items()
    ]
    if record.mean_accuracy is not None:
        count = sum(not task.group for task in record.tasks.values())
        tasks = "task" if count == 1 else "tasks"
        parts.append(f"mean accuracy {format_percent(record.mean_accuracy)} over {count} {tasks}")
    if record.broken:
        parts.append("BROKEN: " + _broken(record, ()))
    parts += [f"ALARM: {alarm.message}" for alarm in record.alarms]
    return redact(" · ".join(parts))
