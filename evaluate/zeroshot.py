"""Zero-shot (or few-shot) accuracy through lm-evaluation-harness: its tasks, versions and metrics.

lm-eval scores and aggregates; this module says beforehand which documents that will be
(:func:`plan_tasks`), runs one task at a time (:func:`run_task`), and turns lm-eval's dictionaries
into records without changing a number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunescope.evaluate.progress import Progress
from prunescope.evaluate.tasks import LoadedTasks, document_sha256
from prunescope.metrics import metric_key
from prunescope.records import (
    SAMPLES_COLUMNS,
    Breakage,
    TaskProtocol,
    TaskResult,
    canonical_hash,
)

if TYPE_CHECKING:
    import pandas as pd
    from lm_eval.api.model import LM
    from lm_eval.api.task import Task

__all__ = ["TaskOutcome", "aggregate_groups", "plan_tasks", "run_task"]


@dataclass(frozen=True)
class TaskOutcome:
    """What one task gave."""

    result: TaskResult
    samples: pd.DataFrame
    """One row a document, see :data:`prunescope.records.SAMPLES_COLUMNS`."""
    broken: Breakage | None
    """The first document whose loglikelihood is not finite."""


def plan_tasks(tasks: LoadedTasks, *, limit: int | None, seed: int) -> dict[str, TaskProtocol]:
    """Build every task's documents and say what will be scored, without a model.

    Args:
        tasks: from :func:`prunescope.evaluate.tasks.load_tasks`.
        limit: only the first ``limit`` documents of each task.
        seed: of the few-shot examples.
    """
    return {name: _plan(task, limit, seed) for name, task in tasks.leaves.items()}


def _plan(task: Task, limit: int | None, seed: int) -> TaskProtocol:
    # Building draws few-shot examples: the same draw must come again when lm-eval builds.
    task.set_fewshot_seed(seed=seed)
    task.build_all_requests(limit=limit)
    requests: dict[int, list[Any]] = {}
    for instance in task.instances:
        requests.setdefault(instance.doc_id, []).append(instance)
    hashes = [
        _document_hash(task, group[0].doc, [instance.args for instance in group])
        for group in requests.values()
    ]
    return TaskProtocol(
        version=str(task.VERSION),
        documents_sha256=canonical_hash(hashes),
        n=len(hashes),
        num_fewshot=task.config.num_fewshot or 0,
    )


def run_task(
    name: str,
    tasks: LoadedTasks,
    lm: LM,
    *,
    limit: int | None,
    seed: int,
    planned: TaskProtocol,
    progress: Progress,
) -> TaskOutcome:
    """Score one task with lm-eval's own evaluator.

    Raises:
        RuntimeError: the documents are not the planned ones; then no number could be trusted.
    """
    from lm_eval.evaluator import evaluate

    task = tasks.leaves[name]
    task.set_fewshot_seed(seed=seed)
    progress.start("tasks", name, total=len(task.instances))
    results = evaluate(lm=lm, task_dict={"tasks": {name: task}, "groups": {}}, limit=limit)
    progress.finish()
    documents = _merge_filters(results["samples"][name])
    hashes = [_document_hash(task, doc["doc"], doc["arguments"]) for doc in documents]
    if canonical_hash(hashes) != planned.documents_sha256:
        raise RuntimeError(f"{name}: lm-eval scored other documents than were planned")
    rows = [_row(task, doc, sha) for doc, sha in zip(documents, hashes, strict=True)]
    broken = _first_breakage(name, rows)
    return TaskOutcome(
        result=_task_result(name, results, planned, poisoned=_is_poisoned(rows)),
        samples=_frame(rows),
        broken=broken,
    )


def aggregate_groups(tasks: LoadedTasks, results: Mapping[str, TaskResult]) -> list[TaskResult]:
    """lm-eval's own aggregation of each group (``mmlu`` over its subjects) over its leaves."""
    metrics = {name: dict(result.full_results) for name, result in results.items()}
    found = []
    for name, group in tasks.groups.items():
        if not group.has_aggregation:
            continue
        whole = group.aggregate(metrics)
        values, errors = _split(whole)
        leaves = [task.task_name for task in group.get_all_tasks()]
        first = results[leaves[0]]
        found.append(
            TaskResult(
                task=name,
                version=str(group.version),
                n=sum(results[leaf].n for leaf in leaves),
                primary=first.primary if first.primary in values else next(iter(values), "acc"),
                metrics=values,
                stderr=errors,
                higher_is_better=first.higher_is_better,
                full_results=_json_safe(whole),
                num_fewshot=first.num_fewshot,
                group=True,
                subtasks=tuple(leaves),
            )
        )
    return found


def _document_hash(task: Task, doc: Any, arguments: Sequence[tuple[Any, ...]]) -> str:
    contexts = [str(args[0]) for args in arguments]
    continuations = [str(args[1]) if len(args) > 1 else "" for args in arguments]
    return document_sha256(contexts, continuations, _gold(task, doc))


def _gold(task: Task, doc: Any) -> Any:
    # lm-eval's process_results: with several inputs the text is the index of the right one.
    if task.OUTPUT_TYPE != "multiple_choice":
        return task.doc_to_target(doc)
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(gold, str):
        choices = list(task.doc_to_choice(doc))
        return choices.index(gold) if gold in choices else gold
    return gold


def _merge_filters(samples: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """lm-eval lists a document once for each filter; here it is one, with all the metrics."""
    merged: dict[int, dict[str, Any]] = {}
    for sample in samples:
        document = merged.setdefault(sample["doc_id"], {**sample, "values": {}})
        for metric in sample["metrics"]:
            document["values"][metric_key(f"{metric},{sample['filter']}")] = sample[metric]
    return list(merged.values())


def _row(task: Task, document: Mapping[str, Any], sha: str) -> dict[str, Any]:
    contexts = [str(args[0]) for args in document["arguments"]]
    row: dict[str, Any] = dict.fromkeys(SAMPLES_COLUMNS)
    row |= {
        "doc_id": document["doc_id"],
        "doc_sha256": sha,
        "context": contexts[0],
        "choices": [],
        "loglikelihoods": [],
        "lengths": [],
        "greedy": [],
        "acc": _number(document["values"].get("acc")),
        "acc_norm": _number(document["values"].get("acc_norm")),
        "metrics": json.dumps(_json_safe(document["values"]), ensure_ascii=False),
        "document": json.dumps(document["doc"], ensure_ascii=False, default=str),
    }
    if task.OUTPUT_TYPE == "generate_until":
        return row | {"response": str(document["resps"][0][0])}
    answers = [response[0] for response in document["resps"]]
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        return row | {"loglikelihoods": [float(answer) for answer in answers]}
    row["loglikelihoods"] = [float(answer[0]) for answer in answers]
    row["greedy"] = [bool(answer[1]) for answer in answers]
    row |= _choices(task, document, contexts, row["loglikelihoods"])
    return row


def _choices(
    task: Task, document: Mapping[str, Any], contexts: Sequence[str], scores: Sequence[float]
) -> dict[str, Any]:
    continuations = [str(args[1]) for args in document["arguments"]]
    shared = _common_prefix(contexts)
    found: dict[str, Any] = {
        "context": shared,
        "choices": [
            context[len(shared) :] + continuation
            for context, continuation in zip(contexts, continuations, strict=True)
        ],
        "lengths": [len(continuation) for continuation in continuations],
    }
    if task.OUTPUT_TYPE == "multiple_choice":
        texts = list(task.doc_to_choice(document["doc"]))
        gold = _gold(task, document["doc"])
        found["lengths"] = [len(text) for text in texts]
        found["gold"] = gold if isinstance(gold, int) else None
        # acc_mutual_info adds unconditional requests behind the choices.
        conditional = scores[: len(texts)]
        found["predicted"] = max(range(len(conditional)), key=_first_largest(conditional))
    return found


def _first_largest(scores: Sequence[float]) -> Any:
    """A sort key under which ``max`` answers as numpy.argmax does: the first NaN, else the
    first of the largest."""
    return lambda index: (math.isnan(scores[index]), scores[index], -index)


def _common_prefix(texts: Sequence[str]) -> str:
    low, high = min(texts), max(texts)
    for index, character in enumerate(low):
        if character != high[index]:
            return low[:index]
    return low


def _first_breakage(name: str, rows: Iterable[Mapping[str, Any]]) -> Breakage | None:
    for row in rows:
        for value in row["loglikelihoods"]:
            if not math.isfinite(value):
                return Breakage(
                    stage="tasks",
                    where=f"{name} document {row['doc_id']}",
                    what=f"loglikelihood is {'NaN' if math.isnan(value) else 'infinite'}",
                )
    return None


def _is_poisoned(rows: Iterable[Mapping[str, Any]]) -> bool:
    return any(math.isnan(value) for row in rows for value in row["loglikelihoods"])


def _task_result(name: str, results: Any, planned: TaskProtocol, *, poisoned: bool) -> TaskResult:
    whole = results["results"][name]
    values, errors = _split(whole)
    if poisoned:
        # argmax over NaN names an answer all the same: such an accuracy means nothing.
        values = dict.fromkeys(values, math.nan)
        errors = {}
    higher = {
        metric_key(metric): bool(better)
        for metric, better in results["higher_is_better"].get(name, {}).items()
        if better is not None
    }
    return TaskResult(
        task=name,
        version=planned.version,
        n=planned.n,
        primary="acc" if "acc" in values else next(iter(values), "acc"),
        metrics=values,
        stderr=errors,
        higher_is_better={
            key: higher[base] for key in values if (base := key.partition(".")[0]) in higher
        },
        full_results=_json_safe(whole),
        num_fewshot=planned.num_fewshot,
        documents_sha256=planned.documents_sha256,
    )


def _split(whole: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """lm-eval's flat dictionary as values and standard errors, by the keys of TaskResult."""
    values: dict[str, float] = {}
    errors: dict[str, float] = {}
    for key, value in whole.items():
        number = _number(value)
        if number is None or "," not in key:
            continue
        metric, _, filter_name = key.partition(",")
        target, metric = (
            (errors, metric.removesuffix("_stderr"))
            if metric.endswith("_stderr")
            else (values, metric)
        )
        target[metric_key(f"{metric},{filter_name}")] = number
    return values, errors


def _number(value: Any) -> float | None:
    if value is None or isinstance(value, str | bytes | list | tuple | dict):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _json_safe(value: Any) -> Any:
    """numpy scalars as Python's, anything that JSON does not know as text."""
    if isinstance(value, Mapping):
        return {str(key): _json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    number = _number(value)
    return str(value) if number is None else number


def _frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(rows, columns=list(SAMPLES_COLUMNS))
    for column in ("gold", "predicted"):
        frame[column] = frame[column].astype("Int64")
    for column in ("acc", "acc_norm"):
        frame[column] = frame[column].astype("float64")
    return frame
