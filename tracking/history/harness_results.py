"""lm-eval's ``results_*.json``: one evaluation a file, with its documents where they were kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from prunescope.records import ModelInfo, TaskProtocol, TaskResult
from prunescope.tracking.history.harness_samples import TaskDocuments, read_documents
from prunescope.tracking.history.outside import (
    Evaluation,
    clean,
    model_info,
    number,
    plausible_time,
    split_figures,
    task_result,
)

__all__ = ["is_harness_result", "read_harness_result", "samples_files"]

_TORCH = re.compile(r"^PyTorch version: (\S+)", re.MULTILINE)
_NAMES = ("peft", "delta", "pretrained", "model", "path", "engine")
_LONGEST = 30 * 86_400


def is_harness_result(raw: Mapping[str, Any]) -> bool:
    """Whether a JSON object is a result file of lm-eval."""
    results = raw.get("results")
    return (
        isinstance(results, Mapping)
        and bool(results)
        and all(isinstance(entry, Mapping) for entry in results.values())
        and any(isinstance(raw.get(key), Mapping) for key in ("config", "configs", "versions"))
    )


def samples_files(raw: Mapping[str, Any], path: Path) -> dict[str, Path]:
    """Task -> the ``samples_<task>_<date>.jsonl`` beside a result file."""
    date = path.stem.rpartition("_")[2]
    found: dict[str, Path] = {}
    for task in raw["results"]:
        if re.search(r"[/\\\x00]", task) or len(task) > 150:
            continue
        beside = path.parent / f"samples_{task}_{date}.jsonl"
        if beside.is_file():
            found[task] = beside
    return found


def read_harness_result(raw: Mapping[str, Any], path: Path) -> Evaluation:
    """The evaluation that a result file and the samples beside it tell of.

    Raises:
        RecordError: a file of samples is damaged.
    """
    documents = {
        task: read_documents(file, _entry(raw, "configs", task))
        for task, file in samples_files(raw, path).items()
    }
    tasks = _tasks(raw, documents)
    settings = _mapping(raw.get("config"))
    start = plausible_time(number(raw.get("date")))
    seconds = _seconds(raw.get("total_evaluation_time_seconds"))
    notes = ["evaluated by lm-eval"]
    if unknown := [t for t, d in documents.items() if d.sha256 is None]:
        notes.append(f"the right choices of {', '.join(map(clean, unknown))[:300]} are not known")
    return Evaluation(
        side="",
        model=_model(raw, settings),
        started_at=start,
        finished_at=None if start is None else start + timedelta(seconds=seconds),
        protocol=_protocol(settings, tasks),
        tasks=tasks,
        samples={clean(task): found.rows for task, found in documents.items() if found.rows},
        packages=_packages(raw),
        timings={"tasks": seconds} if seconds else {},
        notes=tuple(notes),
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _entry(raw: Mapping[str, Any], table: str, task: str) -> Any:
    value = _mapping(raw.get(table)).get(task)
    return _mapping(value) if table in ("configs", "n-samples", "higher_is_better") else value


def _whole_number(value: Any) -> int | None:
    found = number(value)
    return int(found) if found is not None and found == found and 0 <= found < 2**53 else None


def _seconds(value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return seconds if 0 <= seconds <= _LONGEST else 0.0


# --- tasks --------------------------------------------------------------------------------------


def _tasks(raw: Mapping[str, Any], documents: Mapping[str, TaskDocuments]) -> dict[str, TaskResult]:
    members = {
        clean(group): tuple(clean(one) for one in listed)
        for group, listed in _mapping(raw.get("group_subtasks")).items()
        if isinstance(listed, list) and listed
    }
    found: dict[str, TaskResult] = {}
    for key, whole in raw["results"].items():
        result = task_result(clean(key), whole, **_known(raw, key, documents.get(key)))
        if result is not None:
            found[result.task] = result
    for group, subtasks in members.items():
        if group in found:
            n = sum(found[one].n for one in subtasks if one in found)
            update = {"group": True, "subtasks": subtasks, "n": n}
            found[group] = found[group].model_copy(update=update)
    return found


def _known(raw: Mapping[str, Any], task: str, found: TaskDocuments | None) -> dict[str, Any]:
    known: dict[str, Any] = {}
    version = _entry(raw, "versions", task)
    if isinstance(version, str | int | float):
        known["version"] = clean(version)
    counted = _whole_number(_entry(raw, "n-samples", task).get("effective"))
    if found is not None and found.rows:
        counted = len(found.rows)
        known["documents_sha256"] = found.sha256
    if counted:
        known["n"] = counted
    known["num_fewshot"] = _whole_number(_entry(raw, "n-shot", task))
    better = _entry(raw, "higher_is_better", task)
    known["higher_is_better"] = {
        key: better[base]
        for key in split_figures(raw["results"][task])[0]
        if isinstance(better.get(base := key.partition(".")[0]), bool)
    }
    return known


def _protocol(settings: Mapping[str, Any], tasks: Mapping[str, TaskResult]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "tasks": {
            name: TaskProtocol(
                version=task.version,
                documents_sha256=task.documents_sha256 or "",
                n=task.n,
                num_fewshot=task.num_fewshot,
            )
            for name, task in tasks.items()
            if task.num_fewshot is not None and not task.group
        },
        "requested_tasks": tuple(name for name, task in tasks.items() if not task.group),
        "limit": _whole_number(settings.get("limit")) or None,
        "scorer": "lm-eval",
        "seed": _whole_number(settings.get("fewshot_seed")) or 0,
    }
    for ours, theirs in (("batch_size", "batch_size"), ("device", "device")):
        if settings.get(theirs) is not None:
            found[ours] = clean(settings[theirs])
    dtype = settings.get("model_dtype") or _arguments(settings).get("dtype")
    if dtype:
        found["dtype"] = clean(dtype).removeprefix("torch.")
    return found


# --- model --------------------------------------------------------------------------------------


def _arguments(settings: Mapping[str, Any]) -> dict[str, str]:
    """``model_args``, which is text or a dictionary."""
    given = settings.get("model_args")
    if isinstance(given, Mapping):
        return {str(key): str(value) for key, value in given.items()}
    pairs = (part.partition("=") for part in str(given or "").split(","))
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def _model(raw: Mapping[str, Any], settings: Mapping[str, Any]) -> ModelInfo:
    arguments = _arguments(settings)
    named = next((arguments[key] for key in _NAMES if arguments.get(key)), None)
    backend = settings.get("model")
    path = named or (backend if isinstance(backend, str) else "") or str(raw.get("model_name", ""))
    commit = settings.get("model_sha")
    dtype = settings.get("model_dtype") or arguments.get("dtype")
    base = arguments.get("pretrained") if arguments.get("peft") else None
    return model_info(
        path,
        "model",
        hub_id=clean(path) if commit else None,
        revision=clean(commit) if commit else None,
        adapter_of=clean(base) if base else None,
        parameters=_whole_number(settings.get("model_num_parameters")),
        dtype=clean(dtype).removeprefix("torch.") if dtype else None,
        max_length=_whole_number(raw.get("max_length")),
        trust_remote_code=arguments.get("trust_remote_code", "").lower() == "true",
    )


def _packages(raw: Mapping[str, Any]) -> dict[str, str]:
    known = {"lm_eval": raw.get("lm_eval_version"), "transformers": raw.get("transformers_version")}
    torch = _TORCH.search(str(raw.get("pretty_env_info") or ""))
    known["torch"] = torch.group(1) if torch else None
    return {name: clean(value) for name, value in known.items() if isinstance(value, str)}
