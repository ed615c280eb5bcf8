"""CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.golden import check_golden
from support.records import original_record, pruned_record, write_example

from prunescope.compare.analysis import compare_directories
from prunescope.compare.delta import Comparison, compare_records
from prunescope.compare.formats import csv_report, escape_latex, latex_report
from prunescope.compare.report import write_comparison
from prunescope.errors import SettingError
from prunescope.records import EvalRecord

NOW = datetime(2026, 3, 14, 12, 0, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder = tmp_path_factory.mktemp("records")
    for name in ("original", "pruned"):
        write_example(folder / name, name)
    return compare_directories(folder / "original", folder / "pruned", now=NOW)


def test_both_equal_golden(whole: Comparison) -> None:
    check_golden("analysis-pair.csv", csv_report(whole).replace("\r\n", "\n"))
    check_golden("analysis-pair.tex", latex_report(whole))


def test_csv_keeps_every_digit(whole: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_report(whole), newline="")))
    tasks = [row for row in rows if row["section"] == "task"]
    for row, expected in zip(tasks, whole.tasks, strict=True):
        assert row["label"] == expected.label
        assert float(row["difference"]) == expected.difference
        assert float(row["relative"]) == expected.relative
    assert whole.analysis is not None and whole.analysis.suite is not None
    for row, judged in zip(tasks, whole.analysis.suite.tasks, strict=True):
        assert float(row["low"]) == judged.estimate.low
        assert float(row["p_holm"]) == judged.p_holm
        assert row["verdict"] == judged.verdict
    (average,) = (row for row in rows if row["section"] == "average")
    assert float(average["pruned"]) == whole.average.pruned


def renamed(record: EvalRecord, name: str) -> EvalRecord:
    tasks = {name: record.tasks["boolq"]}
    return record.model_copy(update={"tasks": tasks})


@pytest.mark.parametrize("name", ['=HYPERLINK("x")', 'a,"b"\nc', "+1"])
def test_no_name_breaks_a_cell_or_becomes_a_formula(name: str) -> None:
    comparison = compare_records(
        renamed(original_record(), name), renamed(pruned_record(), name), now=NOW
    )
    rows = list(csv.DictReader(io.StringIO(csv_report(comparison), newline="")))
    (task,) = (row for row in rows if row["section"] == "task")
    assert task["label"].lstrip("'") == name
    assert task["label"][0] not in "=+-@"


@settings(deadline=None)
@given(st.text(max_size=50))
def test_escaped_latex_has_no_bare_special_character(text: str) -> None:
    escaped = escape_latex(text)
    commands = (
        r"\\(?:textbackslash|textasciicircum|textasciitilde|textless|textgreater|textbar)\{\}"
    )
    rest = re.sub(commands + r"|\\ldots\{\}|\$(?:-|\\pm|\\times)\$|\\[{}$&#%_]", "", escaped)
    assert not re.search(r"[\\{}$&#%_^~<>|\n\r]", rest)


def test_negative_numbers_have_a_minus_and_words_keep_their_hyphens() -> None:
    assert escape_latex("-0.12") == "$-$0.12"
    assert escape_latex("SmolLM2-135M -3 to -4") == "SmolLM2-135M $-$3 to $-$4"


def test_formats_are_chosen_by_name(tmp_path: Path, whole: Comparison) -> None:
    written = write_comparison(whole, tmp_path, formats=("csv", "tex"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "comparison_20260314_120000.csv",
        "comparison_20260314_120000.tex",
    ]
    assert written["tex"].read_text() == latex_report(whole)
    with pytest.raises(SettingError, match="unknown report format docx; expected json, md"):
        write_comparison(whole, tmp_path, formats=("docx",))
