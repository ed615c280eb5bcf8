"""``prunescope leaderboard``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from prunescope.cli import options
from prunescope.errors import RunNotFoundError, SettingError

if TYPE_CHECKING:
    from prunescope.cli.console import Output
    from prunescope.compare.leaderboard import Leaderboard, LeaderboardRun
    from prunescope.compare.run_filter import RunFilter
    from prunescope.tracking.store import Store, StoredRun

__all__ = ["leaderboard_command"]

_FORMATS = ("table", "csv", "md", "tex")
_PICTURES = ("png", "svg", "pdf")


def leaderboard_command(
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            help="Compare every run with this one (run id, name, latest:MODEL).",
            show_default="each run's own baseline",
        ),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="Only runs that meet this: method=wanda*, model!=opt-125m, sparsity>=50%, "
            "acc.boolq>0.6, or any param or tag; repeatable.",
            show_default=False,
        ),
    ] = None,
    sort: Annotated[
        str, typer.Option("--sort", help="mean, ppl, sparsity, delta or age: the best first.")
    ] = "mean",
    form: Annotated[str, typer.Option("--format", help=f"{', '.join(_FORMATS)}.")] = "table",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File to write instead of printing.", show_default=False
        ),
    ] = None,
    curves: Annotated[
        Path | None,
        typer.Option(
            "--curves",
            help="Draw quality over sparsity, one curve a method, into a .png, .svg or .pdf "
            "file: mean accuracy, or perplexity with --sort ppl.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", "-n", help="Show the first N rows.", show_default="all"),
    ] = None,
    experiment: Annotated[
        str | None,
        typer.Option("--experiment", help="MLflow experiment.", show_default="all"),
    ] = None,
    tracking_uri: options.TrackingUri = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Rank finished runs: sparsity, perplexity, each task, and the change against the original.

    A change of the mean that is beyond chance is marked *.

    Examples:

        prunescope leaderboard --filter "method=wanda*" --sort delta

        prunescope leaderboard --baseline latest:Llama-2-7b-hf --format tex --output table.tex

        prunescope leaderboard --sort ppl --curves curves.pdf --limit 20
    """
    _check(sort, form, limit)
    if as_json and form != "table":
        raise SettingError(f"--json and --format {form} exclude each other", hint="Drop one")
    picture = _picture_kind(curves)

    from prunescope.cli.console import Output
    from prunescope.compare.leaderboard import leaderboard
    from prunescope.compare.run_filter import parse_filters
    from prunescope.tracking.store import open_store

    wanted = parse_filters(filters or ())
    store = open_store(tracking_uri, root=options.DEFAULT_ROOT)
    against = _resolve(store, baseline) if baseline is not None else None
    runs = _matching(store, wanted, experiment)
    board = leaderboard(runs, _baselines(store, runs), baseline=against, sort=sort)
    answer = Output(as_json, quiet)
    _show(board, form, output, limit, answer)
    if curves is not None:
        _draw(runs, curves, picture, "ppl" if sort == "ppl" else "mean", answer)


def _check(sort: str, form: str, limit: int | None) -> None:
    from prunescope.compare.leaderboard import SORT_KEYS

    if sort not in SORT_KEYS:
        raise SettingError(f"--sort takes {', '.join(SORT_KEYS)}; found '{sort}'")
    if form not in _FORMATS:
        raise SettingError(f"--format takes {', '.join(_FORMATS)}; found '{form}'")
    if limit is not None and limit < 1:
        raise SettingError(f"--limit must be at least 1, found {limit}")


def _picture_kind(curves: Path | None) -> str:
    if curves is None:
        return ""
    kind = curves.suffix.lower().removeprefix(".")
    if kind not in _PICTURES:
        raise SettingError(
            f"--curves takes a file that ends in .{', .'.join(_PICTURES)}; found '{curves}'"
        )
    return kind


# --- runs ---------------------------------------------------------------------------------------


def _as_row(run: StoredRun) -> LeaderboardRun:
    from prunescope.compare.leaderboard import leaderboard_run

    return leaderboard_run(
        run.ref.run_id, run.ref.run_name, run.started_at, run.metrics, run.params, run.tags
    )


def _matching(
    store: Store, wanted: Sequence[RunFilter], experiment: str | None
) -> list[LeaderboardRun]:
    """The finished runs that meet every condition; the server sorts out what it can."""
    from prunescope.compare.run_filter import matches

    exact = {f.name: f.value for f in wanted if f.op == "=" and not set(f.value) & set("*?[")}
    found = store.search(
        model=exact.get("model"),
        method=exact.get("method"),
        role=exact.get("role"),
        experiment=experiment,
    )
    rows = ((_as_row(run), run) for run in found)
    return [row for row, run in rows if matches(row, wanted, run.params, run.tags)]


def _resolve(store: Store, selector: str) -> LeaderboardRun:
    from prunescope.tracking.query import resolve_run

    return _as_row(resolve_run(store, selector))


def _baselines(store: Store, runs: Sequence[LeaderboardRun]) -> dict[str, LeaderboardRun]:
    """Baselines that are not among the runs themselves; those that are gone are left out."""
    listed = {run.run_id for run in runs}
    wanted = dict.fromkeys(run.baseline_run_id for run in runs if run.baseline_run_id)
    found = {}
    for run_id in wanted:
        if run_id in listed:
            continue
        try:
            found[run_id] = _as_row(store.get(run_id))
        except RunNotFoundError:
            continue
    return found


# --- output -------------------------------------------------------------------------------------


def _show(
    board: Leaderboard, form: str, output: Path | None, limit: int | None, answer: Output
) -> None:
    from prunescope.cli.console import stdout
    from prunescope.compare.leaderboard import first_rows, leaderboard_document

    if not board.rows:
        answer.note("no finished run matches; list all with: prunescope runs")
    shown = first_rows(board, limit)
    if output is not None:
        from prunescope.records import write_file

        write_file(output, _text(shown, form))
        answer.note(f"wrote {output}")
    if answer.as_json or answer.quiet:
        answer.show(
            list,
            document=lambda: leaderboard_document(shown),
            essential=lambda: [row.run.run_id for row in shown.rows],
        )
    elif output is not None:
        return
    elif form != "table":
        typer.echo(_text(shown, form), nl=False)
    elif shown.rows:
        from prunescope.compare.leaderboard import leaderboard_table
        from prunescope.compare.terminal import fitting_table, wide_table

        table = leaderboard_table(shown)
        drawn, width = wide_table(table)
        room = stdout().width
        if width > room:
            drawn, width = fitting_table(table, room)
        answer.show(lambda: drawn, document=list, essential=list, columns=width)


def _text(board: Leaderboard, form: str) -> str:
    from prunescope.compare.formats import escape_latex, latex_table
    from prunescope.compare.leaderboard import leaderboard_csv, leaderboard_table
    from prunescope.compare.markdown import escape_markdown, markdown_table
    from prunescope.compare.terminal import plain_text

    table = leaderboard_table(board)
    if form == "csv":
        return leaderboard_csv(board)
    if form == "md":
        return f"{markdown_table(table)}\n\n{escape_markdown(table.caption)}\n"
    if form == "tex":
        return latex_table(table, escape_latex(table.caption), "leaderboard") + "\n"
    return plain_text(table)


def _draw(
    runs: Sequence[LeaderboardRun],
    path: Path,
    kind: str,
    quality: Literal["mean", "ppl"],
    answer: Output,
) -> None:
    from prunescope.compare.curves import curve_points, draw_curves
    from prunescope.records import write_file

    points = curve_points(runs, quality)
    if not points:
        answer.warn("no curve drawn: no run has both a sparsity and a figure to draw")
        return
    write_file(path, draw_curves(points, quality, kind))
    answer.note(f"wrote {path}")
