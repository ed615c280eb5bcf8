"""The first half of an evaluation: what decides its numbers, found without a forward pass.

So mistakes show at once, and an evaluation that finished before is recognised by its key.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunescope.errors import SettingError
from prunescope.evaluate import checkpoint, loading, sparsity
from prunescope.evaluate.data import Corpus, load_corpus
from prunescope.evaluate.perplexity import default_seqlen
from prunescope.evaluate.progress import Progress
from prunescope.evaluate.reference import Reference, Subject, find_reference
from prunescope.evaluate.tasks import LoadedTasks, load_tasks
from prunescope.evaluate.zeroshot import plan_tasks
from prunescope.records import (
    EvalConfig,
    EvalRecord,
    Labels,
    ModelInfo,
    Protocol,
    TaskProtocol,
    canonical_hash,
    new_record_id,
    utc_now,
    without_secrets,
)

__all__ = ["Prepared", "measure_weights", "prepare", "with_hashes"]


@dataclass(frozen=True)
class Prepared:
    """Everything that decides an evaluation's numbers, before any forward pass."""

    config: EvalConfig
    resolved: loading.ResolvedModel
    model: ModelInfo
    measurement: sparsity.Measurement | None
    """None where the weights exist only in memory (GGUF, merged adapters)."""
    tasks: LoadedTasks | None
    planned: Mapping[str, TaskProtocol]
    corpus: Corpus | None
    protocol: Protocol
    record_key: str
    timings: Mapping[str, float]
    reference: Reference | None = None
    """The original that token-level divergence is taken from."""

    def new_record(self, labels: Labels) -> EvalRecord:
        """The record of an evaluation that begins now."""
        record = EvalRecord(
            record_id=new_record_id(),
            record_key=self.record_key,
            status="running",
            started_at=utc_now(),
            labels=labels,
            model=self.model,
            protocol=self.protocol,
        )
        return without_secrets(record)  # the folder is named after the model


def prepare(config: EvalConfig, progress: Progress) -> Prepared:
    """Find everything that decides the numbers, and give it a key.

    Raises:
        PrunescopeError: whatever of the model, the tasks or the corpus cannot be had or read.
    """
    _check_settings(config)
    loading.resolve_device(config)  # an absent GPU shows before anything is downloaded
    timings: dict[str, float] = {}
    resolved = loading.resolve_model(config, progress)
    tokenizer = loading.load_tokenizer(resolved, config)
    model = loading.describe_model(resolved, None, config).model_copy(
        update={"tokenizer_sha256": loading.tokenizer_sha256(tokenizer)}
    )
    data_dir = Path(config.data_dir) if config.data_dir else None
    corpus = None
    seqlen = None
    if "perplexity" not in config.skip:
        seqlen = _window_length(config, model)
        corpus = load_corpus(config.ppl_corpus, data_dir=data_dir, cache_dir=config.cache_dir)
    tasks = None
    planned: dict[str, TaskProtocol] = {}
    if "tasks" not in config.skip:
        tasks = load_tasks(
            config.tasks,
            data_dir=data_dir,
            num_fewshot=config.num_fewshot,
            seed=config.seed,
            cache_dir=config.cache_dir,
        )
        planned = plan_tasks(tasks, limit=config.limit, seed=config.seed)
    began = time.perf_counter()
    measurement = _measure_files(config, resolved, model, progress)
    timings["sparsity"] = time.perf_counter() - began
    if measurement is not None:
        model = with_hashes(model, measurement)
    reference = None
    if corpus is not None and seqlen is not None:
        subject = Subject(model, tokenizer)
        reference = find_reference(config, subject, corpus, seqlen, progress)
    protocol = _protocol(config, model, planned, seqlen)
    return Prepared(
        config=config,
        resolved=resolved,
        model=model,
        measurement=measurement,
        tasks=tasks,
        planned=planned,
        corpus=corpus,
        protocol=protocol,
        record_key=_record_key(config, resolved, model, protocol, corpus, reference),
        timings=timings,
        reference=reference,
    )


def _check_settings(config: EvalConfig) -> None:
    for name, value in (
        ("--limit", config.limit),
        ("--nsamples", config.nsamples),
        ("--batch-size", config.batch_size),
        ("--keep-topk", config.keep_topk),
    ):
        if isinstance(value, int) and value < 1:
            raise SettingError(f"{name} must be at least 1, found {value}")
    if not config.checkpoint_every >= 0:
        raise SettingError(
            f"--checkpoint-every must be at least 0 seconds, found {config.checkpoint_every:g}"
        )
    if config.num_fewshot is not None and config.num_fewshot < 0:
        raise SettingError(f"--num-fewshot must be at least 0, found {config.num_fewshot}")
    if isinstance(config.seqlen, int) and config.seqlen < 2:
        raise SettingError(
            f"--seqlen must be at least 2 tokens, found {config.seqlen}",
            hint="2048 is what pruning papers use; 'model' takes the model's maximum",
        )
    if "load" in config.skip:
        raise SettingError(
            "the load stage cannot be skipped", hint="Skip sparsity, perplexity or tasks"
        )
    for name, wanted in (
        ("--kl-reference", config.kl_reference),
        ("--keep-topk", config.keep_topk),
    ):
        if wanted is not None and "perplexity" in config.skip:
            raise SettingError(
                f"{name} needs the perplexity stage, which is skipped",
                hint="Leave perplexity out of --skip",
            )
    if not config.tasks and "tasks" not in config.skip:
        raise SettingError("no task given", hint="Name one with --tasks, or use --skip tasks")


def _window_length(config: EvalConfig, model: ModelInfo) -> int:
    longest = model.max_length or 2048
    if config.seqlen == "model":
        return longest
    if config.seqlen is None:
        return default_seqlen(longest)
    if config.seqlen > longest:
        raise SettingError(
            f"--seqlen {config.seqlen} is more than the {longest} tokens that the model takes",
            hint=f"Use --seqlen {longest} or less, or --seqlen model",
        )
    return config.seqlen


def _measure_files(
    config: EvalConfig, resolved: loading.ResolvedModel, model: ModelInfo, progress: Progress
) -> sparsity.Measurement | None:
    if resolved.kind not in ("safetensors", "bin"):
        return None
    progress.start("sparsity", "weights", total=model.bytes)
    tensors = checkpoint.iter_tensors(resolved.files, resolved.kind)
    found = measure_weights(config, tensors, loading.read_config(resolved), progress)
    progress.finish()
    return found


def measure_weights(
    config: EvalConfig,
    tensors: Iterator[tuple[str, Any]],
    model_config: Mapping[str, Any],
    progress: Progress,
) -> sparsity.Measurement:
    """Sparsity and hashes of the weights, or the hashes alone where sparsity is skipped.

    Args:
        config: ``skip``, ``block`` and ``topk`` are read.
        tensors: name and weights, streamed or from memory.
        model_config: the model's ``config.json`` as a dictionary.
        progress: hears of the bytes that are done.
    """
    if "sparsity" in config.skip:
        return sparsity.hash_weights(tensors, config=model_config, advance=progress.advance)
    return sparsity.measure(
        tensors,
        block=(config.block, config.block),
        topk=config.topk,
        config=model_config,
        advance=progress.advance,
    )


def with_hashes(model: ModelInfo, measurement: sparsity.Measurement) -> ModelInfo:
    """The model with the hashes that measuring its weights gave."""
    return model.model_copy(
        update={
            "weights_sha256": measurement.weights_sha256,
            "mask_sha256": measurement.mask_sha256,
            "source_sha256": model.source_sha256 or measurement.weights_sha256,
        }
    )


def _protocol(
    config: EvalConfig,
    model: ModelInfo,
    planned: Mapping[str, TaskProtocol],
    seqlen: int | None,
) -> Protocol:
    with_perplexity = seqlen is not None
    return Protocol(
        tasks=dict(planned),
        requested_tasks=config.tasks if planned else (),
        limit=config.limit,
        num_fewshot=config.num_fewshot,
        batch_size=str(config.batch_size),
        dtype=model.dtype,
        device=config.device,
        ppl_corpus=config.ppl_corpus if with_perplexity else None,
        seqlen=seqlen,
        nsamples=config.nsamples if with_perplexity else None,
        seed=config.seed,
    )


def _record_key(
    config: EvalConfig,
    resolved: loading.ResolvedModel,
    model: ModelInfo,
    protocol: Protocol,
    corpus: Corpus | None,
    reference: Reference | None,
) -> str:
    # What was not asked for is left out, so that evaluations without it keep their keys.
    optional: dict[str, Any] = {}
    if reference is not None:
        optional["kl_reference"] = reference.identity
    if config.keep_topk is not None:
        optional["keep_topk"] = config.keep_topk
    # Batch size, device and package versions move a number by floating-point noise alone.
    return canonical_hash(
        {
            **optional,
            "weights": model.source_sha256,
            "config": loading.config_sha256(resolved),
            "tokenizer": model.tokenizer_sha256,
            "trust_remote_code": config.trust_remote_code,
            "dtype": protocol.dtype,
            "seed": protocol.seed,
            "sparsity": None if "sparsity" in config.skip else [config.block, config.topk],
            "tasks": {name: task.model_dump() for name, task in protocol.tasks.items()},
            "corpus": corpus and canonical_hash(corpus.text),
            "seqlen": protocol.seqlen,
            "nsamples": protocol.nsamples,
        }
    )
