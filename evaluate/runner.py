"""One evaluation: from an :class:`~prunescope.records.EvalConfig` to a record directory.

It comes in two halves, with no state outside them. :func:`~prunescope.evaluate.prepare.prepare`
finds everything that decides the numbers; :func:`run` does the work and writes each stage's files
whole as soon as the stage ends.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunescope.errors import OutputError
from prunescope.evaluate import checkpoint, loading, sparsity
from prunescope.evaluate.data import Corpus
from prunescope.evaluate.perplexity import WindowWatcher, measure_perplexity
from prunescope.evaluate.prepare import Prepared, measure_weights, with_hashes
from prunescope.evaluate.progress import Progress
from prunescope.evaluate.provenance import collect_provenance
from prunescope.evaluate.reference import (
    divergence_result,
    kept_topk,
    open_keeper,
    open_reference,
)
from prunescope.evaluate.tasks import LoadedTasks
from prunescope.evaluate.zeroshot import aggregate_groups, run_task
from prunescope.records import (
    Breakage,
    EvalRecord,
    FailureInfo,
    ModelInfo,
    Provenance,
    Stage,
    read_record,
    samples_path,
    tokens_path,
    topk_path,
    utc_now,
    write_file,
    write_record,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["run"]

_UNFINISHED = ".unfinished.json"
"""What is known of a task that has not ended; not part of the record."""


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
        self.record = write_record(self.directory, self.record)

    def mark_broken(self, breakage: Breakage | None) -> None:
        if breakage is not None:
            self.say(f"broken: {breakage.what} first seen at {breakage.where}")
            self.update(broken=(*self.record.broken, breakage))


def run(
    prepared: Prepared,
    record: EvalRecord,
    directory: Path,
    progress: Progress,
    *,
    interrupted: Path | None = None,
) -> EvalRecord:
    """Do the work, and keep in ``directory`` whatever has been found so far.

    Args:
        prepared: from :func:`~prunescope.evaluate.prepare.prepare`.
        record: from :meth:`~prunescope.evaluate.prepare.Prepared.new_record`.
        directory: the record directory; made where it is missing.
        progress: hears of each stage.
        interrupted: the record directory of an evaluation with the same key that did not finish,
            perhaps ``directory`` itself; its perplexity, its tasks and its answers to the task in
            hand are taken over.

    Returns:
        The finished record, as ``record.json`` holds it.

    Raises:
        PrunescopeError: a stage cannot go on. The record says so and keeps what was found.
    """
    provenance = collect_provenance().model_copy(
        update={"data_source": prepared.tasks.source if prepared.tasks else "folder"}
    )
    state = _Run(directory, record, progress, provenance, dict(prepared.timings))
    # What is taken over is in the first record that is written: no moment without it.
    state.update(**_taken_over(interrupted, state) if interrupted is not None else {})
    try:
        _stages(prepared, state)
    except BaseException as error:
        failure = FailureInfo(type=type(error).__name__, message=str(error) or repr(error))
        # A full disk must not hide what went wrong first.
        with contextlib.suppress(OutputError):
            state.update(status="failed", finished_at=utc_now(), error=failure)
        raise
    state.update(status="finished", finished_at=utc_now())
    with contextlib.suppress(OSError):
        (directory / _UNFINISHED).unlink(missing_ok=True)
    return state.record


def _taken_over(interrupted: Path, state: _Run) -> dict[str, Any]:
    """What an interrupted evaluation with the same key has finished; its files are copied."""
    known = read_record(interrupted)
    if known.record_key != state.record.record_key:
        raise RuntimeError(f"{interrupted} is another evaluation")
    kept: dict[str, dict[str, Any]] = {"perplexity": {}, "tasks": {}}
    for part, results, path_of in (
        ("perplexity", known.perplexity, tokens_path),
        ("tasks", known.tasks, samples_path),
    ):
        for name, result in results.items():
            source = path_of(interrupted, name)
            if source.is_file():
                write_file(path_of(state.directory, name), source.read_bytes())
                kept[part][name] = result
    unfinished = interrupted / _UNFINISHED
    if unfinished.is_file():
        write_file(state.directory / _UNFINISHED, unfinished.read_bytes())
    kept["divergence"] = {c: r for c, r in known.divergence.items() if c in kept["perplexity"]}
    kept["topk"] = {}
    for corpus, topk in known.topk.items():
        source = topk_path(interrupted, corpus)
        if source.is_file():
            write_file(topk_path(state.directory, corpus), source.read_bytes())
            kept["topk"][corpus] = topk
        else:
            kept["perplexity"].pop(corpus, None)
    finished = [*kept["perplexity"], *kept["tasks"]]
    if not finished:
        return {}
    state.say(f"taken over from the interrupted evaluation: {', '.join(finished)}")
    broken = tuple(b for b in known.broken if b.stage in ("perplexity", "tasks"))
    return {"broken": broken, **kept}


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
            device = {"device": str(loaded.device)}
            state.record = state.record.model_copy(
                update={
                    "model": _merge_info(state.record.model, described),
                    "protocol": state.record.protocol.model_copy(update=device),
                }
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
        measurement = measure_weights(
            prepared.config,
            checkpoint.iter_model(loaded.model),
            loaded.model.config.to_dict(),
            state,
        )
        state.finish()
        model = with_hashes(model, measurement)
    result = None if "sparsity" in prepared.config.skip else measurement.result
    state.update(model=model, sparsity=result)
    if result is not None:
        sparsity.write_pictures(result, state.directory / "plots")
    if measurement.nonfinite:
        state.mark_broken(
            Breakage(
                stage="sparsity", where=measurement.nonfinite[0], what="NaN or infinite weights"
            )
        )


def _perplexity_stage(
    prepared: Prepared, corpus: Corpus, loaded: loading.LoadedModel, state: _Run
) -> None:
    if corpus.name in state.record.perplexity:
        return
    if prepared.protocol.seqlen is None:
        raise RuntimeError("perplexity needs a window length")
    original = prepared.reference
    reference = None if original is None else open_reference(original, corpus.name, state)
    keeper = open_keeper(prepared.config.keep_topk, loaded, corpus, prepared.protocol, state)
    watchers: list[WindowWatcher] = [w for w in (reference, keeper) if w is not None]
    measured = measure_perplexity(
        loaded,
        corpus.text,
        corpus=corpus.name,
        seqlen=prepared.protocol.seqlen,
        nsamples=prepared.config.nsamples,
        batch_size=prepared.config.batch_size,
        progress=state,
        watchers=watchers,
    )
    _write_arrays(tokens_path(state.directory, corpus.name), measured.arrays)
    found: dict[str, Any] = {"perplexity": {corpus.name: measured.result}}
    if original is not None and reference is not None:
        result = divergence_result(original, corpus.name, reference.result())
        found["divergence"] = {corpus.name: result}
    if keeper is not None:
        path = topk_path(state.directory, corpus.name)
        arrays = keeper.arrays()
        _write_arrays(path, arrays)
        found["topk"] = {corpus.name: kept_topk(arrays, path.stat().st_size)}
    state.update(**found)
    state.mark_broken(measured.broken)


def _tasks_stage(
    prepared: Prepared, tasks: LoadedTasks, loaded: loading.LoadedModel, state: _Run
) -> None:
    from prunescope.evaluate.scoring import build_scorer
    from prunescope.evaluate.scoring.kept import KeptAnswers

    began = time.perf_counter()
    kept = KeptAnswers(
        state.directory / _UNFINISHED, prepared.record_key, prepared.config.checkpoint_every
    )
    lm = build_scorer(loaded, batch_size=prepared.config.batch_size, progress=state, kept=kept)
    for name, planned in prepared.planned.items():
        if name in state.record.tasks:
            continue
        with kept.of_task(name):
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
    if lm.tokens_scored:
        state.provenance = state.provenance.model_copy(
            update={"tokens_per_second": lm.tokens_scored / seconds}
        )
    state.update(
        protocol=state.record.protocol.model_copy(update={"scorer": lm.scorer_name}),
    )


def _write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    import numpy as np

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_file(path, buffer.getvalue())


def _write_frame(path: Path, frame: pd.DataFrame) -> None:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, compression="zstd", index=False)
    write_file(path, buffer.getvalue())
