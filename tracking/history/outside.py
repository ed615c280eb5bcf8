"""What the readers of others' files share: one evaluation, as far as it is known."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from prunescope.metrics import metric_key
from prunescope.records import (
    Breakage,
    ModelInfo,
    PerplexityResult,
    Role,
    SparsityResult,
    TaskResult,
    ZeroCount,
    canonical_hash,
)
from prunescope.tracking.links import redact

__all__ = [
    "EVALUATED_TAG",
    "IMPORT_TAG",
    "METHODS",
    "Evaluation",
    "broken_perplexity",
    "clean",
    "count_documents",
    "folders",
    "imported_id",
    "method_in",
    "model_info",
    "number",
    "plausible_time",
    "role_of",
    "sparsity_share",
    "split_figures",
    "task_result",
    "unknown_perplexity",
]

IMPORT_TAG = "prunescope.import_sha256"
"""Tag of an imported run: hash of the file's content (and of the samples beside it)."""

EVALUATED_TAG = "prunescope.evaluated_at"
"""Tag of an imported run: when the evaluation was made, ISO 8601."""

METHODS = frozenset({"wanda", "sparsegpt", "magnitude"})
"""Pruning methods that are believed where a path or a log names them."""

PRUNED_FROM = 0.01
"""A model with a larger share of zeros is a pruned one, whatever a file calls it."""

_YEARS = (datetime(2018, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))
_NUMBER_WORDS = {"nan": math.nan, "inf": math.inf, "infinity": math.inf, "-inf": -math.inf}
_NO_METRIC = frozenset({"alias", "name", "sample_len", "sample_count", "samples"})


@dataclass(frozen=True)
class Evaluation:
    """One evaluation out of a file, before it is a record."""

    side: str
    """Tells the evaluations of one file apart; ``original`` comes before its ``pruned``."""
    model: ModelInfo
    started_at: datetime | None
    finished_at: datetime | None
    role: Role | None = None
    method: str | None = None
    pattern: str | None = None
    baseline_side: str | None = None
    """The evaluation of the same file that this one is compared with."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """Fields of :class:`prunescope.records.Protocol` that are known."""
    sparsity: SparsityResult | None = None
    perplexity: Mapping[str, PerplexityResult] = field(default_factory=dict)
    tasks: Mapping[str, TaskResult] = field(default_factory=dict)
    samples: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Task -> rows with the columns of :data:`prunescope.records.SAMPLES_COLUMNS`."""
    broken: tuple[Breakage, ...] = ()
    packages: Mapping[str, str] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def imported_id(content_sha256: str, side: str) -> str:
    """The record id of an imported evaluation: the same for the same content."""
    return canonical_hash(["import", content_sha256, side])[:32]


def number(value: Any) -> float | None:
    """A figure of a file, NaN and infinity included; None for anything else."""
    if isinstance(value, str):
        return _NUMBER_WORDS.get(value.strip().lower())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def clean(value: Any) -> str:
    """Text of a file as a record may keep it: valid Unicode, no credentials, not too long."""
    text = str(value).encode("utf-8", "replace").decode("utf-8").replace("\x00", "")
    return redact(text)[:1000]


def plausible_time(seconds: float | None) -> datetime | None:
    """Seconds since 1970 as a time; None where no evaluation can have been made then."""
    if seconds is None or not math.isfinite(seconds):
        return None
    if not _YEARS[0].timestamp() <= seconds <= _YEARS[1].timestamp():
        return None
    return datetime.fromtimestamp(seconds, UTC)


# --- model and figures --------------------------------------------------------------------------


def model_info(path: str, fallback: str, **known: Any) -> ModelInfo:
    """What a file says of a model.

    Args:
        path: folder or hub id; empty where it is not known.
        fallback: a name for a model without a path.
        known: further fields of :class:`prunescope.records.ModelInfo`.
    """
    path = clean(path)
    name = PurePosixPath(path.replace("\\", "/").rstrip("/")).name or clean(fallback) or "model"
    return ModelInfo(requested=path or name, name=name[:200], kind="unknown", **known)


def role_of(sparsity: float | None, said: Role | None) -> Role | None:
    """``pruned`` for a model with more than 1 % zeros, else what the file says."""
    if sparsity is not None and sparsity > PRUNED_FROM:
        return "pruned"
    return said


def sparsity_share(share: float | None) -> SparsityResult | None:
    """A share of zeros among the linear layers of the decoder blocks, the counts unknown."""
    if share is None or not 0.0 <= share <= 1.0:
        return None
    nothing = ZeroCount(zeros=0, parameters=0)
    return SparsityResult(linear=nothing.model_copy(update={"share": share}), total=nothing)


def unknown_perplexity(value: float) -> PerplexityResult:
    """WikiText-2 perplexity of which only the figure is known."""
    return PerplexityResult(
        corpus="wikitext2",
        corpus_sha256="",
        perplexity=value,
        mean_nll=math.log(value) if value > 0 else math.nan,
        seqlen=0,
        windows=0,
        tokens=0,
        corpus_tokens=0,
    )


def broken_perplexity(value: float) -> tuple[Breakage, ...]:
    """What to say of a perplexity that is no finite number."""
    if math.isfinite(value):
        return ()
    what = "NaN perplexity" if math.isnan(value) else "infinite perplexity"
    return (Breakage(stage="perplexity", where="wikitext2", what=what),)


def split_figures(whole: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """lm-eval's flat dictionary of a task as values and standard errors.

    Reads the keys of lm-eval from 0.4 (``acc,none``, ``acc_stderr,none``) and, where there are
    none, the older ones (``acc``, ``acc_stderr``).
    """
    modern = any("," in key for key in whole)
    values: dict[str, float] = {}
    errors: dict[str, float] = {}
    for key, value in whole.items():
        found = number(value)
        if found is None or ("," in key) != modern or key in _NO_METRIC:
            continue
        metric, comma, filter_name = key.partition(",")
        target = errors if metric.endswith("_stderr") else values
        name = metric_key(clean(metric.removesuffix("_stderr") + comma + filter_name))
        target[name] = found
    return values, {key: value for key, value in errors.items() if key in values}


def count_documents(values: Mapping[str, float], errors: Mapping[str, float]) -> int:
    """How many documents an accuracy was taken over, from its standard error; 0 if it is unclear.

    lm-eval's standard error of a mean of zeros and ones is sqrt(p (1 - p) / (n - 1)), so that
    n = p (1 - p) / stderr^2 + 1. It is believed where n and n p are whole numbers.
    """
    for key in ("acc", "acc_norm", *values):
        p, error = values.get(key, math.nan), errors.get(key, math.nan)
        if not (0 < p < 1 and 1e-6 < error < 1):
            continue
        n = p * (1 - p) / error**2 + 1
        if abs(n - round(n)) < 1e-4 and abs(p * round(n) - round(p * round(n))) < 1e-4:
            return round(n)
    return 0


def task_result(name: str, whole: Mapping[str, Any], **known: Any) -> TaskResult | None:
    """A task's figures; None where the file has none for it.

    Args:
        name: of the task.
        whole: lm-eval's dictionary.
        known: further fields of :class:`prunescope.records.TaskResult`.
    """
    values, errors = split_figures(whole)
    if not values:
        return None
    fields: dict[str, Any] = {"version": "", "n": count_documents(values, errors)} | known
    return TaskResult(
        task=name,
        primary="acc" if "acc" in values else next(iter(values)),
        metrics=values,
        stderr=errors,
        full_results={
            clean(k): clean(v) if isinstance(v, str) else v
            for k, v in whole.items()
            if v is None or isinstance(v, str | float | bool) or _small(v)
        },
        **fields,
    )


def _small(value: Any) -> bool:
    return isinstance(value, int) and abs(value) < 2**63


def method_in(parts: Iterable[str]) -> str | None:
    """The pruning method that a path's folders name, if they name one."""
    return next((part.lower() for part in parts if part.lower() in METHODS), None)


def folders(path: str) -> list[str]:
    """The parts of a path of either kind."""
    return [part for part in re.split(r"[\\/]+", path) if part]
