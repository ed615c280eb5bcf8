"""Results in the shape of the older script, and the records they would have had."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prunescope.metrics import metric_key
from prunescope.records import (
    EvalRecord,
    ModelInfo,
    PerplexityResult,
    Protocol,
    Provenance,
    SparsityResult,
    TaskResult,
    ZeroCount,
)

__all__ = ["LEGACY_FILE", "legacy_json", "legacy_record"]

LEGACY_FILE = Path(__file__).parents[1] / "data" / "legacy" / "comparison_20250314_092653.json"


def legacy_json() -> dict[str, Any]:
    """A result file in the shape that the older script wrote, its empty accuracies included."""
    read: dict[str, Any] = json.loads(LEGACY_FILE.read_text(encoding="utf-8"))
    return read


def legacy_record(side: str) -> EvalRecord:
    """One side of the file as a record: no documents, no versions, no tokens."""
    old = legacy_json()[side]
    tasks = {name: _task(name, entry["full_results"]) for name, entry in old["tasks"].items()}
    zeros = round(old["sparsity"] * 10**12)
    count = ZeroCount(zeros=zeros, parameters=10**12)
    return EvalRecord(
        record_id=side.ljust(32, "0"),
        status="finished",
        started_at=datetime(2025, 3, 14, 9, 26, 53, tzinfo=UTC),
        model=ModelInfo(
            requested=old["model_path"],
            name=old["model_name"],
            kind="safetensors",
            path=old["model_path"],
        ),
        protocol=Protocol(ppl_corpus="wikitext2"),
        sparsity=SparsityResult(linear=count, total=count),
        perplexity={
            "wikitext2": PerplexityResult(
                corpus="wikitext2",
                corpus_sha256="",
                perplexity=old["wikitext_ppl"],
                mean_nll=0.0,
                seqlen=4096,
                windows=0,
                tokens=0,
                corpus_tokens=0,
            )
        },
        tasks=tasks,
        provenance=Provenance(timings={"all": old["eval_time_seconds"]}, imported=True),
    )


def _task(name: str, full: dict[str, Any]) -> TaskResult:
    keys = {k: metric_key(k) for k in full if k != "alias"}
    metrics = {v: full[k] for k, v in keys.items() if "_stderr" not in v}
    stderr = {v.replace("_stderr", ""): full[k] for k, v in keys.items() if "_stderr" in v}
    return TaskResult(
        task=name,
        version="",
        n=0,
        primary="acc",
        metrics=metrics,
        stderr=stderr,
        full_results=full,
    )
