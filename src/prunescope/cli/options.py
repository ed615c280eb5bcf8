"""Options that several commands share, and how their texts become values."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from prunescope.errors import SettingError

if TYPE_CHECKING:
    from prunescope.records import Stage

__all__ = [
    "DEFAULT_ROOT",
    "AsJson",
    "BatchSize",
    "CacheDir",
    "CheckpointEvery",
    "DataDir",
    "Device",
    "DeviceMap",
    "Dtype",
    "Experiment",
    "Force",
    "KeepTopk",
    "KlReference",
    "Limit",
    "LoggedModel",
    "Nsamples",
    "NumFewshot",
    "OutputDir",
    "PplCorpus",
    "Quiet",
    "Seed",
    "Seqlen",
    "Skip",
    "Tasks",
    "Tokenizer",
    "TrackingUri",
    "TrustRemoteCode",
    "parse_batch_size",
    "parse_seqlen",
    "parse_skip",
    "parse_tags",
    "split_commas",
]

DEFAULT_ROOT = Path("mlruns")
"""Where the embedded store and the record directories are, from the working directory."""

_MODEL = "Model"
_WHAT = "What to measure"
_TRACKING = "Tracking"
_OUTPUT = "For scripts"

Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--tasks",
        "-t",
        help="lm-eval task, tag or group names or YAML files; repeat or separate by commas. "
        "Default: boolq, rte, hellaswag, winogrande, arc_easy, arc_challenge, openbookqa.",
        rich_help_panel=_WHAT,
        show_default=False,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        help="Score only the first N documents of each task.",
        rich_help_panel=_WHAT,
        show_default="all",
    ),
]
NumFewshot = Annotated[
    int | None,
    typer.Option(
        "--num-fewshot",
        help="Examples in the prompt.",
        rich_help_panel=_WHAT,
        show_default="the task's own",
    ),
]
BatchSize = Annotated[
    str,
    typer.Option(
        "--batch-size",
        help="Rows at once, or 'auto'. Out of memory halves it and goes on.",
        rich_help_panel=_WHAT,
    ),
]
Nsamples = Annotated[
    int | None,
    typer.Option(
        "--nsamples",
        help="Score only the first N perplexity windows.",
        rich_help_panel=_WHAT,
        show_default="all",
    ),
]
Seqlen = Annotated[
    str | None,
    typer.Option(
        "--seqlen",
        help="Perplexity window in tokens, or 'model' for the model's maximum.",
        rich_help_panel=_WHAT,
        show_default="2048, or the model's maximum where that is less",
    ),
]
PplCorpus = Annotated[
    str,
    typer.Option(
        "--ppl-corpus",
        help="Perplexity corpus: wikitext2, c4, boolq-passages or a text file.",
        rich_help_panel=_WHAT,
    ),
]
KlReference = Annotated[
    str | None,
    typer.Option(
        "--kl-reference",
        help="The original, a run or a model: KL divergence from it over the vocabulary, token by "
        "token on the perplexity corpus. A run's model is loaded beside this one, or its kept "
        "top-k log-probabilities are used.",
        rich_help_panel=_WHAT,
        show_default=False,
    ),
]
CheckpointEvery = Annotated[
    float,
    typer.Option(
        "--checkpoint-every",
        help="Seconds between two writes of a task's answers, from which the same command goes on "
        "after an interruption.",
        rich_help_panel=_WHAT,
    ),
]
KeepTopk = Annotated[
    int | None,
    typer.Option(
        "--keep-topk",
        help="Keep each perplexity token's K largest log-probabilities in the run, so that later "
        "divergences from it need not load the model.",
        rich_help_panel=_WHAT,
        show_default=False,
    ),
]
Skip = Annotated[
    list[str] | None,
    typer.Option(
        "--skip",
        help="Stages to leave out: sparsity, perplexity, tasks; repeat or separate by commas.",
        rich_help_panel=_WHAT,
        show_default=False,
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="Folder made by 'prunescope data pull': then no network is used.",
        rich_help_panel=_WHAT,
        show_default=False,
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="auto (float32 on CPU, the checkpoint's own on GPU), float32, float16 or bfloat16.",
        rich_help_panel=_MODEL,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        help="auto (first GPU, else CPU), cpu, cuda, cuda:N or mps.",
        rich_help_panel=_MODEL,
    ),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        "--device-map",
        help="'auto' spreads the model over all GPUs when one is too small.",
        rich_help_panel=_MODEL,
        show_default=False,
    ),
]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        help="Where hub downloads go.",
        rich_help_panel=_MODEL,
        show_default="Hugging Face's own cache",
    ),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        help="Folder or hub id of the tokenizer.",
        rich_help_panel=_MODEL,
        show_default="the model's own",
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", help="Seed of the few-shot examples.", rich_help_panel=_MODEL)
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that comes with the checkpoint. The record says so.",
        rich_help_panel=_MODEL,
    ),
]
Experiment = Annotated[
    str | None,
    typer.Option(
        "--experiment",
        help="MLflow experiment that the run goes to.",
        rich_help_panel=_TRACKING,
        show_default="prunescope",
    ),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        help="MLflow tracking server or store.",
        rich_help_panel=_TRACKING,
        show_default="MLFLOW_TRACKING_URI, else the store in ./mlruns",
    ),
]
LoggedModel = Annotated[
    bool,
    typer.Option(
        "--logged-model",
        help="Make the model one of MLflow's logged models, whose page shows the figures.",
        rich_help_panel=_TRACKING,
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Evaluate again even where the same evaluation has finished before.",
        rich_help_panel=_TRACKING,
    ),
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON document on stdout in place of tables.",
        rich_help_panel=_OUTPUT,
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        help="Print only what a script goes on with, such as a run id or a path; warnings stay.",
        rich_help_panel=_OUTPUT,
    ),
]
OutputDir = Annotated[
    Path, typer.Option("--output-dir", "-o", help="Folder of the JSON and Markdown reports.")
]


def split_commas(values: Iterable[str] | None) -> tuple[str, ...]:
    """Values of an option that may be repeated or separated by commas, in order, each once."""
    parts = [part.strip() for value in values or () for part in value.split(",")]
    return tuple(dict.fromkeys(part for part in parts if part))


def parse_batch_size(text: str) -> int | Literal["auto"]:
    """``auto`` or a whole number from 1.

    Raises:
        SettingError: it is neither.
    """
    return "auto" if text == "auto" else _whole_number("--batch-size", text, "'auto'")


def parse_seqlen(text: str | None) -> int | Literal["model"] | None:
    """``model``, a number of tokens, or None for the default.

    Raises:
        SettingError: it is none of them.
    """
    if text is None or text == "model":
        return text  # type: ignore[return-value]  # mypy does not narrow str to Literal
    return _whole_number("--seqlen", text, "'model'")


def _whole_number(option: str, text: str, other: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise SettingError(f"{option} takes a whole number from 1 or {other}, found '{text}'")
    return value


def parse_skip(values: Iterable[str] | None) -> frozenset[Stage]:
    """Names of stages.

    Raises:
        SettingError: a name is none.
    """
    known: tuple[Stage, ...] = ("sparsity", "perplexity", "tasks")
    wanted = split_commas(values)
    for name in wanted:
        if name not in known:
            raise SettingError(f"--skip takes {', '.join(known)}; found '{name}'")
    return frozenset(stage for stage in known if stage in wanted)


def parse_tags(values: Iterable[str] | None) -> dict[str, str]:
    """``key=value`` texts.

    Raises:
        SettingError: a text has no ``=`` or no key.
    """
    tags = {}
    for text in values or ():
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise SettingError(f"--tag takes key=value, found '{text}'")
        tags[key.strip()] = value
    return tags
