"""The Python API: what the commands do, as functions that return frozen values and print nothing.

    from prunescope import compare_runs, evaluate_model

    evaluate_model("./Llama-2-7b-hf", role="original")
    outcome = evaluate_model("./out/wanda-50", baseline="latest:Llama-2-7b-hf", method="wanda")
    print(outcome.record.mean_accuracy, outcome.run.run_id)

    comparison = compare_runs("latest:Llama-2-7b-hf", "latest:wanda-50")
    print(comparison.average.difference)

A mistake that can be mended is a :class:`~prunescope.errors.PrunescopeError`, as on the command
line. Relative paths and the embedded store in ``mlruns`` are taken from the working directory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from prunescope.cli.publishing import Outcome
from prunescope.cli.refreshing import Refreshed, refresh_runs
from prunescope.compare.delta import Comparison, compare_records
from prunescope.compare.gate import GateResult
from prunescope.compare.report import write_comparison
from prunescope.errors import PrunescopeError, SettingError
from prunescope.records import DEFAULT_TASKS, EvalConfig, EvalRecord, Labels, Role, RunRef, Stage
from prunescope.tracking.runs import StoredRun

if TYPE_CHECKING:
    from prunescope.evaluate.progress import Progress

__all__ = [
    "Comparison",
    "EvalRecord",
    "GateResult",
    "Outcome",
    "Pair",
    "PrunescopeError",
    "Refreshed",
    "RunRef",
    "Settings",
    "StoredRun",
    "check_gate",
    "compare_runs",
    "evaluate_model",
    "evaluate_pair",
    "find_runs",
    "read_run",
    "refresh_runs",
    "write_comparison",
]


class Settings(TypedDict, total=False):
    """How to evaluate: the options of ``prunescope eval``, with the same defaults."""

    tasks: str | Iterable[str]
    """lm-eval tasks, tags, groups or YAML files, as a sequence or separated by commas; the seven
    zero-shot tasks by default."""
    limit: int | None
    """Score only the first ``limit`` documents of each task."""
    num_fewshot: int | None
    """Examples in the prompt; the task's own number by default."""
    batch_size: int | Literal["auto"]
    """Rows at once; out of memory halves it."""
    nsamples: int | None
    """Score only the first ``nsamples`` perplexity windows."""
    seqlen: int | Literal["model"] | None
    """Perplexity window in tokens; by default 2048, or the model's maximum where that is less."""
    ppl_corpus: str
    """``wikitext2`` (default), ``c4``, ``boolq-passages`` or the path of a text file."""
    skip: Iterable[Stage]
    """Stages to leave out: ``sparsity``, ``perplexity``, ``tasks``."""
    keep_topk: int | None
    """Keep each perplexity token's largest log-probabilities, this many."""
    data_dir: str | Path | None
    """A folder made by ``prunescope data pull``: then no network is used."""
    dtype: str
    """``auto``, ``float32``, ``float16`` or ``bfloat16``."""
    device: str
    """``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``."""
    device_map: Literal["auto"] | None
    """``auto`` spreads the model over all GPUs."""
    cache_dir: str | Path | None
    """Where hub downloads go."""
    tokenizer: str | None
    """Folder or hub id of the tokenizer; the model's own by default."""
    seed: int
    """Seed of the few-shot examples."""
    checkpoint_every: float
    """Seconds between two writes of a task's answers, from which the same call goes on; 30."""
    trust_remote_code: bool
    """Run Python code that comes with the checkpoint."""


@dataclass(frozen=True)
class Pair:
    """An original, its pruned variant, and what the pruning cost."""

    original: Outcome
    pruned: Outcome
    comparison: Comparison


def evaluate_model(
    model: str | Path,
    *,
    role: Role | None = None,
    baseline: str | None = None,
    method: str | None = None,
    target_sparsity: float | None = None,
    pattern: str | None = None,
    run_name: str | None = None,
    tags: Mapping[str, str] | None = None,
    kl_reference: str | Path | None = None,
    tracking_uri: str | None = None,
    experiment: str | None = None,
    root: str | Path = "mlruns",
    logged_model: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    **settings: Unpack[Settings],
) -> Outcome:
    """Evaluate a model and track it as an MLflow run: ``prunescope eval``.

    An evaluation of the same weights with the same settings that finished before is not run
    again: its numbers come back with ``reused=True``. One that was interrupted goes on.

        from prunescope import evaluate_model

        outcome = evaluate_model("./Llama-2-7b-hf", role="original", tasks="boolq,rte", limit=100)
        print(outcome.record.tasks["boolq"].accuracy)

    Args:
        model: folder, hub id (optionally ``@revision``), GGUF file or PEFT adapter folder.
        role: ``original`` or ``pruned``.
        baseline: the original to compare with: a run (id, name, ``latest:MODEL``) or a model
            that was evaluated before.
        method: how it was pruned, for example ``wanda``.
        target_sparsity: the sparsity that was aimed at, a fraction from 0 to 1.
        pattern: the N:M pattern that is claimed, for example ``2:4``.
        run_name: name of the run; made from model and method by default.
        tags: kept as tags of the run.
        kl_reference: the original, a run or a model, to take the token-level KL divergence over
            the vocabulary from.
        tracking_uri: MLflow server or store; ``MLFLOW_TRACKING_URI``, else the embedded store.
        experiment: MLflow experiment, ``prunescope`` by default.
        root: folder of the embedded store and of the record directories.
        logged_model: make the model one of MLflow's logged models too.
        force: evaluate even what has finished before.
        progress: hears of each stage; silent by default.
        settings: see :class:`Settings`.

    Returns:
        The record, the run, and the comparison with the baseline where there is one. A server
        that cannot be reached is not an error: ``run`` is None, ``problem`` says why, and the
        record stays in ``directory`` for ``prunescope sync``.

    Raises:
        PrunescopeError: a mistake that can be mended.
    """
    from prunescope.cli.labels import check_labels
    from prunescope.cli.publishing import open_tracker
    from prunescope.cli.reference import kl_reference as find_reference
    from prunescope.cli.workflow import evaluate_and_track

    config = _config(model, settings)
    labels = check_labels(
        role=role,
        method=method,
        target_sparsity=target_sparsity,
        pattern=pattern,
        run_name=run_name,
        tags=tags,
    )
    tracker = open_tracker(tracking_uri, Path(root), experiment, logged_model=logged_model)
    reference = None if kl_reference is None else str(kl_reference)
    with find_reference(reference, tracker) as found:
        return evaluate_and_track(
            config.model_copy(update={"kl_reference": found}),
            labels,
            tracker,
            progress or _silent(),
            baseline=baseline,
            force=force,
        )


def evaluate_pair(
    original: str | Path,
    pruned: str | Path,
    *,
    method: str | None = None,
    target_sparsity: float | None = None,
    pattern: str | None = None,
    tracking_uri: str | None = None,
    experiment: str | None = None,
    root: str | Path = "mlruns",
    logged_model: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    **settings: Unpack[Settings],
) -> Pair:
    """Evaluate an original and its pruned variant alike, and compare them: ``prunescope pair``.

        from pathlib import Path

        from prunescope import evaluate_pair, write_comparison

        pair = evaluate_pair("./Llama-2-7b-hf", "./out/wanda-50", method="wanda")
        write_comparison(pair.comparison, Path("eval_results"))

    Args:
        original: the original model, as for :func:`evaluate_model`.
        pruned: its pruned variant.
        method: how it was pruned.
        target_sparsity: the sparsity that was aimed at, a fraction from 0 to 1.
        pattern: the N:M pattern that is claimed.
        tracking_uri: as for :func:`evaluate_model`.
        experiment: as for :func:`evaluate_model`.
        root: as for :func:`evaluate_model`.
        logged_model: as for :func:`evaluate_model`.
        force: as for :func:`evaluate_model`.
        progress: as for :func:`evaluate_model`.
        settings: see :class:`Settings`; they hold for both.

    Raises:
        PrunescopeError: a mistake that can be mended.
    """
    from prunescope.cli.labels import check_labels
    from prunescope.cli.publishing import open_tracker
    from prunescope.cli.workflow import evaluate_and_track

    configs = _config(original, settings), _config(pruned, settings)
    labels = check_labels(
        role="pruned", method=method, target_sparsity=target_sparsity, pattern=pattern
    )
    tracker = open_tracker(tracking_uri, Path(root), experiment, logged_model=logged_model)
    listener = progress or _silent()
    first = evaluate_and_track(configs[0], Labels(role="original"), tracker, listener, force=force)
    run = first.run.run_id if first.run is not None else first.record.record_id
    second = evaluate_and_track(configs[1], labels, tracker, listener, baseline=run, force=force)
    # Without a server there is no baseline, but the two records are here.
    comparison = second.comparison or compare_records(first.record, second.record)
    return Pair(first, second, comparison)


def compare_runs(
    original: str | Path,
    pruned: str | Path | None = None,
    *,
    margin: float = 1.0,
    allow_mismatch: bool = False,
    noise: str | Path | None = None,
    tracking_uri: str | None = None,
    root: str | Path = "mlruns",
) -> Comparison:
    """Compare two finished runs: ``prunescope compare``. Needs neither the models nor torch.

        from prunescope import check_gate, compare_runs

        comparison = compare_runs("latest:Llama-2-7b-hf", "latest:wanda-50")
        for row in comparison.tasks:
            print(row.label, row.original, row.pruned, row.difference, row.reason)
        print(check_gate(comparison, "ppl<=+5%, acc.mean>=-1pt").status)

    Args:
        original: a run (id or its beginning, ``runs:/ID``, name, ``latest:MODEL``) or a record
            directory. Alone: a run that is compared with its baseline.
        pruned: the other run, named likewise.
        margin: accuracy differences below this many points are of no consequence.
        allow_mismatch: take differences of rows that are not comparable too; they are marked,
            and are in no average or verdict.
        noise: a second run of the original: what changes without any pruning.
        tracking_uri: MLflow server or store; ``MLFLOW_TRACKING_URI``, else the embedded store.
        root: folder of the embedded store.

    Returns:
        Rows with ``original``, ``pruned``, ``difference`` (pruned - original) and ``relative``;
        where a row has no difference, its ``reason`` says why. ``analysis`` holds what the
        documents and tokens tell: intervals, tests, flips, divergences.

    Raises:
        PrunescopeError: no run answers to a name, or it did not finish.
    """
    from prunescope.cli.finder import RunFinder
    from prunescope.compare.analysis import compare_directories

    if not margin > 0:
        raise SettingError(f"margin is a number of points above 0, found {margin:g}")
    with RunFinder(tracking_uri, Path(root)) as finder:
        if pruned is None:
            second = finder.find(str(original))
            first = finder.find_baseline(second, str(original))
        else:
            first, second = finder.find(str(original)), finder.find(str(pruned))
        return compare_directories(
            first.directory,
            second.directory,
            margin=margin / 100,
            allow_mismatch=allow_mismatch,
            noise_dir=finder.find(str(noise)).directory if noise is not None else None,
            original_run=first.run,
            pruned_run=second.run,
        )


def check_gate(comparison: Comparison, conditions: str) -> GateResult:
    """Judge a comparison by conditions: ``prunescope compare --gate``.

        from prunescope import check_gate, compare_runs

        result = check_gate(compare_runs("latest:wanda-50"), "sparsity>=50%, acc.mean>=-1pt")
        for found in result.conditions:
            print(found.condition.text, found.status, found.observed, found.low, found.high)

    Args:
        comparison: from :func:`compare_runs`.
        conditions: separated by commas, or the path of a file with one a line.

    Returns:
        ``status`` is pass, fail or inconclusive; ``exit_code`` is 0, 1 or 3.

    Raises:
        SettingError: a condition cannot be understood.
    """
    from prunescope.compare.gate import evaluate_gate, read_gate

    return evaluate_gate(comparison, read_gate(conditions))


def find_runs(
    *,
    role: Role | None = None,
    model: str | None = None,
    method: str | None = None,
    experiment: str | None = None,
    limit: int | None = None,
    tracking_uri: str | None = None,
    root: str | Path = "mlruns",
) -> tuple[StoredRun, ...]:
    """Finished runs that answer to everything that is given, newest first: ``prunescope runs``.

        from prunescope import find_runs

        for run in find_runs(role="pruned", method="wanda"):
            print(run.ref.run_name, run.metrics["ppl/wikitext2"], run.metrics["acc/mean"])

    Args:
        role: ``original`` or ``pruned``.
        model: short name of the model.
        method: how it was pruned.
        experiment: name of an MLflow experiment; all of them by default.
        limit: at most this many.
        tracking_uri: MLflow server or store; ``MLFLOW_TRACKING_URI``, else the embedded store.
        root: folder of the embedded store.

    Returns:
        What the server indexes of each run: metrics, params and tags.

    Raises:
        TrackingError: the server cannot be reached, or refuses.
    """
    from prunescope.tracking.store import open_store

    store = open_store(tracking_uri, root=Path(root))
    return tuple(
        store.search(role=role, model=model, method=method, experiment=experiment, limit=limit)
    )


def read_run(
    run: str | Path, *, tracking_uri: str | None = None, root: str | Path = "mlruns"
) -> EvalRecord:
    """The whole record of a finished run: model, protocol, every figure, versions and hardware.

        from prunescope import read_run

        record = read_run("latest:wanda-50")
        print(record.sparsity.linear.fraction, record.perplexity["wikitext2"].perplexity)

    Args:
        run: named as for :func:`compare_runs`.
        tracking_uri: MLflow server or store; ``MLFLOW_TRACKING_URI``, else the embedded store.
        root: folder of the embedded store.

    Raises:
        PrunescopeError: no run answers to the name, or it did not finish.
    """
    from prunescope.cli.finder import RunFinder

    with RunFinder(tracking_uri, Path(root)) as finder:
        return finder.read(str(run))


def _config(model: str | Path, settings: Mapping[str, Any]) -> EvalConfig:
    """The settings as an :class:`~prunescope.records.EvalConfig`.

    Raises:
        SettingError: a value is not of its setting's kind.
        TypeError: there is no such setting.
    """
    from pydantic import ValidationError

    given = dict(settings)
    if unknown := sorted(set(given) - set(Settings.__annotations__)):
        raise TypeError(f"unknown setting {', '.join(unknown)}: see prunescope.api.Settings")
    tasks = given.pop("tasks", None)
    if isinstance(tasks, str):
        tasks = [name.strip() for name in tasks.split(",") if name.strip()]
    if isinstance(skip := given.pop("skip", ()), str):
        skip = [skip]
    for name in ("data_dir", "cache_dir"):
        if given.get(name) is not None:
            given[name] = str(given[name])
    try:
        return EvalConfig(
            model=str(model),
            tasks=tuple(dict.fromkeys(tasks)) if tasks else DEFAULT_TASKS,
            skip=frozenset(skip or ()),
            **given,
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SettingError(f"{where}: {first['msg']}, found {first['input']!r}") from error


def _silent() -> Progress:
    from prunescope.evaluate.progress import SilentProgress

    return SilentProgress()
