"""The command line (placeholder until the commands are wired)."""

import typer

app = typer.Typer()
