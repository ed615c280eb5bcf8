"""``prunescope refresh``."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunescope.cli import options
from prunescope.errors import RunNotFoundError, TrackingError

if TYPE_CHECKING:
    from prunescope.cli.refreshing import Refreshed

__all__ = ["refresh_command"]


def refresh_command(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Run id or its beginning, runs:/ID, run name or latest:MODEL. "
            "Default: every finished run of a pruned model.",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            help="The original of RUNS, named likewise, where they name none themselves.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")
    ] = False,
    experiment: Annotated[
        str | None,
        typer.Option(
            "--experiment", help="Only runs of this MLflow experiment.", show_default="all"
        ),
    ] = None,
    tracking_uri: options.TrackingUri = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare runs with baselines that arrived after them: note, differences and reports.

    Only what differs is written, so a second time writes nothing. A baseline is found by the
    run's tags, then by what this machine sent where; it is filled in, never exchanged.

    Examples:

        prunescope refresh

        prunescope refresh 3f9c1e7a --baseline latest:Llama-2-7b-hf

        prunescope refresh --experiment wanda --dry-run --tracking-uri http://mlflow.lab:5000
    """
    from prunescope.cli.console import Output
    from prunescope.cli.refreshing import Refresher
    from prunescope.tracking.store import open_store

    output, root = Output(as_json, quiet), options.DEFAULT_ROOT
    found = []
    with Refresher.of(open_store(tracking_uri, root=root), root, dry_run=dry_run) as refresher:
        for one in refresher.refresh_all(
            runs or (), baseline=baseline, experiment=experiment, say=output.note
        ):
            found.append(one)
            output.line(_line(one, dry_run))
            if one.problem is not None:
                output.warn(
                    f"not refreshed: {one.run.run_name} ({one.run.run_id[:8]}): {one.problem}"
                )
    counts: Counter[str] = Counter(one.status for one in found)
    output.show(
        lambda: [_summary(counts, dry_run)],
        document=lambda: {"dry_run": dry_run, "runs": [_as_dict(one) for one in found]},
        essential=lambda: [one.run.run_id for one in found if one.status == "updated"],
    )
    if not runs and counts["no baseline"]:
        output.note("a run is given its baseline by: prunescope refresh RUN --baseline ORIGINAL")
    if failed := counts["failed"]:
        word = "run was" if failed == 1 else "runs were"
        raise TrackingError(f"{failed} {word} not refreshed", hint="See the lines above")
    if runs and (without := counts["no baseline"]):
        word = "run has" if without == 1 else "runs have"
        raise RunNotFoundError(
            f"{without} {word} no baseline on this server",
            hint="Name it with --baseline, or send it with: prunescope sync",
        )


def _line(one: Refreshed, dry_run: bool) -> str:
    name = f"{one.run.run_name} ({one.run.run_id[:8]})"
    if one.status != "updated" or one.baseline is None:
        return f"{one.status:<11}  {name}"
    verb = "would write" if dry_run else "updated"
    against = f"against {one.baseline.run_name} ({one.baseline.run_id[:8]})"
    return f"{verb:<11}  {name} {against}: {', '.join(one.changed)}"


def _summary(counts: Counter[str], dry_run: bool) -> str:
    if not counts:
        return "no finished run of a pruned model"
    names = {
        "updated": "would change" if dry_run else "updated",
        "no baseline": "without a baseline on this server",
    }
    told = [f"{count} {names.get(status, status)}" for status, count in counts.items()]
    return ", ".join(told)


def _as_dict(one: Refreshed) -> dict[str, Any]:
    return {
        "run_id": one.run.run_id,
        "run_name": one.run.run_name,
        "url": one.run.url,
        "status": one.status,
        "baseline_run_id": one.baseline.run_id if one.baseline else None,
        "changed": list(one.changed),
        "metrics": dict(one.metrics),
        "problem": str(one.problem) if one.problem else None,
    }
