"""``prunescope sync``."""

from __future__ import annotations

from typing import Annotated

import typer

from prunescope.cli import options

__all__ = ["sync_command"]


def sync_command(
    experiment: options.Experiment = None,
    tracking_uri: options.TrackingUri = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")
    ] = False,
) -> None:
    """Send the records under mlruns/records that the tracking server does not have yet.

    Examples:

        prunescope sync

        prunescope sync --tracking-uri http://mlflow.lab:5000 --dry-run
    """
    from prunescope.cli.console import stdout
    from prunescope.cli.publishing import Tracker, publish
    from prunescope.tracking.spool import pending
    from prunescope.tracking.store import open_store

    store = open_store(tracking_uri, root=options.DEFAULT_ROOT)
    tracker = Tracker(options.DEFAULT_ROOT, store, experiment)
    waiting = pending(options.DEFAULT_ROOT, store.uri)
    for directory in waiting:
        if dry_run:
            stdout().print(f"would send {directory}", soft_wrap=True)
            continue
        outcome = publish(directory, tracker)
        if outcome.problem is not None:
            raise outcome.problem
        if outcome.run is not None:
            where = outcome.run.url or outcome.run.run_id
            stdout().print(f"sent {directory.name}  {where}", soft_wrap=True)
    if not waiting:
        stdout().print("nothing to send: the server has every record")
