"""Differences, relative changes, the average, and the reasons where there is none."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.legacy import legacy_json, legacy_record
from support.records import (
    broken_record,
    failed_record,
    original_record,
    other_window_record,
    pruned_record,
)

from prunescope.compare.delta import compare_records, delta_metrics, ordered_tasks
from prunescope.errors import RecordError
from prunescope.records import DEFAULT_TASKS, Alarm, EvalRecord, TaskResult

NOW = datetime(2026, 3, 14, 12, 0, 0, tzinfo=UTC)
FRACTIONS = st.floats(0.001, 1.0)


def with_task(record: EvalRecord, name: str, **changes: object) -> EvalRecord:
    task = record.tasks[name].model_copy(update=changes)
    return record.model_copy(update={"tasks": {**record.tasks, name: task}})


def with_accuracies(record: EvalRecord, values: dict[str, float]) -> EvalRecord:
    for name, value in values.items():
        record = with_task(record, name, metrics={"acc": value})
    return record


@settings(deadline=None)
@given(
    st.fixed_dictionaries(dict.fromkeys(DEFAULT_TASKS, FRACTIONS)),
    st.fixed_dictionaries(dict.fromkeys(DEFAULT_TASKS, FRACTIONS)),
)
def test_differences_relatives_and_average_equal_numpy(
    before: dict[str, float], after: dict[str, float]
) -> None:
    comparison = compare_records(
        with_accuracies(original_record(), before), with_accuracies(pruned_record(), after)
    )
    a = np.array([before[row.label] for row in comparison.tasks])
    b = np.array([after[row.label] for row in comparison.tasks])
    assert [row.difference for row in comparison.tasks] == list(b - a)
    assert [row.relative for row in comparison.tasks] == list((b - a) / a)
    average = comparison.average
    np.testing.assert_allclose(
        [average.original, average.pruned, average.difference, average.relative],
        [a.mean(), b.mean(), b.mean() - a.mean(), (b.mean() - a.mean()) / a.mean()],
        rtol=1e-12,
        atol=1e-15,
    )
    assert comparison.averaged == 7


def test_swapping_the_sides_negates_every_difference() -> None:
    there = compare_records(original_record(), pruned_record())
    back = compare_records(pruned_record(), original_record())
    for one, other in zip(
        (*there.tasks, *there.perplexity, *there.sparsity, *there.further, there.average),
        (*back.tasks, *back.perplexity, *back.sparsity, *back.further, back.average),
        strict=True,
    ):
        assert one.difference is not None
        assert one.difference == -(other.difference or 0.0)
        assert one.better is (None if other.better is None else not other.better)


def test_a_zero_original_has_a_difference_but_no_relative_change() -> None:
    comparison = compare_records(
        with_accuracies(original_record(), {"rte": 0.0}), pruned_record(), now=NOW
    )
    row = next(row for row in comparison.tasks if row.label == "rte")
    assert row.difference == pruned_record().tasks["rte"].accuracy
    assert row.relative is None
    assert row.reason == "a change relative to 0 is not defined"
    assert comparison.averaged == 7


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_no_number_has_no_delta_and_leaves_the_average(value: float) -> None:
    comparison = compare_records(
        original_record(), with_accuracies(pruned_record(), {"boolq": value})
    )
    row = comparison.tasks[0]
    assert (row.label, row.difference, row.relative) == ("boolq", None, None)
    assert row.reason == f"the pruned run's value is {value}"
    rest = [task.accuracy or 0.0 for name, task in pruned_record().tasks.items() if name != "boolq"]
    assert comparison.average.pruned == pytest.approx(np.mean(rest), rel=1e-12)
    assert comparison.averaged == 6


def test_a_nan_perplexity_has_no_delta_and_the_breakage_is_named() -> None:
    comparison = compare_records(original_record(), broken_record())
    (row,) = comparison.perplexity
    assert row.pruned is not None and math.isnan(row.pruned)
    assert (row.difference, row.relative) == (None, None)
    assert row.reason == "the pruned run's value is nan"
    assert (
        "The pruned run is broken: NaN logits first seen in wikitext2 window 3 (perplexity)"
        in comparison.notes
    )
    assert "delta/ppl_ratio" not in delta_metrics(comparison)


def test_the_average_is_over_the_tasks_that_both_have_comparably() -> None:
    pruned = with_task(pruned_record(), "boolq", version="9.0")
    tasks = {name: task for name, task in pruned.tasks.items() if name != "rte"}
    comparison = compare_records(
        original_record(), pruned.model_copy(update={"tasks": tasks}), now=NOW
    )
    shared = [n for n in DEFAULT_TASKS if n not in ("boolq", "rte")]
    expected = np.mean([original_record().tasks[n].accuracy for n in shared])
    assert comparison.average.original == pytest.approx(expected, rel=1e-12)
    assert comparison.averaged == 5
    reasons = {row.label: row.reason for row in comparison.tasks if row.reason}
    assert reasons == {
        "boolq": "task version: original 1.0, pruned 9.0",
        "rte": "not evaluated in the pruned run",
    }


def test_without_a_comparable_task_there_is_no_average() -> None:
    pruned = pruned_record().model_copy(update={"tasks": {}})
    comparison = compare_records(original_record(), pruned)
    assert comparison.average.original is None
    assert comparison.average.difference is None
    assert comparison.average.reason == "no task is comparable"
    assert delta_metrics(comparison).keys() == {"delta/ppl_ratio"}


def test_a_fall_of_a_metric_that_is_better_lower_is_an_improvement() -> None:
    (row,) = compare_records(pruned_record(), original_record()).perplexity
    assert row.difference is not None and row.difference < 0
    assert row.better is True


def test_groups_stay_out_of_the_tasks_and_the_average() -> None:
    group = TaskResult(
        task="mmlu",
        version="2",
        n=100,
        primary="acc",
        metrics={"acc": 0.01},
        group=True,
        subtasks=("boolq",),
    )

    def add(record: EvalRecord) -> EvalRecord:
        return record.model_copy(update={"tasks": {**record.tasks, "mmlu": group}})

    with_group = compare_records(add(original_record()), add(pruned_record()))
    without = compare_records(original_record(), pruned_record())
    assert [row.label for row in with_group.groups] == ["mmlu"]
    assert with_group.tasks == without.tasks
    assert with_group.average == without.average


def test_further_metrics_come_beside_the_primary_one() -> None:
    comparison = compare_records(original_record(), pruned_record())
    assert [(row.label, row.key) for row in comparison.further] == [
        ("hellaswag", "acc_norm"),
        ("arc_easy", "acc_norm"),
        ("arc_challenge", "acc_norm"),
        ("openbookqa", "acc_norm"),
    ]


def test_tasks_come_in_the_order_of_the_papers_then_others() -> None:
    record = original_record()
    shuffled = {name: record.tasks[name] for name in sorted(record.tasks)}
    extra = {"zebra": record.tasks["boolq"], **shuffled}
    assert ordered_tasks(record.model_copy(update={"tasks": extra})) == [*DEFAULT_TASKS, "zebra"]


def test_delta_metrics_are_points_and_a_ratio() -> None:
    found = delta_metrics(compare_records(original_record(), pruned_record()))
    a, b = original_record(), pruned_record()
    assert found == {
        "delta/mean_points": pytest.approx(100 * (b.mean_accuracy - a.mean_accuracy)),
        "delta/ppl_ratio": pytest.approx(
            b.perplexity["wikitext2"].perplexity / a.perplexity["wikitext2"].perplexity
        ),
    }


@pytest.mark.parametrize("side", ["original", "pruned"])
def test_an_evaluation_that_did_not_finish_is_refused_by_name(side: str) -> None:
    pair = {"original": original_record(), "pruned": pruned_record(), side: failed_record()}
    with pytest.raises(RecordError, match=f"finished evaluation as the {side}.*out of memory"):
        compare_records(pair["original"], pair["pruned"])


def test_the_older_scripts_results_give_the_deltas_it_left_empty() -> None:
    comparison = compare_records(legacy_record("original"), legacy_record("pruned"))
    old = legacy_json()
    for row in comparison.tasks:
        sides = [
            old[s]["tasks"][row.label]["full_results"]["acc,none"] for s in ("original", "pruned")
        ]
        assert row.difference == sides[1] - sides[0]
    assert comparison.averaged == 7
    assert comparison.average.relative == pytest.approx(-0.153, abs=0.001)
    assert comparison.perplexity[0].relative == pytest.approx(9.0142 / 5.6213 - 1)
    assert any("taken to be equal: task version" in note for note in comparison.notes)


def test_alarms_of_either_side_are_notes() -> None:
    alarm = Alarm(code="not-pruned", message="no linear weight is zero")
    pruned = pruned_record().model_copy(update={"alarms": (alarm,)})
    comparison = compare_records(original_record(), pruned)
    assert "Alarm, pruned: no linear weight is zero" in comparison.notes


def test_a_mismatch_is_shown_only_when_asked_for_and_counts_nowhere() -> None:
    pruned = with_task(other_window_record(), "boolq", version="9.0")
    refused = compare_records(original_record(), pruned)
    allowed = compare_records(original_record(), pruned, allow_mismatch=True)
    row = allowed.tasks[0]
    assert row.original is not None and row.pruned is not None
    assert row.difference == row.pruned - row.original
    assert row.mismatch and not row.comparable
    assert row.reason == refused.tasks[0].reason == "task version: original 1.0, pruned 9.0"
    assert allowed.perplexity[0].difference is not None and allowed.perplexity[0].mismatch
    assert allowed.average == refused.average and allowed.averaged == 6
    assert delta_metrics(allowed) == delta_metrics(refused)
    assert "delta/ppl_ratio" not in delta_metrics(allowed)


def test_what_is_missing_cannot_be_allowed() -> None:
    pruned = pruned_record().model_copy(update={"tasks": {}, "perplexity": {}})
    allowed = compare_records(original_record(), pruned, allow_mismatch=True)
    assert all(row.difference is None and not row.mismatch for row in allowed.tasks)
    assert allowed.perplexity[0].difference is None
