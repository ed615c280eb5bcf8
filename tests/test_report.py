"""Whole reports against golden files, and what must hold in every one of them."""

from __future__ import annotations

import io
import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console
from support.golden import check_golden
from support.legacy import legacy_json, legacy_record
from support.records import (
    broken_record,
    failed_record,
    original_record,
    other_window_record,
    pruned_record,
)

from prunescope.compare.delta import Comparison, compare_records
from prunescope.compare.markdown import NOTE_LIMIT, escape_markdown
from prunescope.compare.report import (
    html_report,
    json_report,
    json_text,
    markdown_report,
    plain_report,
    plain_table,
    run_note,
    run_report_html,
    run_report_markdown,
    terminal_report,
    write_comparison,
)
from prunescope.errors import OutputError
from prunescope.plain import printable
from prunescope.records import EvalRecord, RunRef

NOW = datetime(2026, 3, 14, 12, 0, 0, tzinfo=UTC)
MARKDOWN = MarkdownIt("commonmark").enable("table")
HOSTILE = 'a|b\n<script>alert(1)</script> & "q" \\ `c` *d* _e_ [f](g) $h$ ~i~ [/red]'


def named(record: EvalRecord, name: str) -> EvalRecord:
    model = record.model.model_copy(update={"name": name, "path": name})
    return record.model_copy(update={"model": model})


def nothing_comparable() -> Comparison:
    tasks = {
        name: task.model_copy(update={"version": "2.0"})
        for name, task in pruned_record().tasks.items()
    }
    found = other_window_record().model_copy(update={"tasks": tasks})
    return compare_records(original_record(), found, now=NOW)


PAIRS = {
    "pair": lambda: compare_records(original_record(), pruned_record(), now=NOW),
    "identical": lambda: compare_records(original_record(), original_record(), now=NOW),
    "broken": lambda: compare_records(original_record(), broken_record(), now=NOW),
    "nothing-comparable": nothing_comparable,
    "imported": lambda: compare_records(
        legacy_record("original"), legacy_record("pruned"), now=NOW
    ),
    "hostile": lambda: compare_records(
        named(original_record(), HOSTILE), named(pruned_record(), HOSTILE), now=NOW
    ),
}


@pytest.fixture(params=list(PAIRS))
def pair(request: pytest.FixtureRequest) -> tuple[str, Comparison]:
    return request.param, PAIRS[request.param]()


def drawn(comparison: Comparison, *, color: bool = False, width: int = 100) -> str:
    console = Console(
        width=width, file=io.StringIO(), force_terminal=color, no_color=not color, record=False
    )
    console.print(terminal_report(comparison))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# --- golden -------------------------------------------------------------------------------------


def test_terminal_plain_equals_golden(pair: tuple[str, Comparison]) -> None:
    check_golden(f"{pair[0]}.plain.txt", plain_report(pair[1]))


def test_terminal_rich_equals_golden(pair: tuple[str, Comparison]) -> None:
    check_golden(f"{pair[0]}.rich.txt", drawn(pair[1]))


def test_markdown_equals_golden(pair: tuple[str, Comparison]) -> None:
    check_golden(f"{pair[0]}.md", markdown_report(pair[1]))


def test_json_equals_golden(pair: tuple[str, Comparison]) -> None:
    report = json.loads(json_text(pair[1]))
    runs = report.pop("runs")
    check_golden(f"{pair[0]}.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    for side, record in (("original", pair[1].original), ("pruned", pair[1].pruned)):
        for part in ("model", "protocol", "provenance", "labels"):
            expected = getattr(record, part).model_dump(mode="json")
            assert runs[side][part] == json.loads(json.dumps(expected))


def test_note_equals_golden(pair: tuple[str, Comparison]) -> None:
    links = ("http://localhost:5000/#/a", "http://localhost:5000/#/compare?b=(c)")
    check_golden(f"{pair[0]}.note.md", run_note(pair[1], *links))


@pytest.mark.parametrize("name", ["pair", "broken"])
def test_html_equals_golden(name: str) -> None:
    check_golden(f"{name}.html", html_report(PAIRS[name]()))


@pytest.mark.parametrize("record", [pruned_record(), failed_record()], ids=["finished", "failed"])
def test_report_of_a_single_run_equals_golden(record: EvalRecord) -> None:
    check_golden(f"run-{record.status}.md", run_report_markdown(record))
    check_golden(f"run-{record.status}.html", run_report_html(record))


# --- terminal -----------------------------------------------------------------------------------


def test_the_plain_table_has_the_older_scripts_columns() -> None:
    lines = plain_table(PAIRS["pair"]()).splitlines()
    assert lines[0] == (
        "Task                 Original        Pruned          Difference      Relative"
    )
    assert lines[1].startswith("boolq                0.7500          0.6833          -0.0667")
    assert lines[-1].startswith("AVERAGE              0.5606          0.4548          -0.1058")
    assert len(lines) == 9


def test_a_refused_row_shows_no_delta_and_its_reason() -> None:
    text = plain_table(nothing_comparable())
    row = next(line for line in text.splitlines() if line.startswith("boolq"))
    assert row.split() == ["boolq", "0.7500", "0.6833", "n/a", "n/a", "[1]"]
    assert "[1] task version: original 1.0, pruned 2.0" in text
    average = next(line for line in text.splitlines() if line.startswith("AVERAGE"))
    assert average.split() == ["AVERAGE", "(0", "of", "7)", "n/a", "n/a", "n/a", "n/a", "[2]"]


def test_an_allowed_mismatch_is_marked_with_its_reason() -> None:
    comparison = compare_records(
        original_record(), other_window_record(), now=NOW, allow_mismatch=True
    )
    for text in (plain_report(comparison), drawn(comparison)):
        assert re.search(r"PPL Degradation +\+3\.9509 \(\+24\.84%\) ! \[1\]", text)
        assert "[1] window length: original 32, pruned 64" in text
    assert "| +3.9509 ! | +24.84% \\[1\\] |" in markdown_report(comparison)


def test_colours_follow_the_direction_of_the_metric() -> None:
    text = drawn(PAIRS["pair"](), color=True)
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    red, green = "\x1b[31m", "\x1b[32m"
    assert red in lines["boolq"] and green not in lines["boolq"]
    assert green in lines["rte"] and red not in lines["rte"]
    assert red in lines["PPL"]  # a perplexity that rises is worse
    assert "\x1b[3" not in lines["openbookqa"]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_width_cuts_a_figure(width: int) -> None:
    text = drawn(PAIRS["pair"](), width=width)
    for figure in ("0.7500", "0.6833", "-0.0667", "-8.89%", "25.5408"):
        assert figure in text


def test_columns_stay_aligned_under_names_wider_than_their_letters() -> None:
    name = "剪枝模型"
    lines = plain_report(
        compare_records(named(original_record(), name), named(pruned_record(), "b"), now=NOW)
    ).splitlines()
    column = lines[0].index("Pruned")
    assert lines[1].index("b", 20) == column - len(name)  # each character takes two cells


def test_several_corpora_each_have_their_own_degradation() -> None:
    def add(record: EvalRecord, value: float) -> EvalRecord:
        found = record.perplexity["wikitext2"]
        c4 = found.model_copy(update={"corpus": "c4", "perplexity": value})
        return record.model_copy(update={"perplexity": {"wikitext2": found, "c4": c4}})

    text = plain_report(
        compare_records(add(original_record(), 10.0), add(pruned_record(), 12.5), now=NOW)
    )
    assert re.search(r"^PPL Degradation \(WikiText2 PPL \(32\)\) +\+9\.6370", text, re.M)
    assert re.search(r"^PPL Degradation \(C4 PPL \(32\)\) +\+2\.5000 \(\+25\.00%\)", text, re.M)


# --- JSON ---------------------------------------------------------------------------------------


def keys(value: Any) -> Any:
    """The keys of nested objects, in order."""
    return {k: keys(v) for k, v in value.items()} if isinstance(value, dict) else None


def test_the_json_has_the_older_scripts_shape_with_its_figures_filled_in() -> None:
    old = legacy_json()
    new = json_report(PAIRS["imported"]())
    assert list(new)[:3] == ["original", "pruned", "timestamp"] == list(old)
    for side in ("original", "pruned"):
        assert json.dumps(keys(new[side])) == json.dumps(keys(old[side]))
        for field in ("model_name", "model_path", "wikitext_ppl", "eval_time_seconds"):
            assert new[side][field] == old[side][field]
        assert new[side]["sparsity"] == pytest.approx(old[side]["sparsity"], rel=1e-5)
        for task, entry in old[side]["tasks"].items():
            assert new[side]["tasks"][task]["full_results"] == entry["full_results"]
            assert new[side]["tasks"][task]["accuracy"] == entry["full_results"]["acc,none"]
    assert re.fullmatch(r"\d{8}_\d{6}", new["timestamp"])


def test_json_is_standard_json_even_where_values_are_nan() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads(json_text(PAIRS["broken"]()), parse_constant=refuse)
    assert read["pruned"]["wikitext_ppl"] == "NaN"
    assert read["perplexity"][0]["difference"] is None


def test_a_perplexity_of_another_corpus_is_not_passed_off_as_wikitext() -> None:
    found = pruned_record().perplexity["wikitext2"].model_copy(update={"corpus": "boolq-passages"})
    record = pruned_record().model_copy(update={"perplexity": {"boolq-passages": found}})
    report = json_report(compare_records(record, record, now=NOW))
    assert report["original"]["wikitext_ppl"] is None
    assert report["perplexity"][0]["label"] == "BoolQ passages PPL (32)"


# --- Markdown and notes -------------------------------------------------------------------------


@settings(deadline=None)
@given(st.text(max_size=60))
def test_escaped_text_is_one_cell_that_shows_the_text(text: str) -> None:
    table = f"| a | b |\n| --- | --- |\n| {escape_markdown(text)} | z |\n"
    tokens = MARKDOWN.parse(table)
    cells = [t for t in tokens if t.type == "inline"]
    assert len(cells) == 4
    kinds = {child.type for child in cells[2].children or ()}
    assert kinds <= {"text", "text_special"}
    shown = "".join(child.content for child in cells[2].children or ())
    assert shown.split() == printable(text).split()


def test_task_names_stay_readable_in_markdown() -> None:
    assert escape_markdown("arc_easy") == "arc_easy"
    assert escape_markdown("_arc_") == r"\_arc\_"


def test_no_name_breaks_out_of_a_report() -> None:
    comparison = PAIRS["hostile"]()
    for text in (markdown_report(comparison), run_note(comparison, None, None)):
        assert "<script" not in MARKDOWN.render(text)
    assert html_report(comparison).count("<script") == 1  # our own, which sorts
    assert "[/red]" in drawn(comparison)


def test_a_notes_first_line_is_plain_text() -> None:
    note = run_note(PAIRS["pair"](), "http://a/run", "http://a/compare")
    first, _, rest = note.partition("\n")
    assert first == (
        "\u221210.6 points mean accuracy, perplexity \u00d71.61, 50.0 % sparse, "
        "against SmolLM2-135M"
    )
    assert "(http://a/run)" in rest and "(http://a/compare)" in rest
    assert "| boolq | 0.7500 | 0.6833 | -0.0667 | -8.89% |" in rest


def test_a_note_of_very_many_tasks_stays_under_the_limit_of_a_tag() -> None:
    def many(record: EvalRecord) -> EvalRecord:
        tasks = {f"a_rather_long_task_name_{n}": record.tasks["boolq"] for n in range(200)}
        return record.model_copy(update={"tasks": tasks})

    note = run_note(compare_records(many(original_record()), many(pruned_record()), now=NOW))
    assert NOTE_LIMIT - 200 < len(note) <= NOTE_LIMIT
    table_lines = [line for line in note.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in table_lines)


def test_links_to_the_runs_name_them() -> None:
    run = RunRef(run_id="1" * 32, experiment_id="1", run_name="SmolLM2 dense", tracking_uri="x")
    comparison = compare_records(original_record(), pruned_record(), now=NOW, original_run=run)
    assert "| Run id | " + "1" * 32 + " | - |" in markdown_report(comparison)
    assert json_report(comparison)["runs"]["original"]["run"]["run_id"] == "1" * 32


# --- HTML ---------------------------------------------------------------------------------------


class _Page(HTMLParser):
    VOID = frozenset({"meta", "link", "br", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses.extend(v or "" for k, v in attrs if k in ("src", "href", "xlink:href"))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses.extend(v or "" for k, v in attrs if k in ("src", "href"))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "td":
            self.cells[-1] += data


def test_the_page_is_well_formed_and_asks_the_network_for_nothing(
    pair: tuple[str, Comparison],
) -> None:
    text = html_report(pair[1])
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert page.addresses == ["data:,"]
    assert not re.search(r"https?:|@import|url\(", text)


def test_the_page_shows_every_figure_of_the_terminal(pair: tuple[str, Comparison]) -> None:
    page = _Page()
    page.feed(html_report(pair[1]))
    cells = set(page.cells)
    for line in plain_table(pair[1]).partition("\n\n")[0].splitlines()[1:]:
        label, *figures = re.split(r"\s{2,}", re.sub(r" \[\d+\]$", "", line))
        assert label in cells
        for figure in figures:
            assert any(cell.startswith(figure) for cell in cells)


# --- files --------------------------------------------------------------------------------------


def test_files_are_named_by_the_time_and_never_overwritten(tmp_path: Path) -> None:
    comparison = PAIRS["pair"]()
    first = write_comparison(comparison, tmp_path / "out")
    before = {path: path.read_bytes() for path in first.values()}
    second = write_comparison(comparison, tmp_path / "out")
    assert [path.name for path in first.values()] == [
        "comparison_20260314_120000.json",
        "comparison_20260314_120000.md",
        "comparison_20260314_120000.html",
    ]
    assert [path.name for path in second.values()] == [
        "comparison_20260314_120000_2.json",
        "comparison_20260314_120000_2.md",
        "comparison_20260314_120000_2.html",
    ]
    assert {path: path.read_bytes() for path in first.values()} == before
    assert json.loads(first["json"].read_text()) == json_report(comparison)
    assert first["md"].read_text() == markdown_report(comparison)


def test_a_file_of_the_same_name_of_the_users_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "comparison_20260314_120000.md").write_text("mine")
    written = write_comparison(PAIRS["pair"](), tmp_path)
    assert (tmp_path / "comparison_20260314_120000.md").read_text() == "mine"
    assert written["json"].name == "comparison_20260314_120000_2.json"


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write into .*file/out: .*--output-dir"):
        write_comparison(PAIRS["pair"](), tmp_path / "file" / "out")


def test_when_one_file_cannot_be_written_none_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(path: Path, content: str) -> None:
        if path.suffix == ".html":
            raise OutputError("disk full")
        path.write_text(content)

    monkeypatch.setattr("prunescope.compare.report.write_file", full_disk)
    with pytest.raises(OutputError, match="disk full"):
        write_comparison(PAIRS["pair"](), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_page_of_a_tracked_run_names_it_and_links_to_it() -> None:
    run = RunRef(
        run_id="1" * 32, experiment_id="1", run_name="pruned", tracking_uri="x", url="http://x/#/r"
    )
    page = run_report_html(original_record(), None, run)
    assert '<a href="http://x/#/r">pruned</a>' in page
    assert "1" * 32 in page
    assert "1" * 32 in run_report_markdown(original_record(), run)
    untracked = run_report_html(original_record(), None, run.model_copy(update={"url": None}))
    assert "<a " not in untracked
