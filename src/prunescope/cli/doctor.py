"""``prunescope doctor``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunescope.cli import options

if TYPE_CHECKING:
    from rich.console import RenderableType

    from prunescope.cli.checks import Check

__all__ = ["doctor_command"]

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red", "skipped": "dim"}


def doctor_command(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A model, as for 'eval': is there memory and disk for it? Nothing is loaded.",
            show_default=False,
        ),
    ] = None,
    data_dir: options.DataDir = None,
    tracking_uri: options.TrackingUri = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Check what an evaluation needs here, and say what to do about what is amiss.

    Python and packages, GPU and dtypes, memory and disk, the hub or its mirror, the data folder,
    the tracking server. Nothing stays changed. Exit 0: fine, or warnings alone; 1: a problem.

    Examples:

        prunescope doctor

        prunescope doctor ./Llama-2-7b-hf --data-dir ./data --tracking-uri http://mlflow.lab:5000

        prunescope doctor --json
    """
    from dataclasses import asdict

    from prunescope.cli.checks import worst
    from prunescope.cli.console import Output

    output = Output(as_json, quiet)
    checks = _run(model, data_dir, tracking_uri)
    status = worst(checks)
    output.show(
        lambda: _report(checks),
        document=lambda: {"status": status, "checks": [asdict(check) for check in checks]},
        essential=lambda: status,
    )
    if status == "problem":
        raise typer.Exit(1)


def _run(model: str | None, data_dir: Path | None, tracking_uri: str | None) -> list[Check]:
    from prunescope.cli import checks

    return [
        *checks.checked("python", checks.check_python),
        *checks.checked("packages", checks.check_packages),
        *checks.checked("evaluate", lambda: checks.check_shadowing(Path.cwd())),
        *_machine(model),
        *_data(data_dir),
        *checks.checked("tracking", lambda: _tracking(tracking_uri)),
    ]


def _machine(model: str | None) -> Iterator[Check]:
    from prunescope.cli import checks
    from prunescope.evaluate.loading import ModelSize, model_size
    from prunescope.evaluate.machine import Device, list_devices

    devices: tuple[Device, ...] = ()
    size: ModelSize | None = None

    def look() -> Sequence[Check]:
        nonlocal devices
        devices = list_devices()
        return checks.check_devices(devices)

    def weigh() -> Sequence[Check]:
        nonlocal size
        size = model_size(str(model))
        return checks.check_memory(size, devices) if devices else ()

    yield from checks.checked("device", look)
    if model is not None:
        yield from checks.checked("model", weigh)
    download = size.download if size is not None else 0
    yield from checks.checked("disk", lambda: checks.check_disk(_folders(), download))


def _folders() -> list[tuple[str, Path]]:
    from prunescope.evaluate.loading import hub_cache

    return [("records", options.DEFAULT_ROOT), ("hub downloads", hub_cache())]


def _data(data_dir: Path | None) -> Iterator[Check]:
    from prunescope.cli import checks
    from prunescope.evaluate.data import probe_hub

    found = checks.checked("data", lambda: checks.check_data(data_dir))
    needed = any(check.status != "ok" for check in found)
    yield from found
    yield from checks.checked("hub", lambda: checks.check_hub(probe_hub(), needed=needed))


def _tracking(uri: str | None) -> Sequence[Check]:
    from prunescope.cli.checks import check_tracking
    from prunescope.cli.publishing import DEFAULT_EXPERIMENT
    from prunescope.tracking.store import diagnose_store

    found = diagnose_store(uri, root=options.DEFAULT_ROOT, experiment=DEFAULT_EXPERIMENT)
    return check_tracking(found)


def _report(checks: Sequence[Check]) -> list[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        found = Text(check.found)
        if check.to_do:
            found.append(f"\n→ {check.to_do}", style="bold")
        table.add_row(Text(check.status, style=_STYLES[check.status]), check.name, found)
    counts = Counter(check.status for check in checks)
    told = [
        f"{counts[status]} {status}{'s' if counts[status] != 1 else ''}"
        for status in ("problem", "warning")
        if counts[status]
    ]
    return [table, "", f"doctor: {' and '.join(told) or 'all is well'}"]
