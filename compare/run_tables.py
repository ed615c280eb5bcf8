"""A single evaluation as tables of text, for its own report."""

from __future__ import annotations

import math
from dataclasses import dataclass

from prunescope.compare.delta import ordered_tasks
from prunescope.compare.layout import Cell, Table
from prunescope.compare.tables import format_bytes, format_duration, model_facts
from prunescope.metrics import (
    ACC,
    KL,
    PERPLEXITY,
    Metric,
    corpus_title,
    format_percent,
    perplexity_title,
    task_metric,
)
from prunescope.records import EvalRecord, RunRef, TaskResult

__all__ = ["RunTables", "run_tables"]


@dataclass(frozen=True)
class RunTables:
    """Everything that a single run's report shows."""

    sections: tuple[Table, ...]
    notes: tuple[str, ...]


def run_tables(record: EvalRecord, run: RunRef | None = None) -> RunTables:
    """Lay out a single evaluation, tracked as ``run``; sections without content are left out."""
    sections = (_model(record, run), _figures(record), _tasks(record), _kinds(record), _how(record))
    notes = [
        f"Broken: {broken.what} first seen in {broken.where} ({broken.stage})"
        for broken in record.broken
    ]
    notes.extend(f"Alarm: {alarm.message}" for alarm in record.alarms)
    if record.status != "finished":
        notes.append(f"The evaluation is {record.status}")
    if record.error is not None:
        stage = f" in the {record.error.stage} stage" if record.error.stage else ""
        notes.append(f"{record.error.type}{stage}: {record.error.message}")
    notes.extend(record.provenance.notes)
    return RunTables(tuple(table for table in sections if table.rows), tuple(notes))


def _model(record: EvalRecord, run: RunRef | None) -> Table:
    rows = tuple((Cell(k), Cell(v)) for k, v in model_facts(record, run).items() if v)
    return Table("Model", ("", "Value"), rows, words=2)


def _figures(record: EvalRecord) -> Table:
    rows: list[tuple[Cell, ...]] = []
    if record.sparsity is not None:
        for label, count in (
            ("Sparsity", record.sparsity.linear),
            ("Sparsity (all parameters)", record.sparsity.total),
        ):
            if not count.known:
                continue
            of = f"{count.zeros:,} of {count.parameters:,} are zero"
            of = of if count.share is None else "counts not known"
            rows.append((Cell(label), Cell(format_percent(count.fraction)), Cell(of)))
    for corpus, found in record.perplexity.items():
        of = f"{found.windows:,} windows, {found.tokens:,} predicted tokens"
        of = of if found.windows else "windows not known"
        title = perplexity_title(corpus, found.seqlen)
        rows.append((Cell(title), Cell(PERPLEXITY.format(found.perplexity)), Cell(of)))
    for corpus, divergence in record.divergence.items():
        at_least = "at least " if divergence.kind == "top-k" else ""
        of = f"nats a token, from {divergence.reference_name}; {divergence.tokens:,} tokens"
        value = at_least + KL.format(divergence.mean)
        rows.append((Cell(f"{corpus_title(corpus)} KL divergence"), Cell(value), Cell(of)))
    for corpus, kept in record.topk.items():
        label = f"{corpus_title(corpus)} log-probabilities kept"
        of = f"{format_bytes(kept.bytes)}, {format_percent(kept.covered)} of the probability"
        rows.append((Cell(label), Cell(f"top {kept.k}"), Cell(of)))
    if record.mean_accuracy is not None:
        n = sum(not task.group for task in record.tasks.values())
        of = f"plain mean over {n} tasks" if n != 1 else "of 1 task"
        rows.append((Cell("Mean accuracy"), Cell(ACC.format(record.mean_accuracy)), Cell(of)))
    return Table("Summary", ("Figure", "Value", "Of"), tuple(rows), words=3)


def _tasks(record: EvalRecord) -> Table:
    rows = []
    for name in ordered_tasks(record):
        task = record.tasks[name]
        for key in _primary_first(task):
            metric = task_metric(key, task.higher_is_better.get(key))
            stderr = task.stderr.get(key)
            rows.append(
                (
                    Cell(name),
                    Cell(key),
                    Cell(metric.format(task.metrics[key])),
                    Cell(_plus_minus(metric, stderr)),
                    Cell(f"{task.n:,}" if task.n else "not known"),
                )
            )
    header = ("Task", "Metric", "Value", "Standard error", "Documents")
    return Table("Task Results", header, tuple(rows), words=2)


def _primary_first(task: TaskResult) -> list[str]:
    return sorted(task.metrics, key=lambda key: (key != task.primary, key))


def _plus_minus(metric: Metric, stderr: float | None) -> str:
    if stderr is None or not math.isfinite(stderr):
        return ""
    return f"\u00b1{metric.format(stderr)}"


def _kinds(record: EvalRecord) -> Table:
    if record.sparsity is None or not record.sparsity.linear.zeros:
        rows: tuple[tuple[Cell, ...], ...] = ()
    else:
        rows = tuple(
            (
                Cell(kind),
                Cell(format_percent(count.fraction)),
                Cell(f"{count.zeros:,}"),
                Cell(f"{count.parameters:,}"),
            )
            for kind, count in record.sparsity.kinds.items()
        )
    return Table("Sparsity by Layer and Kind", ("Kind", "Sparsity", "Zeros", "Parameters"), rows)


def _how(record: EvalRecord) -> Table:
    protocol, provenance = record.protocol, record.provenance
    facts = {
        "Command": provenance.command,
        "Limit": "none" if protocol.limit is None else str(protocol.limit),
        "Few-shot examples": (
            "each task's default" if protocol.num_fewshot is None else str(protocol.num_fewshot)
        ),
        "Batch size": protocol.batch_size,
        "Scorer": protocol.scorer or "",
        "Seed": str(protocol.seed),
        "Rows came from": provenance.data_source,
        "Hardware": ", ".join(f"{k} {v}" for k, v in provenance.hardware.items()),
        "Packages": ", ".join(f"{k} {v}" for k, v in provenance.packages.items()),
        "Times": ", ".join(f"{k} {format_duration(v)}" for k, v in provenance.timings.items()),
        "Git commit": provenance.git_commit or "",
        "Numbers taken from": provenance.reused_from or "",
    }
    rows = tuple((Cell(k), Cell(v)) for k, v in facts.items() if v)
    return Table("How it was evaluated", ("", "Value"), rows, words=2)
