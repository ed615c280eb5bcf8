"""``comparison_*.json`` of the older script: two evaluations a file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from prunescope.records import Role, TaskResult
from prunescope.tracking.history.outside import (
    Evaluation,
    broken_perplexity,
    clean,
    folders,
    method_in,
    model_info,
    number,
    plausible_time,
    role_of,
    sparsity_share,
    task_result,
    unknown_perplexity,
)

__all__ = ["is_older_comparison", "read_comparison"]

_STAMP = re.compile(r"_(\d{8}_\d{6})$")
_LONGEST = timedelta(days=30)


def is_older_comparison(raw: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a result of the older script, and not of ``prunescope compare``."""
    sides = [raw.get("original"), raw.get("pruned")]
    plain = all(isinstance(s, Mapping) and isinstance(s.get("tasks"), Mapping) for s in sides)
    return plain and "schema_version" not in raw


def read_comparison(raw: Mapping[str, Any], path: Path) -> list[Evaluation]:
    """The original's and the pruned model's evaluation.

    Their times follow from the file's name (local time, when the script ended) and the seconds
    that each took.
    """
    ended = _ended_at(path)
    halfway = None if ended is None else ended - _duration(raw["pruned"])
    original = _side(raw["original"], "original", halfway)
    return [original, _side(raw["pruned"], "pruned", ended)]


def _ended_at(path: Path) -> datetime | None:
    stamp = _STAMP.search(path.stem)
    if stamp is None:
        return None
    try:
        local = datetime.strptime(stamp.group(1), "%Y%m%d_%H%M%S").astimezone()
        return plausible_time(local.timestamp())
    except (ValueError, OverflowError, OSError):
        return None


def _duration(side: Mapping[str, Any]) -> timedelta:
    seconds = number(side.get("eval_time_seconds"))
    if seconds is None or not 0 <= seconds <= _LONGEST.total_seconds():
        return timedelta(0)
    return timedelta(seconds=seconds)


def _side(side: Mapping[str, Any], said: Role, ended: datetime | None) -> Evaluation:
    path = clean(side.get("model_path") or "")
    share = number(side.get("sparsity"))
    duration = _duration(side)
    role = role_of(share, said)
    method = method_in(folders(path)) if role == "pruned" else None
    tasks, lacking = _tasks(side["tasks"])
    notes = [f"called '{clean(side.get('model_name') or '')}' in the file, as its {said} model"]
    if method:
        notes.append(f"method {method} read from the model's path")
    if lacking:
        notes.append(f"no figures in the file for {', '.join(lacking)[:300]}")
    perplexity = broken = None
    if "wikitext_ppl" in side:
        found = number(side["wikitext_ppl"])
        # null is how some JSON writers put NaN.
        value = math.nan if found is None else found
        perplexity, broken = unknown_perplexity(value), broken_perplexity(value)
        notes.append("perplexity at the model's own maximum length, which the file does not tell")
    return Evaluation(
        side=said,
        model=model_info(path, str(side.get("model_name") or "")),
        started_at=None if ended is None else ended - duration,
        finished_at=ended,
        role=role,
        method=method,
        baseline_side="original" if said == "pruned" else None,
        protocol={
            "requested_tasks": tuple(tasks),
            "ppl_corpus": "wikitext2" if perplexity else None,
        },
        sparsity=sparsity_share(share),
        perplexity={"wikitext2": perplexity} if perplexity else {},
        tasks=tasks,
        broken=broken or (),
        timings={"all": duration.total_seconds()} if duration else {},
        notes=tuple(notes),
    )


def _tasks(raw: Mapping[str, Any]) -> tuple[dict[str, TaskResult], list[str]]:
    found: dict[str, TaskResult] = {}
    lacking: list[str] = []
    for key, entry in raw.items():
        name = clean(key)
        entry = entry if isinstance(entry, Mapping) else {}
        whole = entry.get("full_results")
        result = task_result(name, whole) if isinstance(whole, Mapping) else None
        if result is None and number(entry.get("accuracy")) is not None:
            result = task_result(name, {"acc": entry["accuracy"]})
        if result is None:
            lacking.append(name)
        else:
            found[name] = result
    return found, lacking
