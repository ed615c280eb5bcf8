"""CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from support.golden import check_golden
from support.records import original_record, pruned_record, write_example

from prunescope.compare.analysis import compare_directories
from prunescope.compare.delta import Comparison, compare_records
from prunescope.compare.formats import csv_report, escape_latex, latex_report
from prunescope.compare.report import plain_report, terminal_report, write_comparison
from prunescope.errors import SettingError
from prunescope.records import DivergenceResult, EvalRecord

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


def diverged(whole: Comparison) -> Comparison:
    """The pair, the pruned side with token-level divergence: full, and from kept top 16."""
    made = DivergenceResult(
        corpus="wikitext2",
        kind="full",
        mean=0.1234567890123,
        stderr_tokens=0.001,
        stderr_windows=0.0023456789012,
        percentiles={"0": 0.0, "50": 0.0512, "99": 1.75, "100": 3.5},
        same_top=0.875,
        same_top_stderr=0.0125,
        tokens=186,
        windows=6,
        reference_name="SmolLM2-135M",
        reference_record_id=whole.original.record_id,
    )
    kept = made.model_copy(
        update={"corpus": "c4", "kind": "top-k", "k": 16, "reference_record_id": None}
    )
    record = whole.pruned.model_copy(update={"divergence": {"wikitext2": made, "c4": kept}})
    return replace(whole, pruned=record)


def test_divergences_are_in_the_terminal_in_csv_and_in_latex(whole: Comparison) -> None:
    comparison = diverged(whole)
    check_golden("analysis-kl.plain.txt", plain_report(comparison))
    check_golden("analysis-kl.csv", csv_report(comparison).replace("\r\n", "\n"))
    check_golden("analysis-kl.tex", latex_report(comparison))


def test_csv_keeps_every_digit_of_a_divergence(whole: Comparison) -> None:
    comparison = diverged(whole)
    rows = list(csv.DictReader(io.StringIO(csv_report(comparison), newline="")))
    assert all(None not in row and None not in row.values() for row in rows)
    assert comparison.analysis is not None
    tasks = {row["label"]: row for row in rows if row["section"] == "task"}
    assert len(comparison.analysis.divergences) == len(tasks)
    for found in comparison.analysis.divergences:
        row = tasks[found.task]
        assert float(row["choice_kl"]) == found.kl
        assert float(row["choice_kl_stderr"]) == found.kl_stderr
        assert float(row["choice_tv"]) == found.total_variation
        assert float(row["choice_tv_stderr"]) == found.total_variation_stderr
    words = {row["key"]: row for row in rows if row["section"] == "divergence"}
    for corpus, result in comparison.pruned.divergence.items():
        row = words[f"kl/{corpus}"]
        assert float(row["pruned"]) == result.mean
        assert float(row["pruned_stderr"]) == result.stderr_windows
        assert row["original"] == row["original_stderr"] == row["difference"] == ""
        assert float(words[f"kl_median/{corpus}"]["pruned"]) == result.percentiles["50"]
        assert float(words[f"kl_p99/{corpus}"]["pruned"]) == result.percentiles["99"]
        assert float(words[f"same_top/{corpus}"]["pruned"]) == result.same_top
    assert words["kl/wikitext2"]["label"] == "KL divergence from the original"
    assert words["kl/c4"]["label"] == "KL divergence from SmolLM2-135M, lower bound with k = 16"


def test_a_narrow_terminal_leaves_out_the_percentiles_first(whole: Comparison) -> None:
    comparison = diverged(whole)
    for width, shown in ((140, True), (85, False)):
        console = Console(width=width, file=io.StringIO())
        console.print(terminal_report(comparison))
        assert isinstance(console.file, io.StringIO)
        text = console.file.getvalue()
        assert ("Median" in text) is shown
        assert "0.1235 \u00b1 0.0023" in text
        assert re.search(r"boolq +60 +0\.4230 \u00b1 0\.0906 +0\.2210", text)


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


@pytest.mark.parametrize(
    "name",
    ['=HYPERLINK("x")', 'a,"b"\nc', "+1", "-1", "@S(1)", " =1", "\t=1", "\r=1", "\uff1d1"],
)
def test_no_name_breaks_a_cell_or_becomes_a_formula(name: str) -> None:
    comparison = compare_records(
        renamed(original_record(), name), renamed(pruned_record(), name), now=NOW
    )
    rows = list(csv.DictReader(io.StringIO(csv_report(comparison), newline="")))
    (task,) = (row for row in rows if row["section"] == "task")
    assert task["label"].removeprefix("'") == name.replace("\r", " ")
    assert name[0] == "a" or task["label"][0] == "'"


@settings(deadline=None)
@given(st.text(max_size=50))
def test_escaped_latex_has_no_bare_special_character(text: str) -> None:
    escaped = escape_latex(text)
    commands = (
        r"\\(?:textbackslash|textasciicircum|textasciitilde|textless|textgreater|textbar)\{\}"
    )
    symbols = r"|\\ldots\{\}|\$(?:-|\\pm|\\times|\\geq|\\Delta)\$|\\[{}$&#%_]"
    rest = re.sub(commands + symbols + r"|(?<=[-'`,?!])\{\}", "", escaped)
    assert not re.search(r"[\\{}$&#%_^~<>|\n\r]", rest)
    assert not re.search(r"--|''|``|,,|[?!]`", escaped)


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
