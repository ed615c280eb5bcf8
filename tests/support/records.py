"""Example evaluations: records whose figures agree with the documents and tokens beside them.

An original and its pruned variant, one that broke with NaN, one taken at another window length,
and one that failed. The numbers are drawn from fixed seeds, so they never change.
"""

from __future__ import annotations

import json
import math
import random
import statistics
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prunescope.records import (
    DEFAULT_TASKS,
    Breakage,
    EvalRecord,
    FailureInfo,
    Labels,
    LayerSparsity,
    ModelInfo,
    PerplexityResult,
    Protocol,
    Provenance,
    Role,
    SparsityResult,
    TaskProtocol,
    TaskResult,
    TensorSparsity,
    ZeroCount,
    canonical_hash,
    samples_path,
    tokens_path,
    write_record,
)

__all__ = [
    "CORPUS",
    "DOCUMENTS",
    "EXAMPLES",
    "TASKS_WITH_NORM",
    "Example",
    "broken_record",
    "example",
    "failed_record",
    "original_record",
    "other_window_record",
    "pruned_record",
    "sample_rows",
    "samples_table",
    "token_arrays",
    "write_example",
]

CORPUS = "wikitext2"
DOCUMENTS = {
    "boolq": 60,
    "rte": 40,
    "hellaswag": 80,
    "winogrande": 50,
    "arc_easy": 60,
    "arc_challenge": 40,
    "openbookqa": 30,
}
TASKS_WITH_NORM = frozenset({"hellaswag", "arc_easy", "arc_challenge", "openbookqa"})
_CHOICES = {"boolq": 2, "rte": 2, "winogrande": 2}
_LAYERS = 2
_SHAPES = {
    "self_attn.q_proj": (32, 32),
    "self_attn.k_proj": (16, 32),
    "self_attn.v_proj": (16, 32),
    "self_attn.o_proj": (32, 32),
    "mlp.gate_proj": (64, 32),
    "mlp.up_proj": (64, 32),
    "mlp.down_proj": (32, 64),
}


@dataclass(frozen=True)
class Example:
    """What makes one example differ from the others."""

    name: str
    record_id: str
    sparsity: float = 0.0
    noise: float = 0.0
    """How far each loglikelihood is moved at random, nats: the harm that pruning did."""
    seqlen: int = 32
    windows: int = 6
    role: Role = "original"
    method: str | None = None
    nan_window: int | None = None
    nan_task: str | None = None
    minutes: int = 0
    """Start, minutes after the first example's."""


EXAMPLES = {
    "original": Example("SmolLM2-135M", "a" * 32),
    "pruned": Example(
        "SmolLM2-135M-2of4",
        "b" * 32,
        sparsity=0.5,
        noise=2.0,
        role="pruned",
        method="magnitude",
        minutes=10,
    ),
    "broken": Example(
        "SmolLM2-135M-ruin",
        "c" * 32,
        sparsity=0.9,
        noise=8.0,
        role="pruned",
        method="wanda",
        nan_window=3,
        nan_task="rte",
        minutes=20,
    ),
    "other-window": Example(
        "SmolLM2-135M-50",
        "d" * 32,
        sparsity=0.5,
        noise=1.0,
        seqlen=64,
        windows=3,
        role="pruned",
        method="sparsegpt",
        minutes=30,
    ),
}


# --- documents and tokens -----------------------------------------------------------------------


def sample_rows(which: Example, task: str) -> list[dict[str, Any]]:
    """The documents of ``task`` as the rows of ``samples/<task>.parquet``."""
    documents = random.Random(f"documents of {task}")
    harm = random.Random(f"{which.record_id} on {task}")
    return [_sample_row(which, task, index, documents, harm) for index in range(DOCUMENTS[task])]


def _sample_row(
    which: Example, task: str, index: int, documents: random.Random, harm: random.Random
) -> dict[str, Any]:
    count = _CHOICES.get(task, 4)
    context = f"Question {index} of {task}: which answer is right?\nAnswer:"
    choices = [f" answer {letter * documents.randint(1, 9)}" for letter in "ABCD"[:count]]
    gold = documents.randrange(count)
    true = [documents.gauss(-6.0, 1.5) + (1.2 if c == gold else 0.0) for c in range(count)]
    scores = [value + harm.gauss(0.0, which.noise) for value in true]
    if which.nan_task == task and index == 17:
        scores = [math.nan] * count
    lengths = [len(choice) for choice in choices]
    best = _argmax(scores)
    best_norm = _argmax([s / n for s, n in zip(scores, lengths, strict=True)])
    acc = float(best == gold)
    acc_norm = float(best_norm == gold) if task in TASKS_WITH_NORM else None
    per_document = {"acc": acc} if acc_norm is None else {"acc": acc, "acc_norm": acc_norm}
    return {
        "doc_id": index,
        "doc_sha256": canonical_hash([context, choices, gold]),
        "context": context,
        "choices": choices,
        "gold": gold,
        "loglikelihoods": scores,
        "lengths": lengths,
        "greedy": [c == best for c in range(count)],
        "predicted": best,
        "acc": acc,
        "acc_norm": acc_norm,
        "metrics": json.dumps(per_document),
        "response": None,
        "document": json.dumps({"question": context, "choices": choices}),
    }


def _argmax(values: list[float]) -> int:
    return max(range(len(values)), key=lambda i: -math.inf if math.isnan(values[i]) else values[i])


def samples_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as the Arrow table that lies in ``samples/<task>.parquet``."""
    types: dict[str, pa.DataType] = {
        "doc_id": pa.int64(),
        "doc_sha256": pa.string(),
        "context": pa.string(),
        "choices": pa.list_(pa.string()),
        "gold": pa.int64(),
        "loglikelihoods": pa.list_(pa.float64()),
        "lengths": pa.list_(pa.int64()),
        "greedy": pa.list_(pa.bool_()),
        "predicted": pa.int64(),
        "acc": pa.float64(),
        "acc_norm": pa.float64(),
        "metrics": pa.string(),
        "response": pa.string(),
        "document": pa.string(),
    }
    return pa.Table.from_pylist(rows, schema=pa.schema(list(types.items())))


def token_arrays(which: Example) -> dict[str, np.ndarray]:
    """The arrays of ``tokens/<corpus>.npz``; the first windows' tokens are the same text."""
    text = np.random.default_rng(7)
    shape = (which.windows, which.seqlen - 1)
    target = text.integers(0, 384, size=192).astype(np.int32)
    target = np.resize(target, shape).astype(np.int32)
    clean = np.resize(text.gamma(2.0, 1.6, size=192), shape)
    harm = np.random.default_rng(int(which.record_id[:4], 16))
    logprob = (-clean - np.abs(harm.normal(0.0, 0.3 * which.noise + 1e-9, shape))).astype(
        np.float32
    )
    if which.nan_window is not None:
        logprob[which.nan_window :] = np.nan
    top1 = np.where(np.nan_to_num(logprob, nan=-9.0) > -2.0, target, (target + 1) % 384)
    return {
        "logprob": logprob,
        "target": target,
        "top1": top1.astype(np.int32),
        "window_nll": -logprob.astype(np.float64).mean(axis=1),
    }


# --- records ------------------------------------------------------------------------------------


def _task_result(which: Example, task: str) -> TaskResult:
    rows = sample_rows(which, task)
    names = ["acc", "acc_norm"] if task in TASKS_WITH_NORM else ["acc"]
    metrics: dict[str, float] = {}
    stderr: dict[str, float] = {}
    full: dict[str, Any] = {"alias": task}
    for name in names:
        values = [row[name] for row in rows]
        metrics[name] = statistics.fmean(values)
        stderr[name] = statistics.stdev(values) / math.sqrt(len(values))
        full[f"{name},none"] = metrics[name]
        full[f"{name}_stderr,none"] = stderr[name]
    return TaskResult(
        task=task,
        version="1.0",
        n=len(rows),
        primary="acc",
        metrics=metrics,
        stderr=stderr,
        higher_is_better=dict.fromkeys(names, True),
        full_results=full,
        num_fewshot=0,
        documents_sha256=canonical_hash([row["doc_sha256"] for row in rows]),
    )


def _sparsity(which: Example) -> SparsityResult:
    tensors = tuple(
        TensorSparsity(
            name=f"model.layers.{layer}.{module}.weight",
            shape=shape,
            dtype="float32",
            zeros=int(which.sparsity * shape[0] * shape[1]),
            parameters=shape[0] * shape[1],
            layer=layer,
            kind=module.rpartition(".")[2].removesuffix("_proj"),
            linear=True,
            mask_sha256=canonical_hash([which.sparsity, layer, module]),
            nm_groups={"2:4": shape[0] * shape[1] // 4 if which.sparsity else 0},
            nm_total={"2:4": shape[0] * shape[1] // 4},
            nm_empty={"2:4": 0},
        )
        for layer in range(_LAYERS)
        for module, shape in _SHAPES.items()
    )
    embedding = TensorSparsity(
        name="model.embed_tokens.weight",
        shape=(384, 32),
        dtype="float32",
        zeros=0,
        parameters=384 * 32,
        kind="embedding",
    )
    kinds: dict[str, ZeroCount] = {}
    layers: dict[int, ZeroCount] = {}
    for tensor in tensors:
        count = ZeroCount(zeros=tensor.zeros, parameters=tensor.parameters)
        none = ZeroCount(zeros=0, parameters=0)
        kinds[tensor.kind or ""] = kinds.get(tensor.kind or "", none) + count
        layers[tensor.layer or 0] = layers.get(tensor.layer or 0, none) + count
    linear = sum(layers.values(), ZeroCount(zeros=0, parameters=0))
    return SparsityResult(
        linear=linear,
        total=linear + ZeroCount(zeros=0, parameters=embedding.parameters),
        layers=tuple(
            LayerSparsity(layer=index, zeros=count.zeros, parameters=count.parameters)
            for index, count in layers.items()
        ),
        kinds=kinds,
        pattern="2:4" if which.name.endswith("2of4") else None,
        tensors=(*tensors, embedding),
    )


def _perplexity(which: Example) -> PerplexityResult:
    nll = token_arrays(which)["window_nll"]
    mean = float(nll.mean())
    return PerplexityResult(
        corpus=CORPUS,
        corpus_sha256=canonical_hash("the text of the corpus"),
        perplexity=math.exp(mean),
        mean_nll=mean,
        stderr_nll=float(nll.std(ddof=1) / math.sqrt(len(nll))),
        seqlen=which.seqlen,
        windows=which.windows,
        tokens=which.windows * (which.seqlen - 1),
        corpus_tokens=which.windows * which.seqlen + 5,
    )


def _model(which: Example, sparsity: SparsityResult) -> ModelInfo:
    return ModelInfo(
        requested=f"models/{which.name}",
        name=which.name,
        kind="safetensors",
        path=f"/data/models/{which.name}",
        architecture="LlamaForCausalLM",
        parameters=sparsity.total.parameters,
        dtype="float32",
        stored_dtype="float32",
        bytes=4 * sparsity.total.parameters,
        max_length=256,
        vocab_size=384,
        source_sha256=canonical_hash(["source", which.name]),
        weights_sha256=canonical_hash(["weights", which.name]),
        mask_sha256=canonical_hash(["mask", which.name]),
        tokenizer_sha256=canonical_hash("tokenizer"),
    )


def _broken(which: Example) -> tuple[Breakage, ...]:
    found = []
    if which.nan_window is not None:
        where = f"{CORPUS} window {which.nan_window}"
        found.append(Breakage(stage="perplexity", where=where, what="NaN logits"))
    if which.nan_task is not None:
        where = f"{which.nan_task} document 17"
        found.append(Breakage(stage="tasks", where=where, what="NaN loglikelihood"))
    return tuple(found)


@lru_cache(maxsize=16)
def example(which: Example) -> EvalRecord:
    """The record of an example; its figures are the means of its documents and tokens."""
    sparsity = _sparsity(which)
    tasks = {task: _task_result(which, task) for task in DEFAULT_TASKS}
    model = _model(which, sparsity)
    protocol = Protocol(
        tasks={
            name: TaskProtocol(
                version=task.version,
                documents_sha256=task.documents_sha256 or "",
                n=task.n,
                num_fewshot=0,
            )
            for name, task in tasks.items()
        },
        requested_tasks=DEFAULT_TASKS,
        limit=None,
        batch_size="8",
        dtype="float32",
        device="cpu",
        scorer="prefix-tree",
        ppl_corpus=CORPUS,
        seqlen=which.seqlen,
    )
    start = datetime(2026, 3, 14, 9, 26, 53, 589793, tzinfo=UTC) + timedelta(minutes=which.minutes)
    return EvalRecord(
        record_id=which.record_id,
        record_key=canonical_hash([model.weights_sha256, protocol.model_dump(mode="json")]),
        status="finished",
        started_at=start,
        finished_at=start + timedelta(seconds=187.25),
        labels=Labels(role=which.role, method=which.method, target_sparsity=which.sparsity or None),
        model=model,
        protocol=protocol,
        sparsity=sparsity,
        perplexity={CORPUS: _perplexity(which)},
        tasks=tasks,
        broken=_broken(which),
        provenance=Provenance(
            packages={"lm_eval": "0.4.13", "torch": "2.13.0+cpu", "transformers": "5.23.0"},
            python="3.11.2",
            hardware={"cpu": "x86_64", "cores": "2", "memory": "24 GB"},
            host="node-7",
            user="ada",
            git_commit="0123456789abcdef0123456789abcdef01234567",
            command=f"prunescope eval models/{which.name}",
            timings={"load": 1.5, "sparsity": 0.25, "perplexity": 60.0, "tasks": 125.5},
            tokens_per_second=812.5,
        ),
    )


def original_record() -> EvalRecord:
    """A dense model, evaluated on the seven tasks and WikiText-2."""
    return example(EXAMPLES["original"])


def pruned_record() -> EvalRecord:
    """The 2:4 variant of the original: a visible loss, protocol unchanged."""
    return example(EXAMPLES["pruned"])


def broken_record() -> EvalRecord:
    """A variant whose logits turned NaN: perplexity NaN, one NaN document in ``rte``."""
    return example(EXAMPLES["broken"])


def other_window_record() -> EvalRecord:
    """A variant whose perplexity was taken at a window length of 64 tokens, not 32."""
    return example(EXAMPLES["other-window"])


def failed_record() -> EvalRecord:
    """An evaluation that stopped in the tasks stage, after its perplexity."""
    done = original_record()
    return done.model_copy(
        update={
            "record_id": "e" * 32,
            "record_key": None,
            "status": "failed",
            "tasks": {},
            "error": FailureInfo(type="MemoryError", message="out of memory", stage="tasks"),
        }
    )


def write_example(directory: Path, which: str | Example = "original") -> EvalRecord:
    """Write the whole record directory of an example, and return its record."""
    chosen = EXAMPLES[which] if isinstance(which, str) else which
    record = example(chosen)
    write_record(directory, record)
    for task in record.tasks:
        path = samples_path(directory, task)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(samples_table(sample_rows(chosen, task)), path, compression="zstd")
    path = tokens_path(directory, CORPUS)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **token_arrays(chosen))
    return record
