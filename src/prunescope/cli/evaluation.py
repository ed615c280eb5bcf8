"""``prunescope eval`` and ``prunescope pair``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunescope.cli import options
from prunescope.errors import SettingError

if TYPE_CHECKING:
    from prunescope.records import EvalConfig, Labels

__all__ = ["eval_command", "pair_command"]

_LABELS = "What the run says about itself"


def eval_command(
    model: Annotated[
        str,
        typer.Argument(
            help="Local folder, hub id (optionally @revision), GGUF file or PEFT adapter folder."
        ),
    ],
    tasks: options.Tasks = None,
    limit: options.Limit = None,
    num_fewshot: options.NumFewshot = None,
    batch_size: options.BatchSize = "auto",
    nsamples: options.Nsamples = None,
    seqlen: options.Seqlen = None,
    ppl_corpus: options.PplCorpus = "wikitext2",
    skip: options.Skip = None,
    kl_reference: options.KlReference = None,
    keep_topk: options.KeepTopk = None,
    data_dir: options.DataDir = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    cache_dir: options.CacheDir = None,
    tokenizer: options.Tokenizer = None,
    seed: options.Seed = 0,
    checkpoint_every: options.CheckpointEvery = 30.0,
    trust_remote_code: options.TrustRemoteCode = False,
    role: Annotated[
        str | None,
        typer.Option(
            "--role", help="original or pruned.", rich_help_panel=_LABELS, show_default=False
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            help="The original that this run is compared with: a run (id, name, latest:MODEL) "
            "or a model that was evaluated before.",
            rich_help_panel=_LABELS,
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="How it was pruned, for example wanda.",
            rich_help_panel=_LABELS,
            show_default=False,
        ),
    ] = None,
    target_sparsity: Annotated[
        float | None,
        typer.Option(
            "--target-sparsity",
            help="The sparsity that was aimed at, 0 to 1.",
            rich_help_panel=_LABELS,
            show_default=False,
        ),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            "--pattern",
            help="The N:M pattern that is claimed, for example 2:4; an alarm where it is not so.",
            rich_help_panel=_LABELS,
            show_default=False,
        ),
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(
            "--tag",
            help="key=value, kept as a tag of the run; repeatable.",
            rich_help_panel=_LABELS,
            show_default=False,
        ),
    ] = None,
    run_name: Annotated[
        str | None,
        typer.Option(
            "--run-name", help="Name of the run.", rich_help_panel=_LABELS, show_default=False
        ),
    ] = None,
    experiment: options.Experiment = None,
    tracking_uri: options.TrackingUri = None,
    logged_model: options.LoggedModel = False,
    force: options.Force = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Evaluate MODEL (sparsity, perplexity, zero-shot accuracy) and track it as an MLflow run.

    An evaluation that finished before is not run again: its run and numbers are printed.

    Examples:

        prunescope eval ./Llama-2-7b-hf --role original

        prunescope eval ./out/wanda-50 --baseline latest:Llama-2-7b-hf --method wanda

        prunescope eval ./out/wanda-50 --kl-reference latest:Llama-2-7b-hf

        prunescope eval facebook/opt-125m@main --tasks boolq,rte --limit 100 --skip perplexity
    """
    config = _build_config(model, locals())
    labels = _build_labels(role, method, target_sparsity, pattern, run_name, tag)

    from prunescope.cli.console import Output
    from prunescope.cli.publishing import open_tracker
    from prunescope.cli.reference import kl_reference as find_reference
    from prunescope.cli.summary import print_outcome
    from prunescope.cli.workflow import evaluate_and_track

    output = Output(as_json, quiet)
    tracker = open_tracker(
        tracking_uri, options.DEFAULT_ROOT, experiment, logged_model=logged_model
    )
    with find_reference(kl_reference, tracker) as found, output.progress() as progress:
        config = config.model_copy(update={"kl_reference": found})
        outcome = evaluate_and_track(
            config, labels, tracker, progress, baseline=baseline, force=force
        )
    print_outcome(outcome, tracker, output)


def pair_command(
    original: Annotated[str, typer.Argument(help="The original model, as for 'eval'.")],
    pruned: Annotated[str, typer.Argument(help="Its pruned variant, as for 'eval'.")],
    tasks: options.Tasks = None,
    limit: options.Limit = None,
    num_fewshot: options.NumFewshot = None,
    batch_size: options.BatchSize = "auto",
    nsamples: options.Nsamples = None,
    seqlen: options.Seqlen = None,
    ppl_corpus: options.PplCorpus = "wikitext2",
    skip: options.Skip = None,
    data_dir: options.DataDir = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    device_map: options.DeviceMap = None,
    cache_dir: options.CacheDir = None,
    tokenizer: options.Tokenizer = None,
    seed: options.Seed = 0,
    checkpoint_every: options.CheckpointEvery = 30.0,
    trust_remote_code: options.TrustRemoteCode = False,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="How the pruned model was pruned.",
            rich_help_panel=_LABELS,
            show_default=False,
        ),
    ] = None,
    target_sparsity: Annotated[
        float | None,
        typer.Option(
            "--target-sparsity",
            help="The sparsity that was aimed at, 0 to 1.",
            rich_help_panel=_LABELS,
            show_default=False,
        ),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            "--pattern",
            help="The N:M pattern that is claimed, for example 2:4; an alarm where it is not so.",
            rich_help_panel=_LABELS,
            show_default=False,
        ),
    ] = None,
    output_dir: options.OutputDir = Path("eval_results"),
    experiment: options.Experiment = None,
    tracking_uri: options.TrackingUri = None,
    logged_model: options.LoggedModel = False,
    force: options.Force = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Evaluate ORIGINAL and PRUNED, reusing what was evaluated before, and compare the two.

    Examples:

        prunescope pair ./Llama-2-7b-hf ./out/wanda-50 --tasks boolq,rte --nsamples 64

        prunescope pair meta-llama/Llama-2-7b-hf ./out/2-4 --method "2:4 wanda"
    """
    settings = locals()
    config = _build_config(original, settings)
    pruned_config = _build_config(pruned, settings)
    labels = _build_labels("original")
    pruned_labels = _build_labels("pruned", method, target_sparsity, pattern)

    from prunescope.cli.console import Output
    from prunescope.cli.pairing import run_pair

    run_pair(
        (config, labels),
        (pruned_config, pruned_labels),
        output_dir=output_dir,
        tracking_uri=tracking_uri,
        experiment=experiment,
        output=Output(as_json, quiet),
        logged_model=logged_model,
        force=force,
    )


def _build_config(model: str, settings: dict[str, Any]) -> EvalConfig:
    """The command line's texts as an :class:`~prunescope.records.EvalConfig`.

    Raises:
        SettingError: a text is not what its option takes.
    """
    from prunescope.records import DEFAULT_TASKS, EvalConfig

    device_map = settings["device_map"]
    if device_map not in (None, "auto"):
        raise SettingError(f"--device-map takes 'auto', found '{device_map}'")
    return EvalConfig(
        model=model,
        tokenizer=settings["tokenizer"],
        dtype=settings["dtype"],
        device=settings["device"],
        device_map=device_map,
        cache_dir=str(settings["cache_dir"]) if settings["cache_dir"] else None,
        trust_remote_code=settings["trust_remote_code"],
        seed=settings["seed"],
        skip=options.parse_skip(settings["skip"]),
        tasks=options.split_commas(settings["tasks"]) or DEFAULT_TASKS,
        limit=settings["limit"],
        num_fewshot=settings["num_fewshot"],
        batch_size=options.parse_batch_size(settings["batch_size"]),
        seqlen=options.parse_seqlen(settings["seqlen"]),
        nsamples=settings["nsamples"],
        ppl_corpus=settings["ppl_corpus"],
        keep_topk=settings.get("keep_topk"),
        checkpoint_every=settings["checkpoint_every"],
        data_dir=str(settings["data_dir"]) if settings["data_dir"] else None,
    )


def _build_labels(
    role: str | None,
    method: str | None = None,
    target_sparsity: float | None = None,
    pattern: str | None = None,
    run_name: str | None = None,
    tag: list[str] | None = None,
) -> Labels:
    from prunescope.cli.labels import check_labels

    return check_labels(role, method, target_sparsity, pattern, run_name, options.parse_tags(tag))
