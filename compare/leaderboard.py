"""Many runs in one table, each against its own original, from what the tracking server indexes.

No record is read: a run's MLflow metrics, params and tags suffice, so a thousand runs are listed
in seconds. Differences are therefore unpaired, and only what the index knows is checked.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from prunescope.compare.layout import Cell, Table, spreadsheet_safe
from prunescope.compare.significance import Estimate, mean_of_estimates, unpaired_difference
from prunescope.errors import SettingError
from prunescope.metrics import (
    ACC,
    PERPLEXITY,
    format_percent,
    format_relative,
    perplexity_title,
)
from prunescope.records import DEFAULT_TASKS

__all__ = [
    "SORT_KEYS",
    "Leaderboard",
    "LeaderboardRow",
    "LeaderboardRun",
    "first_rows",
    "leaderboard",
    "leaderboard_csv",
    "leaderboard_document",
    "leaderboard_run",
    "leaderboard_table",
]

_TASK_SETTINGS = ("limit", "num_fewshot", "lm_eval")
_TEXT_SETTINGS = ("seqlen", "windows")
LEVEL = 0.05


@dataclass(frozen=True)
class LeaderboardRun:
    """A run as the tracking server's index has it."""

    run_id: str
    name: str
    model: str
    role: str | None
    method: str | None
    baseline_run_id: str | None
    started_at: datetime
    sparsity: float | None
    """Linear layers' share of zeros, a fraction."""
    target_sparsity: float | None
    perplexity: dict[str, float]
    """Corpus -> perplexity."""
    accuracy: dict[str, float]
    """Task -> accuracy."""
    stderr: dict[str, float]
    mean: float | None
    settings: dict[str, str]
    """What decides whether two runs are comparable, as far as the index knows."""
    broken: str | None = None


@dataclass(frozen=True)
class LeaderboardRow:
    """A run and its change against its baseline."""

    run: LeaderboardRun
    baseline: LeaderboardRun | None
    change: Estimate | None
    """Change of the mean accuracy over the shared tasks, a fraction."""
    ppl_ratio: float | None
    """Perplexity / the baseline's, of the first shared corpus."""
    reason: str | None
    """Why a change is missing."""

    @property
    def significant(self) -> bool | None:
        """Whether the change of the mean is beyond chance; None where its error is unknown."""
        if self.change is None or not self.change.stderr:
            return None
        return self.change.p_value < LEVEL


@dataclass(frozen=True)
class Leaderboard:
    """Rows in the order asked for, and the columns that they have between them."""

    rows: tuple[LeaderboardRow, ...]
    tasks: tuple[str, ...]
    corpora: tuple[tuple[str, str], ...]
    """Corpus and window length: one column each, so that no two window lengths share one."""


def leaderboard_run(
    run_id: str,
    name: str,
    started_at: datetime,
    metrics: Mapping[str, float],
    params: Mapping[str, str],
    tags: Mapping[str, str],
) -> LeaderboardRun:
    """A run from its MLflow fields (the names are those that an evaluation logs)."""

    def section(prefix: str) -> dict[str, float]:
        start = f"{prefix}/"
        return {k.removeprefix(start): v for k, v in metrics.items() if k.startswith(start)}

    accuracy = section("acc")
    mean = accuracy.pop("mean", None)
    # Tasks whose primary metric is not ``acc`` are known by their percentage.
    for task, percent in section("pct").items():
        if task != "mean" and task not in accuracy:
            accuracy[task] = percent / 100
    target = params.get("target_sparsity")
    return LeaderboardRun(
        run_id=run_id,
        name=name,
        model=tags.get("prunescope.model") or name,
        role=tags.get("prunescope.role"),
        method=tags.get("prunescope.method"),
        baseline_run_id=tags.get("prunescope.baseline_run_id"),
        started_at=started_at,
        sparsity=metrics.get("sparsity/linear"),
        target_sparsity=_number(target),
        perplexity=section("ppl"),
        accuracy=accuracy,
        stderr=section("stderr/acc"),
        mean=mean,
        settings={k: params[k] for k in (*_TASK_SETTINGS, *_TEXT_SETTINGS) if k in params},
        broken=tags.get("prunescope.broken"),
    )


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


# --- rows and order -----------------------------------------------------------------------------

_SORT: dict[str, tuple[Callable[[LeaderboardRow], float | None], bool]] = {
    "mean": (lambda row: row.run.mean, True),
    "ppl": (lambda row: next(iter(row.run.perplexity.values()), None), False),
    "sparsity": (lambda row: row.run.sparsity, True),
    "delta": (lambda row: row.change.value if row.change else None, True),
    "age": (lambda row: row.run.started_at.timestamp(), True),
}
SORT_KEYS = tuple(_SORT)
"""What a leaderboard can be sorted by: the best, or newest, first."""


def leaderboard(
    runs: Sequence[LeaderboardRun],
    baselines: Mapping[str, LeaderboardRun] | None = None,
    *,
    baseline: LeaderboardRun | None = None,
    sort: str = "mean",
) -> Leaderboard:
    """Rank runs.

    Args:
        runs: what to list.
        baselines: run id -> run, for baselines that are not among ``runs``.
        baseline: compare every run with this one; each run's own baseline when None.
        sort: one of :data:`SORT_KEYS`; runs without the figure come last.

    Raises:
        SettingError: the order is not known.
    """
    if sort not in _SORT:
        raise SettingError(f"cannot sort by '{sort}'; expected {', '.join(SORT_KEYS)}")
    known = {**{run.run_id: run for run in runs}, **(baselines or {})}
    rows = [_row(run, _baseline_of(run, known, baseline)) for run in runs]
    get, highest_first = _SORT[sort]

    def order(row: LeaderboardRow) -> tuple[bool, float, str]:
        value = get(row)
        if value is None or not math.isfinite(value):
            return True, 0.0, row.run.name
        return False, -value if highest_first else value, row.run.name

    return _board(tuple(sorted(rows, key=order)))


def _board(rows: tuple[LeaderboardRow, ...]) -> Leaderboard:
    runs = [row.run for row in rows]
    tasks = dict.fromkeys(task for run in runs for task in run.accuracy)
    corpora = {(c, run.settings.get("seqlen", "")) for run in runs for c in run.perplexity}
    first = [task for task in DEFAULT_TASKS if task in tasks]
    return Leaderboard(
        rows=rows,
        tasks=(*first, *sorted(task for task in tasks if task not in first)),
        corpora=tuple(sorted(corpora)),
    )


def _baseline_of(
    run: LeaderboardRun, known: Mapping[str, LeaderboardRun], one: LeaderboardRun | None
) -> LeaderboardRun | None:
    if one is not None:
        return None if one.run_id == run.run_id else one
    return known.get(run.baseline_run_id) if run.baseline_run_id else None


def _row(run: LeaderboardRun, baseline: LeaderboardRun | None) -> LeaderboardRow:
    if baseline is None:
        reason = "its baseline is not on this server" if run.baseline_run_id else None
        return LeaderboardRow(run, None, None, None, reason)
    reasons = []
    change = ratio = None
    if differing := _differing(run, baseline, _TASK_SETTINGS):
        reasons.append(differing)
    else:
        change = _change(run, baseline)
    if differing := _differing(run, baseline, _TEXT_SETTINGS):
        reasons.append(differing)
    else:
        ratio = _ratio(run, baseline)
    return LeaderboardRow(run, baseline, change, ratio, "; ".join(reasons) or None)


def _differing(run: LeaderboardRun, baseline: LeaderboardRun, names: Sequence[str]) -> str:
    """Settings that differ; what one side does not know refuses nothing."""
    return "; ".join(
        f"{name}: original {a}, pruned {b}"
        for name in names
        if (a := baseline.settings.get(name)) and (b := run.settings.get(name)) and a != b
    )


def _change(run: LeaderboardRun, baseline: LeaderboardRun) -> Estimate | None:
    """Change of the plain mean over the shared tasks; its error is 0 where one is unknown."""
    shared = [task for task in run.accuracy if task in baseline.accuracy]
    known = all(task in run.stderr and task in baseline.stderr for task in shared)
    return mean_of_estimates(
        [
            unpaired_difference(
                baseline.accuracy[task],
                run.accuracy[task],
                baseline.stderr[task] if known else 0.0,
                run.stderr[task] if known else 0.0,
            )
            for task in shared
        ]
    )


def _ratio(run: LeaderboardRun, baseline: LeaderboardRun) -> float | None:
    for corpus, value in run.perplexity.items():
        if baseline.perplexity.get(corpus):
            return value / baseline.perplexity[corpus]
    return None


def first_rows(board: Leaderboard, limit: int | None) -> Leaderboard:
    """The first rows alone, with the columns that they have between them; all when None."""
    return board if limit is None else _board(board.rows[:limit])


def leaderboard_csv(board: Leaderboard) -> str:
    """One line a run with full precision (RFC 4180); empty cells where there is no value."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    corpora = [f"ppl/{corpus}/{seqlen}".rstrip("/") for corpus, seqlen in board.corpora]
    figures = map(spreadsheet_safe, (*corpora, *(f"acc/{task}" for task in board.tasks)))
    labels = ("run_id", "run_name", "model", "role", "method", "baseline_run_id", "started_at")
    changes = ("delta_mean", "delta_stderr", "delta_p", "ppl_ratio", "reason")
    writer.writerow([*labels, "sparsity", *figures, "mean", *changes])
    for row in board.rows:
        run, change = row.run, row.change
        texts = (run.run_id, run.name, run.model, run.role, run.method)
        base = row.baseline.run_id if row.baseline else run.baseline_run_id
        numbers = [
            run.sparsity,
            *(
                run.perplexity.get(corpus) if run.settings.get("seqlen", "") == seqlen else None
                for corpus, seqlen in board.corpora
            ),
            *(run.accuracy.get(task) for task in board.tasks),
            run.mean,
            change.value if change else None,
            change.stderr if change and change.stderr else None,
            change.p_value if change and change.stderr else None,
            row.ppl_ratio,
        ]
        writer.writerow(
            [
                *(spreadsheet_safe(text or "") for text in texts),
                spreadsheet_safe(base or ""),
                run.started_at.isoformat(),
                *("" if number is None else repr(number) for number in numbers),
                spreadsheet_safe(row.reason or ""),
            ]
        )
    return out.getvalue()


def leaderboard_document(board: Leaderboard) -> list[dict[str, Any]]:
    """The rows for a script: fractions as they are, None where there is no value."""
    return [
        {
            "run_id": row.run.run_id,
            "run_name": row.run.name,
            "model": row.run.model,
            "role": row.run.role,
            "method": row.run.method,
            "baseline_run_id": row.baseline.run_id if row.baseline else row.run.baseline_run_id,
            "started_at": row.run.started_at.isoformat(),
            "sparsity": row.run.sparsity,
            "perplexity": dict(row.run.perplexity),
            "seqlen": row.run.settings.get("seqlen"),
            "accuracy": dict(row.run.accuracy),
            "mean": row.run.mean,
            "delta_mean": row.change.value if row.change else None,
            "delta_stderr": (row.change.stderr or None) if row.change else None,
            "ppl_ratio": row.ppl_ratio,
            "significant": row.significant,
            "reason": row.reason,
        }
        for row in board.rows
    ]


# --- table --------------------------------------------------------------------------------------


def leaderboard_table(board: Leaderboard) -> Table:
    """One row a run; ``*`` marks a change of the mean that is beyond chance (p < 0.05)."""
    header = (
        "Run",
        "Model",
        "Method",
        "Sparsity",
        *(perplexity_title(corpus, int(n) if n.isdigit() else 0) for corpus, n in board.corpora),
        *board.tasks,
        "Mean",
        "\u0394 mean",
        "\u0394 PPL",
    )
    rows = tuple(_cells(row, board) for row in board.rows)
    caption = (
        "\u0394 mean: change of the mean accuracy in points over the tasks that a run shares with "
        "its baseline; * beyond chance (p < 0.05, unpaired)."
    )
    first = 4 + len(board.corpora)
    tasks = range(first + len(board.tasks) - 1, first - 1, -1)
    spare = (*tasks, header.index("Method"))
    return Table("Leaderboard", header, rows, words=3, caption=caption, spare=spare)


def _cells(row: LeaderboardRow, board: Leaderboard) -> tuple[Cell, ...]:
    run = row.run
    change = "" if row.change is None else f"{100 * row.change.value:+.2f}"
    better = None if not row.significant or row.change is None else row.change.value > 0
    ratio = "" if row.ppl_ratio is None else format_relative(row.ppl_ratio - 1)
    missing = "n/a" if row.reason else ""
    return (
        Cell(run.run_id[:8]),
        Cell(run.model),
        Cell(run.method or ""),
        Cell(format_percent(run.sparsity)),
        *(Cell(_perplexity(run, corpus, seqlen)) for corpus, seqlen in board.corpora),
        *(Cell(ACC.format(run.accuracy.get(task))) for task in board.tasks),
        Cell(ACC.format(run.mean)),
        Cell(change + ("*" if row.significant else "") or missing, better),
        Cell(ratio or missing),
    )


def _perplexity(run: LeaderboardRun, corpus: str, seqlen: str) -> str:
    if run.settings.get("seqlen", "") != seqlen or corpus not in run.perplexity:
        return "broken" if run.broken and not run.perplexity else "n/a"
    return PERPLEXITY.format(run.perplexity[corpus])
