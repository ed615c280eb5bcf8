"""Conditions for CI: what they say, when they hold, and what CI is told."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.records import (
    broken_record,
    original_record,
    other_window_record,
    pruned_record,
    write_example,
)

from prunescope.compare.analysis import compare_directories
from prunescope.compare.delta import Comparison, compare_records
from prunescope.compare.gate import evaluate_gate, parse_gate, read_gate
from prunescope.compare.gate_output import describe, gate_json, gate_junit
from prunescope.errors import SettingError

NOW = datetime(2026, 3, 14, 12, 0, 0, tzinfo=UTC)
BARE = compare_records(original_record(), pruned_record(), now=NOW)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder = tmp_path_factory.mktemp("records")
    for name in ("original", "pruned"):
        write_example(folder / name, name)
    return compare_directories(folder / "original", folder / "pruned", now=NOW)


def status(comparison: Comparison, text: str) -> str:
    return evaluate_gate(comparison, parse_gate(text)).status


# --- reading ------------------------------------------------------------------------------------


def test_the_issues_example_is_understood() -> None:
    found = parse_gate("ppl<=+5%, acc.mean>=-1pt, acc.boolq>=-2pt, sparsity>=50%, pattern=2:4")
    assert [(c.name, c.op, c.scale, c.bound) for c in found[:4]] == [
        ("ppl", "<=", "relative", 0.05),
        ("acc.mean", ">=", "points", -0.01),
        ("acc.boolq", ">=", "points", -0.02),
        ("sparsity", ">=", "value", 0.5),
    ]
    assert (found[4].name, found[4].pattern) == ("pattern", "2:4")


def test_a_file_holds_a_condition_a_line_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "gate.txt"
    path.write_text("# what we ship\nppl <= 12.5\n\nacc.mean >= -1pt  # mean\n")
    assert [c.text for c in read_gate(str(path))] == ["ppl <= 12.5", "acc.mean >= -1pt"]
    assert [c.text for c in read_gate("ppl<=12.5")] == ["ppl<=12.5"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no condition"),
        ("# only a comment", "no condition"),
        ("ppl", "cannot understand the gate's condition 'ppl'"),
        ("ppl=5%", "cannot understand"),
        ("ppl<=five", "cannot understand"),
        ("ppl<=5pts", "cannot understand"),
        ("speed>=3", "knows no figure 'speed'"),
        ("pattern>=2:4", "expected pattern=N:M"),
        ("pattern=half", "expected pattern=N:M"),
    ],
)
def test_a_mistake_is_named_with_an_example(text: str, said: str) -> None:
    with pytest.raises(SettingError, match=said) as caught:
        parse_gate(text)
    assert "acc.mean>=-1pt" in str(caught.value)


def test_neither_conditions_nor_a_file_is_told() -> None:
    with pytest.raises(SettingError, match="neither conditions nor a readable file: 'nothing'"):
        read_gate("nothing")


# --- judging ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sparsity>=50%", "pass"),
        ("sparsity>=51%", "fail"),
        ("sparsity>=0.5", "pass"),
        ("sparsity>=+40pt", "pass"),
        ("sparsity.total>=50%", "fail"),
        ("pattern=2:4", "pass"),
        ("pattern=4:8", "fail"),
        ("ppl<=+61%", "pass"),
        ("ppl<=+60%", "fail"),
        ("ppl.wikitext2<=+61%", "pass"),
        ("ppl.c4<=+61%", "inconclusive"),
        ("acc_norm.hellaswag>=-7pt", "pass"),
        ("acc_norm.hellaswag>=-6pt", "fail"),
        ("acc_norm.boolq>=-6pt", "inconclusive"),
        ("acc.mean>=-20%", "pass"),
        ("acc.mean>=-18%", "fail"),
    ],
)
def test_figures_without_an_interval_are_judged_as_they_are(text: str, expected: str) -> None:
    assert status(BARE, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("acc.mean>=-17pt", "pass"),  # -10.58, from -16.32 to -4.85
        ("acc.mean>=-10pt", "inconclusive"),
        ("acc.mean>=-4pt", "fail"),
        ("acc.arc_easy>=-8pt", "inconclusive"),
        ("acc.arc_easy>=-7pt", "fail"),  # from -36.01 to -7.33
        ("acc.arc_easy>=-73%", "pass"),  # the same over 0.5
        ("ppl<=+70%", "pass"),  # from +51.74 % to +69.45 %
        ("ppl<=+60%", "inconclusive"),
        ("ppl<=+50%", "fail"),
    ],
)
def test_the_interval_decides_where_there_is_one(
    whole: Comparison, text: str, expected: str
) -> None:
    assert status(whole, text) == expected


def test_absolute_bounds_use_the_pruned_models_own_interval() -> None:
    found = evaluate_gate(BARE, parse_gate("acc.boolq>=0.6, ppl<=25"))
    boolq, ppl = found.conditions
    task = pruned_record().tasks["boolq"]
    assert boolq.observed == task.accuracy
    assert boolq.low == pytest.approx((task.accuracy or 0) - 1.959964 * task.stderr["acc"])
    assert boolq.status == "inconclusive"
    text = pruned_record().perplexity["wikitext2"]
    assert ppl.high == pytest.approx(math.exp(text.mean_nll + 1.959964 * (text.stderr_nll or 0)))


def test_what_is_not_comparable_is_inconclusive_with_the_reason() -> None:
    tasks = {
        name: task.model_copy(update={"version": "2.0"})
        for name, task in pruned_record().tasks.items()
    }
    other = compare_records(original_record(), pruned_record().model_copy(update={"tasks": tasks}))
    (found,) = evaluate_gate(other, parse_gate("acc.boolq>=-2pt")).conditions
    assert found.status == "inconclusive"
    assert found.reason == "task version: original 1.0, pruned 2.0"


def test_an_allowed_mismatch_is_still_inconclusive() -> None:
    other = compare_records(original_record(), other_window_record(), allow_mismatch=True)
    assert status(other, "ppl<=+90%") == "inconclusive"


def test_nan_fails() -> None:
    broken = compare_records(original_record(), broken_record())
    assert status(broken, "ppl<=+5%") == "fail"
    assert status(broken, "ppl<=100") == "fail"


def test_the_worst_condition_decides_and_gives_the_exit_code(whole: Comparison) -> None:
    for text, code in (
        ("sparsity>=50%", 0),
        ("sparsity>=50%, acc.mean>=-10pt", 3),
        ("sparsity>=50%, acc.mean>=-10pt, acc.mean>=-4pt", 1),
    ):
        assert evaluate_gate(whole, parse_gate(text)).exit_code == code


def test_a_figure_of_no_width_at_the_bound_holds() -> None:
    row = replace(BARE.average, difference=-0.01)
    assert status(replace(BARE, average=row), "acc.mean>=-1pt") == "pass"


# --- writing ------------------------------------------------------------------------------------


def test_ci_reads_json_and_junit(whole: Comparison) -> None:
    result = evaluate_gate(whole, parse_gate("sparsity>=50%\nacc.mean>=-10pt\nacc.mean>=-4pt"))
    read = json.loads(gate_json(result))
    assert (read["status"], read["exit_code"]) == ("fail", 1)
    assert [c["status"] for c in read["conditions"]] == ["pass", "inconclusive", "fail"]
    assert read["conditions"][1]["bound"] == -0.1
    root = ElementTree.fromstring(gate_junit(result))
    (suite,) = root
    assert suite.attrib["tests"] == "3"
    assert (suite.attrib["failures"], suite.attrib["errors"]) == ("1", "1")
    assert [[child.tag for child in case] for case in suite] == [[], ["error"], ["failure"]]
    assert describe(result.conditions[2]) == "fail: acc.mean>=-4pt: -10.58 (-16.32 to -4.85)"


def test_a_pattern_in_json_has_no_bound() -> None:
    read = json.loads(gate_json(evaluate_gate(BARE, parse_gate("pattern=2:4"))))
    assert read["conditions"][0]["bound"] is None
