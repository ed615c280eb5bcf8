"""One evaluation: from an :class:`~prunescope.records.EvalConfig` to a record directory.

It comes in two halves, with no state outside them. :func:`prepare` finds everything that decides
the numbers (weights, tokenizer, documents, corpus) without a forward pass, so that mistakes show
at once and an evaluation that finished before is recognised by its key. :func:`run` does the
work and writes each stage's files whole as soon as the stage ends.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunescope.errors import SettingError
from prunescope.evaluate import checkpoint, loading, sparsity
from prunescope.evaluate.data import Corpus, load_corpus
from prunescope.evaluate.perplexity import default_seqlen, measure_perplexity
from prunescope.evaluate.progress import Progress
from prunescope.evaluate.provenance import collect_provenance
from prunescope.evaluate.tasks import LoadedTasks, load_tasks
from prunescope.evaluate.zeroshot import aggregate_groups, plan_tasks, run_task
from prunescope.records import (
    Breakage,
    EvalConfig,
    EvalRecord,
    FailureInfo,
    Labels,
    ModelInfo,
    Protocol,
    Provenance,
    Stage,
    TaskProtocol,
    canonical_hash,
    new_record_id,
    samples_path,
    tokens_path,
    utc_now,
    write_file,
    write_record,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Prepared", "prepare", "run"]


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

    def new_record(self, labels: Labels) -> EvalRecord:
        """The record of an evaluation that begins now."""
        return EvalRecord(
            record_id=new_record_id(),
            record_key=self.record_key,
            status="running",
            started_at=utc_now(),
            labels=labels,
            model=self.model,
            protocol=self.protocol,
        )


# --- the first half: what decides the numbers ---------------------------------------------------


def prepare(config: EvalConfig, progress: Progress) -> Prepared:
    """Find everything that decides the numbers, and give it a key.

    Raises:
        PrunescopeError: whatever of the model, the tasks or the corpus cannot be had or read.
    """
    _check_settings(config)
    timings: dict[str, float] = {}
    resolved = loading.resolve_model(config)
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
        model = _with_hashes(model, measurement)
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
        record_key=_record_key(config, resolved, model, protocol, corpus),
        timings=timings,
    )


def _check_settings(config: EvalConfig) -> None:
    for name, value in (
        ("--limit", config.limit),
        ("--nsamples", config.nsamples),
        ("--batch-size", config.batch_size),
    ):
        if isinstance(value, int) and value < 1:
            raise SettingError(f"{name} must be at least 1, found {value}")
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
    found = _measure(config, tensors, loading.read_config(resolved), progress)
    progress.finish()
    return found


def _measure(
    config: EvalConfig,
    tensors: Iterator[tuple[str, Any]],
    model_config: Mapping[str, Any],
    progress: Progress,
) -> sparsity.Measurement:
    take = sparsity.hash_weights if "sparsity" in config.skip else sparsity.measure
    return take(tensors, config=model_config, advance=progress.advance)


def _with_hashes(model: ModelInfo, measurement: sparsity.Measurement) -> ModelInfo:
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
) -> str:
    # Batch size, device and package versions move a number by floating-point noise alone.
    return canonical_hash(
        {
            "weights": model.source_sha256,
            "config": loading.config_sha256(resolved),
            "tokenizer": model.tokenizer_sha256,
            "trust_remote_code": config.trust_remote_code,
            "dtype": protocol.dtype,
            "seed": protocol.seed,
            "sparsity": "sparsity" not in config.skip,
            "tasks": {name: task.model_dump() for name, task in protocol.tasks.items()},
            "corpus": corpus and canonical_hash(corpus.text),
            "seqlen": protocol.seqlen,
            "nsamples": protocol.nsamples,
        }
    )


# --- the second half: the work ------------------------------------------------------------------


@dataclass
class _Run:
    """What has been found so far; every stage adds to it and writes it down."""

    directory: Path
    record: EvalRecord
    progress: Progress
    provenance: Provenance
    timings: dict[str, float]
    notes: list[str] = field(default_factory=list)

    # The Progress of the stages: everything said is kept for the record as well.
    def start(self, stage: Stage, description: str, total: float | None) -> None:
        self.progress.start(stage, description, total)

    def advance(self, amount: float) -> None:
        self.progress.advance(amount)

    def finish(self) -> None:
        self.progress.finish()

    def say(self, message: str) -> None:
        self.notes.append(message)
        self.progress.say(message)

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - began
        self.update()

    def update(self, **changes: Any) -> None:
        provenance = self.provenance.model_copy(
            update={"timings": dict(self.timings), "notes": tuple(self.notes)}
        )
        self.record = self.record.model_copy(update={"provenance": provenance, **changes})
        write_record(self.directory, self.record)

    def mark_broken(self, breakage: Breakage | None) -> None:
        if breakage is not None:
            self.say(f"broken: {breakage.what} first seen at {breakage.where}")
            self.update(broken=(*self.record.broken, breakage))


def run(
    prepared: Prepared,
    record: EvalRecord,
    directory: Path,
    progress: Progress,
) -> EvalRecord:
    """Do the work, and keep in ``directory`` whatever has been found so far.

    Args:
        prepared: from :func:`prepare`.
        record: from :meth:`Prepared.new_record`.
        directory: the record directory; made where it is missing.
        progress: hears of each stage.

    Returns:
        The finished record, as ``record.json`` holds it.

    Raises:
        PrunescopeError: a stage cannot go on. The record says so and keeps what was found.
    """
    provenance = collect_provenance().model_copy(
        update={"data_source": prepared.tasks.source if prepared.tasks else "folder"}
    )
    state = _Run(directory, record, progress, provenance, dict(prepared.timings))
    state.update()
    try:
        _stages(prepared, state)
    except BaseException as error:
        failure = FailureInfo(type=type(error).__name__, message=str(error) or repr(error))
        state.update(status="failed", finished_at=utc_now(), error=failure)
        raise
    state.update(status="finished", finished_at=utc_now())
    return state.record


def _stages(prepared: Prepared, state: _Run) -> None:
    config = prepared.config
    loaded = None
    # Sparsity alone is read from the files, unless the weights exist only in memory.
    if not {"perplexity", "tasks"} <= config.skip or prepared.measurement is None:
        with state.stage("load"):
            loaded = loading.load_model(prepared.resolved, config, state)
            for note in loaded.notes:
                state.say(note)
            described = loading.describe_model(prepared.resolved, loaded, config)
            state.record = state.record.model_copy(
                update={"model": _merge_info(state.record.model, described)}
            )
    with state.stage("sparsity"):
        _sparsity_stage(prepared, loaded, state)
    if loaded is not None and prepared.corpus is not None:
        with state.stage("perplexity"):
            _perplexity_stage(prepared, prepared.corpus, loaded, state)
    if loaded is not None and prepared.tasks is not None:
        with state.stage("tasks"):
            _tasks_stage(prepared, prepared.tasks, loaded, state)


def _merge_info(known: ModelInfo, described: ModelInfo) -> ModelInfo:
    """What loading found out, over what was known before; None never replaces a value."""
    changes = {
        name: value
        for name, value in described.model_dump(exclude_none=True).items()
        if name not in ("weights_sha256", "mask_sha256", "tokenizer_sha256")
    }
    return known.model_copy(update=changes)


def _sparsity_stage(prepared: Prepared, loaded: loading.LoadedModel | None, state: _Run) -> None:
    measurement = prepared.measurement
    model = state.record.model
    if measurement is None:
        if loaded is None:  # _stages loads whatever has no measurement yet
            raise RuntimeError("sparsity of a model in memory needs the model")
        state.start("sparsity", "weights", total=model.bytes)
        measurement = _measure(
            prepared.config,
            checkpoint.iter_model(loaded.model),
            loaded.model.config.to_dict(),
            state,
        )
        state.finish()
        model = _with_hashes(model, measurement)
    result = None if "sparsity" in prepared.config.skip else measurement.result
    state.update(model=model, sparsity=result)
    if measurement.nonfinite:
        state.mark_broken(
            Breakage(
                stage="sparsity", where=measurement.nonfinite[0], what="NaN or infinite weights"
            )
        )


def _perplexity_stage(
    prepared: Prepared, corpus: Corpus, loaded: loading.LoadedModel, state: _Run
) -> None:
    if prepared.protocol.seqlen is None:
        raise RuntimeError("perplexity needs a window length")
    measured = measure_perplexity(
        loaded,
        corpus.text,
        corpus=corpus.name,
        seqlen=prepared.protocol.seqlen,
        nsamples=prepared.config.nsamples,
        batch_size=prepared.config.batch_size,
        progress=state,
    )
    _write_arrays(tokens_path(state.directory, corpus.name), measured.arrays)
    state.update(perplexity={corpus.name: measured.result})
    state.mark_broken(measured.broken)


def _tasks_stage(
    prepared: Prepared, tasks: LoadedTasks, loaded: loading.LoadedModel, state: _Run
) -> None:
    from prunescope.evaluate.scoring import build_scorer

    began = time.perf_counter()
    lm = build_scorer(loaded, batch_size=prepared.config.batch_size, progress=state)
    for name, planned in prepared.planned.items():
        outcome = run_task(
            name,
            tasks,
            lm,
            limit=prepared.config.limit,
            seed=prepared.config.seed,
            planned=planned,
            progress=state,
        )
        _write_frame(samples_path(state.directory, name), outcome.samples)
        state.update(tasks={**state.record.tasks, name: outcome.result})
        state.mark_broken(outcome.broken)
    for group in aggregate_groups(tasks, state.record.tasks):
        state.update(tasks={**state.record.tasks, group.task: group})
    seconds = time.perf_counter() - began
    state.provenance = state.provenance.model_copy(
        update={"tokens_per_second": lm.tokens_scored / seconds}
    )
    state.update(
        protocol=state.record.protocol.model_copy(update={"scorer": lm.scorer_name}),
    )


def _write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    import io

    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_file(path, buffer.getvalue())


def _write_frame(path: Path, frame: pd.DataFrame) -> None:
    import io

    buffer = io.BytesIO()
    frame.to_parquet(buffer, compression="zstd", index=False)
    write_file(path, buffer.getvalue())
