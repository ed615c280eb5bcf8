"""``prunescope runs``."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunescope.cli import options

if TYPE_CHECKING:
    from prunescope.tracking.store import StoredRun

__all__ = ["runs_command"]


def runs_command(
    model: Annotated[
        str | None, typer.Option("--model", help="Only runs of this model.", show_default=False)
    ] = None,
    role: Annotated[
        str | None, typer.Option("--role", help="original or pruned.", show_default=False)
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="Pruning method.", show_default=False)
    ] = None,
    status: Annotated[
        str, typer.Option("--status", help="finished, failed, running or all.")
    ] = "finished",
    limit: Annotated[int, typer.Option("--limit", "-n", help="At most N runs.")] = 50,
    experiment: options.Experiment = None,
    tracking_uri: options.TrackingUri = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """List runs, newest first: model, role, sparsity, perplexity, mean accuracy, age.

    Examples:

        prunescope runs --role pruned --model wanda-50

        prunescope runs --json --limit 5 --tracking-uri http://mlflow.lab:5000
    """
    from prunescope.cli.console import Output
    from prunescope.errors import SettingError
    from prunescope.tracking.store import open_store

    statuses = {"finished": "FINISHED", "failed": "FAILED", "running": "RUNNING", "all": None}
    if status not in statuses:
        raise SettingError(f"--status takes {', '.join(statuses)}; found '{status}'")
    if limit < 1:
        raise SettingError(f"--limit must be at least 1, found {limit}")
    store = open_store(tracking_uri, root=options.DEFAULT_ROOT)
    runs = store.search(
        model=model,
        role=role,
        method=method,
        experiment=experiment,
        status=statuses[status],
        limit=limit,
    )
    output = Output(as_json, quiet)
    if not runs:
        output.note("no runs; make one with: prunescope eval MODEL")
    output.show(
        lambda: _table(runs) if runs else [],
        document=lambda: [_as_dict(run) for run in runs],
        essential=lambda: [run.ref.run_id for run in runs],
    )


def _table(runs: list[StoredRun]) -> Any:
    from rich.table import Table

    from prunescope.metrics import PERPLEXITY, format_percent

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("Run", "Model", "Role", "Method"):
        table.add_column(name, overflow="fold", no_wrap=name in ("Run", "Role"))
    for name in ("Sparsity", "Perplexity", "Mean acc", "Age"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        perplexity = _perplexity(run)
        table.add_row(
            run.ref.run_id[:8],
            _in_a_line(run.model),
            run.role or "",
            _in_a_line(run.method),
            format_percent(run.metrics.get("sparsity/linear")),
            PERPLEXITY.format(perplexity) if perplexity is not None else _missing(run),
            f"{run.metrics['acc/mean']:.4f}" if "acc/mean" in run.metrics else "n/a",
            _age(run.started_at),
        )
    return table


def _in_a_line(name: str | None) -> str:
    return " ".join((name or "").split())


def _perplexity(run: StoredRun) -> float | None:
    return next((v for k, v in sorted(run.metrics.items()) if k.startswith("ppl/")), None)


def _missing(run: StoredRun) -> str:
    return "broken" if "prunescope.broken" in run.tags else "n/a"


def _age(started_at: datetime) -> str:
    from prunescope.records import utc_now

    seconds = max(0, int((utc_now() - started_at).total_seconds()))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _as_dict(run: StoredRun) -> dict[str, Any]:
    return {
        "run_id": run.ref.run_id,
        "run_name": run.ref.run_name,
        "experiment_id": run.ref.experiment_id,
        "url": run.ref.url,
        "status": run.status,
        "started_at": run.started_at.isoformat(),
        "model": run.model,
        "role": run.role,
        "method": run.method,
        "metrics": dict(run.metrics),
        "params": dict(run.params),
    }
