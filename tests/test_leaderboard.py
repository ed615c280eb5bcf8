"""Many runs in one table, and quality over sparsity."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from scipy import stats
from support.golden import check_golden
from support.records import original_record, other_window_record, pruned_record

from prunescope.compare.curves import CurvePoint, curve_points, draw_curves
from prunescope.compare.formats import latex_table
from prunescope.compare.leaderboard import (
    LeaderboardRun,
    leaderboard,
    leaderboard_csv,
    leaderboard_run,
    leaderboard_table,
)
from prunescope.compare.markdown import markdown_table
from prunescope.errors import SettingError
from prunescope.records import DEFAULT_TASKS, EvalRecord
from prunescope.tracking.codec import encode

START = datetime(2026, 3, 14, tzinfo=UTC)


def indexed(record: EvalRecord, run_id: str, baseline: str | None = None) -> LeaderboardRun:
    """A record as the tracking layer would log it, and the index would give it back."""
    labels = record.labels.model_copy(update={"baseline_run_id": baseline})
    fields = encode(record.model_copy(update={"labels": labels}))
    return leaderboard_run(
        run_id * 32,
        fields.name,
        record.started_at,
        {point.name: point.value for point in fields.metrics},
        fields.params,
        fields.tags,
    )


DENSE = indexed(original_record(), "a")
PRUNED = indexed(pruned_record(), "b", "a" * 32)
OTHER = indexed(other_window_record(), "c", "a" * 32)


def made(name: str, mean: float, **changes: object) -> LeaderboardRun:
    run = replace(DENSE, run_id=name, name=name, mean=mean, baseline_run_id=None)
    return replace(run, **changes)  # type: ignore[arg-type]


def test_a_run_reads_back_what_an_evaluation_logs() -> None:
    record = pruned_record()
    assert PRUNED.model == record.model.name
    assert PRUNED.method == "magnitude"
    assert PRUNED.baseline_run_id == "a" * 32
    assert PRUNED.accuracy == {name: record.tasks[name].accuracy for name in DEFAULT_TASKS}
    assert PRUNED.stderr == {name: record.tasks[name].stderr["acc"] for name in DEFAULT_TASKS}
    assert PRUNED.mean == pytest.approx(record.mean_accuracy)
    assert PRUNED.perplexity == {"wikitext2": record.perplexity["wikitext2"].perplexity}
    assert PRUNED.sparsity == 0.5
    assert PRUNED.settings["seqlen"] == "32"


def test_a_task_with_another_primary_metric_is_known_by_its_percentage() -> None:
    run = leaderboard_run("r", "r", START, {"exact_match/gsm8k": 0.25, "pct/gsm8k": 25.0}, {}, {})
    assert run.accuracy == {"gsm8k": 0.25}


def test_each_run_is_compared_with_its_own_baseline() -> None:
    board = leaderboard([DENSE, PRUNED])
    rows = {row.run.run_id[0]: row for row in board.rows}
    assert rows["a"].baseline is None and rows["a"].change is None and rows["a"].reason is None
    pruned = rows["b"]
    assert pruned.baseline == DENSE
    assert pruned.change is not None and pruned.ppl_ratio is not None
    a, b = original_record(), pruned_record()
    assert pruned.change.value == pytest.approx((b.mean_accuracy or 0) - (a.mean_accuracy or 0))
    errors = [r.tasks[n].stderr["acc"] for r in (a, b) for n in DEFAULT_TASKS]
    assert pruned.change.stderr == pytest.approx(np.linalg.norm(errors) / 7)
    z = pruned.change.value / pruned.change.stderr
    assert pruned.significant is bool(2 * stats.norm.sf(abs(z)) < 0.05)
    assert pruned.ppl_ratio == pytest.approx(
        b.perplexity["wikitext2"].perplexity / a.perplexity["wikitext2"].perplexity
    )


def test_a_baseline_outside_the_list_is_used_and_a_missing_one_is_told() -> None:
    (row,) = leaderboard([PRUNED], {DENSE.run_id: DENSE}).rows
    assert row.change is not None
    (row,) = leaderboard([PRUNED]).rows
    assert (row.change, row.reason) == (None, "its baseline is not on this server")


def test_one_baseline_for_all_is_not_compared_with_itself() -> None:
    board = leaderboard([DENSE, PRUNED, OTHER], baseline=PRUNED)
    changes = {row.run.run_id[0]: row.change for row in board.rows}
    assert changes["b"] is None
    assert changes["a"] is not None and changes["a"].value > 0


def test_what_is_not_comparable_has_no_change_and_a_column_of_its_own() -> None:
    board = leaderboard([DENSE, PRUNED, OTHER])
    assert board.corpora == (("wikitext2", "32"), ("wikitext2", "64"))
    row = next(row for row in board.rows if row.run == OTHER)
    assert row.ppl_ratio is None and row.change is not None
    assert row.reason == "seqlen: original 32, pruned 64; windows: original 6, pruned 3"
    cells = dict(
        zip(
            leaderboard_table(board).header,
            leaderboard_table(board).rows[board.rows.index(row)],
            strict=True,
        )
    )
    assert cells["WikiText2 PPL (32)"].text == "n/a"
    assert cells["WikiText2 PPL (64)"].text == "19.8547"
    limited = replace(PRUNED, settings={**PRUNED.settings, "limit": "100"})
    (row,) = (r for r in leaderboard([DENSE, limited]).rows if r.run == limited)
    assert row.change is None and row.reason == "limit: original all, pruned 100"


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("mean", ["b", "c", "a", "none"]),
        ("ppl", ["a", "b", "c", "none"]),
        ("sparsity", ["c", "b", "a", "none"]),
        ("age", ["none", "c", "b", "a"]),
        ("delta", ["b", "c", "none", "a"]),
    ],
)
def test_the_best_come_first_and_what_is_missing_last(sort: str, expected: list[str]) -> None:
    runs = [
        made("a", 0.5, perplexity={"w": 5.0}, sparsity=0.0, started_at=START),
        made("b", 0.7, perplexity={"w": 6.0}, sparsity=0.3, started_at=START + timedelta(1)),
        made("c", 0.6, perplexity={"w": 9.0}, sparsity=0.5, started_at=START + timedelta(2)),
        replace(
            made("none", 0.0, perplexity={}, sparsity=None, started_at=START + timedelta(3)),
            mean=None,
        ),
    ]
    if sort == "delta":
        runs = [replace(r, accuracy={"rte": r.mean or 0.0}, stderr={}) for r in runs]
        board = leaderboard(runs, baseline=runs[0], sort=sort)
    else:
        board = leaderboard(runs, sort=sort)
    assert [row.run.name for row in board.rows] == expected


def test_an_unknown_order_is_told() -> None:
    with pytest.raises(SettingError, match="cannot sort by 'luck'; expected mean, ppl, sparsity"):
        leaderboard([DENSE], sort="luck")


def test_only_changes_beyond_chance_are_marked() -> None:
    near = replace(PRUNED, accuracy={k: v - 0.001 for k, v in DENSE.accuracy.items()})
    far = replace(PRUNED, accuracy={k: v - 0.3 for k, v in DENSE.accuracy.items()})
    unknown = replace(far, stderr={})
    marks = []
    for run in (near, far, unknown):
        (row,) = (r for r in leaderboard([DENSE, run]).rows if r.run == run)
        marks.append((row.significant, leaderboard_table(leaderboard([run], {"a" * 32: DENSE}))))
    assert [mark for mark, _ in marks] == [False, True, None]
    assert [table.rows[0][-2].text for _, table in marks] == ["-0.10", "-30.00*", "-30.00"]


def test_every_format_equals_golden() -> None:
    board = leaderboard([DENSE, PRUNED, OTHER])
    table = leaderboard_table(board)
    check_golden("leaderboard.md", markdown_table(table) + "\n")
    check_golden("leaderboard.tex", latex_table(table, "Runs.", "leaderboard") + "\n")
    check_golden("leaderboard.csv", leaderboard_csv(board).replace("\r\n", "\n"))


def test_csv_keeps_every_digit() -> None:
    rows = list(csv.DictReader(io.StringIO(leaderboard_csv(leaderboard([DENSE, PRUNED])))))
    (row,) = (row for row in rows if row["run_id"] == "b" * 32)
    assert float(row["acc/boolq"]) == PRUNED.accuracy["boolq"]
    assert float(row["ppl/wikitext2/32"]) == PRUNED.perplexity["wikitext2"]
    assert row["baseline_run_id"] == "a" * 32


# --- curves -------------------------------------------------------------------------------------


def test_repetitions_become_one_point_with_scipys_interval() -> None:
    values = [0.41, 0.44, 0.42]
    runs = [
        made(str(i), v, method="wanda", sparsity=0.5 + i / 1000, target_sparsity=None)
        for i, v in enumerate(values)
    ]
    runs.append(made("60", 0.3, method="wanda", sparsity=0.6, target_sparsity=None))
    (points,) = curve_points([*runs]).values()
    assert [p.runs for p in points] == [3, 1]
    assert points[0].sparsity == pytest.approx(0.501)
    expected = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (points[0].low, points[0].high) == pytest.approx(expected)
    assert points[1] == CurvePoint(0.6, 0.3, None, None, 1)


def test_targets_tell_repetitions_apart_before_nearness_does() -> None:
    runs = [
        made("a", 0.4, method="wanda", sparsity=0.500, target_sparsity=0.50),
        made("b", 0.5, method="wanda", sparsity=0.502, target_sparsity=0.51),
        made("c", 0.6, method="wanda", sparsity=0.530, target_sparsity=0.50),
    ]
    (points,) = curve_points(runs).values()
    assert sorted(p.runs for p in points) == [1, 2]


def test_each_method_has_its_curve_and_originals_theirs() -> None:
    runs = [
        made("dense", 0.6, method=None, sparsity=0.0),
        made("w", 0.5, method="wanda", sparsity=0.5),
        made("u", 0.4, method=None, sparsity=0.5),
        made("nan", math.nan, method="wanda", sparsity=0.7),
        made("none", 0.4, method="wanda", sparsity=None),
    ]
    found = curve_points(runs)
    assert {method: len(points) for method, points in found.items()} == {
        "original": 1,
        "unnamed": 1,
        "wanda": 1,
    }


@pytest.mark.parametrize("quality", ["mean", "ppl"])
def test_curves_are_drawn(quality: str) -> None:
    points = curve_points([DENSE, PRUNED, OTHER], quality)  # type: ignore[arg-type]
    assert draw_curves(points, quality).startswith(b"\x89PNG")  # type: ignore[arg-type]
    svg = draw_curves(points, quality, "svg").decode()  # type: ignore[arg-type]
    assert "<svg" in svg
    assert draw_curves({}).startswith(b"\x89PNG")
