"""``prunescope sparsity``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunescope.cli import options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prunescope.cli.console import Output
    from prunescope.evaluate.progress import Progress
    from prunescope.evaluate.sparsity import CheckpointDrift
    from prunescope.records import EvalConfig

__all__ = ["sparsity_command"]


def sparsity_command(
    model: Annotated[str, typer.Argument(help="A model, as for 'eval'.")],
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            help="Another checkpoint: what became of MODEL's zeros in it, weight by weight.",
            show_default=False,
        ),
    ] = None,
    require_mask_kept: Annotated[
        bool,
        typer.Option(
            "--require-mask-kept", help="With --against: exit with 1 where a zero came back."
        ),
    ] = False,
    block: Annotated[int, typer.Option("--block", help="Rows and columns of a block.")] = 16,
    topk: Annotated[
        int, typer.Option("--topk", help="A block counts as 'at most k' up to this many weights.")
    ] = 10,
    log: Annotated[
        bool, typer.Option("--log", help="Keep the picture as an MLflow run of its own.")
    ] = False,
    cache_dir: options.CacheDir = None,
    trust_remote_code: options.TrustRemoteCode = False,
    experiment: options.Experiment = None,
    tracking_uri: options.TrackingUri = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Show what was pruned: zeros, N:M patterns, blocks, rows and columns of the stored weights.

    Safetensors are streamed; the model is not built.

    Examples:

        prunescope sparsity ./out/wanda-2-4

        prunescope sparsity ./out/three-tier --block 16 --topk 10 --json

        prunescope sparsity ./out/wanda-2-4 --against ./out/finetuned --require-mask-kept
    """
    from prunescope.cli.console import Output
    from prunescope.errors import SettingError
    from prunescope.evaluate.sparsity import drift_report, sparsity_report
    from prunescope.metrics import format_percent
    from prunescope.records import EvalConfig

    output = Output(as_json, quiet)
    if require_mask_kept and against is None:
        raise SettingError(
            "--require-mask-kept needs a checkpoint to compare with", hint="Name it with --against"
        )
    config = EvalConfig(
        model=model,
        device="cpu",
        cache_dir=str(cache_dir) if cache_dir else None,
        trust_remote_code=trust_remote_code,
        skip=frozenset({"perplexity", "tasks"}),
        block=block,
        topk=topk,
    )
    if against is not None:
        with output.progress() as progress:
            drift = _drift(config, against, progress)
        output.show(
            lambda: drift_report(drift, first=model, second=str(against)),
            document=lambda: _drift_dict(drift),
            essential=lambda: "mask kept" if drift.mask_kept is True else "mask not kept",
        )
        if require_mask_kept and drift.mask_kept is not True:
            raise typer.Exit(1)
        return
    if log:
        _log(config, experiment, tracking_uri, output)
    with output.progress() as progress:
        result = _measure(config, progress)
    output.show(
        lambda: sparsity_report(result, title=model),
        document=lambda: result.model_dump(mode="json"),
        essential=lambda: format_percent(result.linear.fraction),
    )


def _tensors(
    config: EvalConfig, progress: Progress
) -> tuple[Iterator[tuple[str, Any]], dict[str, Any], int | None]:
    """The weights of a model, its config, and their size in bytes where it is known."""
    from prunescope.evaluate.checkpoint import iter_model, iter_tensors
    from prunescope.evaluate.loading import load_model, read_config, resolve_model

    resolved = resolve_model(config, progress)
    if resolved.kind == "gguf" or resolved.kind == "peft":
        loaded = load_model(resolved, config, progress)
        return iter_model(loaded.model), loaded.model.config.to_dict(), None
    size = sum(path.stat().st_size for path in resolved.files)
    return iter_tensors(resolved.files, resolved.kind), read_config(resolved), size


def _measure(config: EvalConfig, progress: Progress) -> Any:
    from prunescope.evaluate.sparsity import measure

    tensors, settings, size = _tensors(config, progress)
    progress.start("sparsity", "weights", total=size)
    found = measure(
        tensors,
        block=(config.block, config.block),
        topk=config.topk,
        config=settings,
        advance=progress.advance,
    )
    progress.finish()
    return found.result


def _drift(config: EvalConfig, against: str, progress: Progress) -> CheckpointDrift:
    from prunescope.evaluate.sparsity import measure_drift

    first, first_settings, size = _tensors(config, progress)
    second, second_settings, _ = _tensors(config.model_copy(update={"model": against}), progress)
    progress.start("sparsity", "drift", total=size)
    found = measure_drift(
        first,
        second,
        first_config=first_settings,
        second_config=second_settings,
        advance=progress.advance,
    )
    progress.finish()
    return found


def _log(
    config: EvalConfig, experiment: str | None, tracking_uri: str | None, output: Output
) -> None:
    from prunescope.cli.publishing import open_tracker
    from prunescope.cli.summary import print_outcome
    from prunescope.cli.workflow import evaluate_and_track
    from prunescope.records import Labels

    tracker = open_tracker(tracking_uri, options.DEFAULT_ROOT, experiment)
    with output.progress() as progress:
        outcome = evaluate_and_track(config, Labels(), tracker, progress)
    print_outcome(outcome, tracker, output, brief=True)


def _drift_dict(drift: CheckpointDrift) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "mask_kept": drift.mask_kept,
        "total": asdict(drift.total),
        "kinds": {kind: asdict(part) for kind, part in drift.by_kind().items()},
        "layers": {str(layer): asdict(part) for layer, part in drift.by_layer().items()},
        "shapes": [list(entry) for entry in drift.shapes],
        "only_first": list(drift.only_first),
        "only_second": list(drift.only_second),
    }
