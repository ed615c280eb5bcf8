"""The command line. It alone wires evaluating, tracking and comparing together.

Nothing heavy is imported here: each command imports what it needs when it runs, so that
``--help`` answers at once and ``compare`` never loads torch.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from prunescope.cli.interrupts import exit_code, stoppable
from prunescope.errors import PrunescopeError
from prunescope.redaction import redact

__all__ = ["app"]

# tqdm reads this when it is first imported; our own progress bars take its place.
os.environ.setdefault("TQDM_DISABLE", "1")


# typer keeps its own copy of click out of sight.
_UsageError: type[Any] = typer.BadParameter.__mro__[1]


class _Commands(TyperGroup):
    """Prints a user's mistake as one line and exits with code 2; a signal ends it cleanly."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # typer's own class
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a terminal without Δ or ± shows "?"
                stream.reconfigure(errors="replace")
        try:
            with stoppable():
                return super().invoke(ctx)
        except PrunescopeError as error:
            from prunescope.cli.console import print_error

            print_error(error)
            ctx.exit(2)
        except KeyboardInterrupt as stop:
            ctx.exit(exit_code(stop))
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if isinstance(error, _UsageError):
                error.message = redact(error.message)
            elif _told_without_secrets():
                ctx.exit(1)
            raise


def _told_without_secrets() -> bool:
    """Print the traceback of an unexpected error where it holds a secret, without that."""
    import traceback

    text = traceback.format_exc()
    shown = redact(text)
    if shown != text:
        typer.echo(shown, err=True)
    return shown != text


app = typer.Typer(
    name="prunescope",
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "What did pruning cost? Evaluate an LLM, track each evaluation as an MLflow run, "
        "compare any two.\n\n"
        "Examples:\n\n"
        "    prunescope eval ./Llama-2-7b-hf --role original\n\n"
        "    prunescope eval ./out/wanda-50 --baseline latest:Llama-2-7b-hf --method wanda\n\n"
        "    prunescope compare latest:Llama-2-7b-hf latest:wanda-50\n"
    ),
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from prunescope import __version__

        typer.echo(f"prunescope {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    del version


def _register() -> None:
    from prunescope.cli import data
    from prunescope.cli.comparison import compare_command
    from prunescope.cli.demo import demo_command
    from prunescope.cli.doctor import doctor_command
    from prunescope.cli.evaluation import eval_command, pair_command
    from prunescope.cli.imports import export_command, import_command
    from prunescope.cli.leaderboard import leaderboard_command
    from prunescope.cli.listing import runs_command
    from prunescope.cli.refresh import refresh_command
    from prunescope.cli.sparsity import sparsity_command
    from prunescope.cli.sync import sync_command
    from prunescope.cli.ui import ui_command

    app.command("eval")(eval_command)
    app.command("pair")(pair_command)
    app.command("compare")(compare_command)
    app.command("runs")(runs_command)
    app.command("leaderboard")(leaderboard_command)
    app.command("sparsity")(sparsity_command)
    app.command("sync")(sync_command)
    app.command("refresh")(refresh_command)
    app.command("import")(import_command)
    app.command("export")(export_command)
    app.command("demo")(demo_command)
    app.command("doctor")(doctor_command)
    app.command("ui")(ui_command)
    app.add_typer(data.app, name="data")


_register()
