"""``prunescope compare``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunescope.cli import options
from prunescope.errors import SettingError

if TYPE_CHECKING:
    from rich.text import Text

    from prunescope.cli.console import Output
    from prunescope.cli.finder import Found
    from prunescope.compare.delta import Comparison
    from prunescope.compare.gate import GateResult
    from prunescope.records import RunRef
    from prunescope.tracking.store import Store

__all__ = ["compare_command"]

_FORMATS = ("json", "md", "html", "csv", "tex")
_GATE = "Judging"


def compare_command(
    original: Annotated[
        str,
        typer.Argument(
            help="Run id or its beginning, runs:/ID, run name, latest:MODEL, or a record folder. "
            "Alone: a run that is compared with its baseline."
        ),
    ],
    pruned: Annotated[
        str | None, typer.Argument(help="The other run, named likewise.", show_default=False)
    ] = None,
    output_dir: options.OutputDir = Path("eval_results"),
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help=f"Files to write: {', '.join(_FORMATS)}; repeat or separate by commas.",
            show_default="json, md, html",
        ),
    ] = None,
    margin: Annotated[
        float,
        typer.Option(
            "--margin",
            help="Accuracy differences below this many points are of no consequence.",
            rich_help_panel=_GATE,
        ),
    ] = 1.0,
    noise: Annotated[
        str | None,
        typer.Option(
            "--noise",
            help="A second run of the original: what changes without any pruning.",
            rich_help_panel=_GATE,
            show_default=False,
        ),
    ] = None,
    allow_mismatch: Annotated[
        bool,
        typer.Option(
            "--allow-mismatch",
            help="Show differences of rows that are not comparable, marked with !.",
            rich_help_panel=_GATE,
        ),
    ] = False,
    gate: Annotated[
        str | None,
        typer.Option(
            "--gate",
            help="Conditions or a file of them; exit 0 pass, 1 fail, 3 inconclusive.",
            rich_help_panel=_GATE,
            show_default=False,
        ),
    ] = None,
    junit: Annotated[
        Path | None,
        typer.Option(
            "--junit", help="Gate as JUnit XML.", rich_help_panel=_GATE, show_default=False
        ),
    ] = None,
    gate_json: Annotated[
        Path | None,
        typer.Option(
            "--gate-json", help="Gate as JSON.", rich_help_panel=_GATE, show_default=False
        ),
    ] = None,
    log: Annotated[
        bool,
        typer.Option(
            "--log",
            help="Store the comparison as a run of its own that points at both runs; PRUNED's own "
            "note and differences are brought up to date, unless it has another baseline.",
        ),
    ] = False,
    require_mask_kept: Annotated[
        bool,
        typer.Option(
            "--require-mask-kept",
            help="Exit with 1 where a weight that was pruned in ORIGINAL is not zero in PRUNED.",
            rich_help_panel=_GATE,
        ),
    ] = False,
    tracking_uri: options.TrackingUri = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Compare two finished runs: delta table, statistics, JSON, Markdown and HTML.

    Rows that are not comparable (other documents, window length, ...) say so in place of a number.

    Examples:

        prunescope compare latest:Llama-2-7b-hf latest:wanda-50

        prunescope compare 3f9c1e7a

        prunescope compare 3f9c1e7a runs:/88d0 --tracking-uri http://mlflow.lab:5000

        prunescope compare latest:wanda-50 --gate "ppl<=+5%, acc.mean>=-1pt, sparsity>=50%"

        prunescope compare latest:Llama-2-7b-hf latest:wanda-50 --log
    """
    from prunescope.cli.console import Output
    from prunescope.cli.finder import RunFinder
    from prunescope.cli.reports import check_output_dir, write_reports
    from prunescope.cli.summary import note_table
    from prunescope.compare.analysis import compare_directories
    from prunescope.compare.gate import read_gate

    output = Output(as_json, quiet)
    wanted = _check_formats(options.split_commas(formats) or ("json", "md", "html"))
    if not margin > 0:
        raise SettingError(f"--margin is a number of points above 0, found {margin:g}")
    conditions = read_gate(gate) if gate is not None else None
    if conditions is None and (junit or gate_json):
        raise SettingError("--junit and --gate-json need a gate", hint="Give one with --gate")
    check_output_dir(output_dir)
    with RunFinder(tracking_uri) as finder:
        if pruned is None:
            second = finder.find(original)
            first = finder.find_baseline(second, original)
        else:
            first, second = finder.find(original), finder.find(pruned)
        runs = _tracked(first, second) if log else None
        comparison = compare_directories(
            first.directory,
            second.directory,
            margin=margin / 100,
            allow_mismatch=allow_mismatch,
            noise_dir=finder.find(noise).directory if noise is not None else None,
            original_run=first.run,
            pruned_run=second.run,
        )
        files = write_reports(comparison, output_dir, wanted, output=output)
        logged = _log(finder.store, runs, comparison, files, output) if runs is not None else None
        if second.run is not None:
            note_table(finder.store, second.run, output)
    judged = _judge(comparison, gate, junit, gate_json) if gate is not None else None
    _show(output, comparison, files, logged, judged)
    code = judged.exit_code if judged is not None else 0
    if require_mask_kept and not _mask_kept(comparison):
        code = code or 1
    if code:
        raise typer.Exit(code)


def _tracked(first: Found, second: Found) -> tuple[RunRef, RunRef]:
    if first.run is None or second.run is None:
        raise SettingError(
            "--log needs two runs of a tracking server, found a record folder",
            hint="Send it with: prunescope sync, then name the run",
        )
    return first.run, second.run


def _log(
    store: Store,
    runs: tuple[RunRef, RunRef],
    comparison: Comparison,
    files: Sequence[Path],
    output: Output,
) -> RunRef:
    from prunescope.cli.refreshing import refresh_compared
    from prunescope.compare.delta import comparison_metrics
    from prunescope.compare.report import headline

    run = store.log_comparison(
        *runs, files, metrics=comparison_metrics(comparison), headline=headline(comparison)
    )
    where = run.url or f"{run.run_id} in {run.tracking_uri}"
    output.note(f"run  {run.run_name}  {where}")
    pruned = refresh_compared(store, options.DEFAULT_ROOT, *runs)
    if pruned is not None and pruned.changed:
        output.note(f"updated {runs[1].run_name}: {', '.join(pruned.changed)}")
    return run


def _check_formats(wanted: tuple[str, ...]) -> tuple[str, ...]:
    for name in wanted:
        if name not in _FORMATS:
            raise SettingError(f"--format takes {', '.join(_FORMATS)}; found '{name}'")
    return wanted


def _judge(
    comparison: Comparison, gate: str, junit: Path | None, report: Path | None
) -> GateResult:
    from prunescope.compare.gate import evaluate_gate, read_gate
    from prunescope.compare.gate_output import gate_json as as_json
    from prunescope.compare.gate_output import gate_junit
    from prunescope.records import write_file

    result = evaluate_gate(comparison, read_gate(gate))
    if junit is not None:
        write_file(junit, gate_junit(result))
    if report is not None:
        write_file(report, as_json(result))
    return result


def _show(
    output: Output,
    comparison: Comparison,
    files: Sequence[Path],
    logged: RunRef | None,
    judged: GateResult | None,
) -> None:
    import json

    from prunescope.compare.export import json_report
    from prunescope.compare.gate_output import describe, gate_json
    from prunescope.compare.report import terminal_report

    outcome = f"gate: {judged.status}" if judged is not None else ""
    told = [_judged(describe(one), one.status) for one in judged.conditions] if judged else []
    if judged is not None:
        told.append(_judged(outcome, judged.status))
    output.show(
        lambda: [terminal_report(comparison), *told],
        document=lambda: {
            "comparison": json_report(comparison),
            "files": [str(path) for path in files],
            "run": logged.model_dump(mode="json") if logged is not None else None,
            "gate": json.loads(gate_json(judged)) if judged is not None else None,
        },
        essential=lambda: outcome or str(files[0]),
    )


def _judged(line: str, status: str) -> Text:
    from rich.text import Text

    return Text(line, style={"pass": "green", "fail": "red"}.get(status, "yellow"))


def _mask_kept(comparison: Comparison) -> bool:
    from prunescope.cli.console import stderr

    masks = comparison.analysis.masks if comparison.analysis else None
    kept = masks.kept if masks is not None else None
    if kept is not True:
        what = "a pruned weight came back" if kept is False else "not known from these two runs"
        stderr().print(f"mask kept: {what}", soft_wrap=True)
    return kept is True
