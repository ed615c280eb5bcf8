"""Names and texts full of markup, formulas and control characters, through every report.

Each report is read by a parser of its format: the rows and columns are those of a report with
plain names, the text shows as it is, and nothing of it is obeyed.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest
import torch
from markdown_it import MarkdownIt
from support.browser import needs_browser, start_browser
from support.cli import run_cli
from support.records import (
    EXAMPLES,
    Example,
    sample_rows,
    samples_table,
    write_example,
)
from support.server import fresh_store

from prunescope.cli.console import Output
from prunescope.cli.summary import summary_table
from prunescope.compare.analysis import compare_directories
from prunescope.compare.delta import Comparison
from prunescope.compare.leaderboard import Leaderboard, leaderboard, leaderboard_run
from prunescope.compare.report import (
    csv_report,
    html_report,
    json_text,
    latex_report,
    markdown_report,
    plain_report,
    run_note,
    run_report_html,
    run_report_markdown,
    terminal_report,
)
from prunescope.compare.structure import read_structure
from prunescope.evaluate.sparsity import measure, sparsity_report, write_pictures
from prunescope.records import (
    Alarm,
    Breakage,
    EvalRecord,
    Labels,
    RunRef,
    SparsityResult,
    read_record,
    read_tensors,
    samples_path,
    write_record,
)
from prunescope.tracking.codec import encode
from prunescope.tracking.notes import compose_note

NOW = datetime(2026, 3, 14, 12, 0, 0, tzinfo=UTC)
MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])

NAMES = {
    "pipes": "a|b||c \\| d",
    "lines": "first\nsecond\r\nthird\u2028fourth\rfifth\x85sixth",
    "script": "</title></script><script>alert(1)</script><img src=x onerror=alert(1)>",
    "attributes": '" onmouseover="alert(1)" x=\'',
    "link": "[click](javascript:alert(1)) ![i](http://evil.invalid/x.png) <http://evil.invalid>",
    "markdown": "# h\n- item\n> q `code` ``` *em* __st__ ~~s~~ [^1] $x$ &lt; &#60;",
    "html entity": "&lt;script&gt; &amp; &nbsp;",
    "latex": "\\input{/etc/passwd} \\end{tabular} $x_1^2$ 50% #1 ~ {\\bf y} & \\\\ ^^5c",
    "formula": '=HYPERLINK("http://evil.invalid","x")',
    "plus": "+1+cmd|' /C calc'!A0",
    "minus": "-2+3",
    "at": "@SUM(1)",
    "tab": "\t=1",
    "rich": "[red]red[/red] [/] [bold] [link=http://evil.invalid]x[/link] :smile:",
    "ansi": "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b]8;;http://evil.invalid\x1b\\x \x9b31m \x08",
    "bidi": "safe\u202egnp.exe\u2066x\u2069 \u200fy",
    "dash": "---",
    "numbered": "1. one",
    "surrogate": "half \udcff of a pair",
    "mathematics": "$x_1^{$ and $\\frac{$ \\$",
    "hidden": "_hidden",
}
OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200e\u200f\u2028\u2029]"
)
"""What a terminal or browser would obey."""


@dataclass(frozen=True)
class Pair:
    """Two evaluations on disk, and their comparison."""

    original: Path
    pruned: Path
    comparison: Comparison

    @property
    def record(self) -> EvalRecord:
        return read_record(self.pruned)


def write_named(folder: Path, which: Example, name: str) -> Path:
    """An example whose every free text is ``name``: model, labels, tasks, documents, notes."""
    storable = name.encode("utf-8", "replace").decode()  # a record is UTF-8
    record = write_example(folder, which)
    sparsity = read_tensors(folder)
    tasks = dict(record.tasks)
    tasks[storable] = tasks.pop("boolq").model_copy(update={"task": storable})
    rows = [
        {**row, "context": storable, "choices": [storable, f"{storable} 2"], "document": "{}"}
        for row in sample_rows(which, "boolq")
    ]
    pq.write_table(samples_table(rows), samples_path(folder, storable))
    renamed = [
        tensor.model_copy(update={"kind": storable}) if tensor.kind == "q" else tensor
        for tensor in sparsity.tensors
    ]
    kinds = {storable if kind == "q" else kind: count for kind, count in sparsity.kinds.items()}
    changes: dict[str, Any] = {
        "labels": Labels(
            role=which.role, method=storable, run_name=storable, tags={storable: storable}
        ),
        "model": record.model.model_copy(
            update={"name": storable, "requested": storable, "path": f"/data/{storable}"}
        ),
        "tasks": tasks,
        "sparsity": sparsity.model_copy(update={"tensors": tuple(renamed), "kinds": kinds}),
        "broken": (Breakage(stage="tasks", where=storable, what=storable),),
        "alarms": (Alarm(code="not-pruned", message=storable),),
        "provenance": record.provenance.model_copy(
            update={"notes": (storable,), "command": storable, "user": storable}
        ),
    }
    write_record(folder, record.model_copy(update=changes))
    return folder


def write_pair(folder: Path, name: str) -> Pair:
    original = write_named(folder / "original", EXAMPLES["original"], name)
    pruned = write_named(folder / "pruned", EXAMPLES["pruned"], name)
    runs = [
        RunRef(run_id=c * 32, experiment_id="1", run_name=name, tracking_uri=name) for c in "ab"
    ]
    comparison = compare_directories(
        original, pruned, now=NOW, original_run=runs[0], pruned_run=runs[1]
    )
    return Pair(original, pruned, comparison)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write_pair(tmp_path_factory.mktemp("plain"), "plain")


@pytest.fixture(scope="module", params=list(NAMES))
def hostile(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return write_pair(tmp_path_factory.mktemp("hostile"), NAMES[request.param])


def board_of(pair: Pair) -> Leaderboard:
    runs = []
    for letter, folder in (("a", pair.original), ("b", pair.pruned)):
        fields = encode(read_record(folder), {})
        tags = {**fields.tags, "prunescope.baseline_run_id": "a" * 32}
        record = read_record(folder)
        # A task's name is a part of a metric's, which anybody's server may spell as it likes.
        metrics = {f"acc/{name}": task.accuracy or 0.0 for name, task in record.tasks.items()}
        metrics |= {"acc/mean": 0.5, "ppl/wikitext2": 20.0, "sparsity/linear": 0.5}
        runs.append(leaderboard_run(letter * 32, fields.name, NOW, metrics, fields.params, tags))
    return leaderboard(runs)


def words(text: str) -> list[str]:
    return re.sub(r"[^\w]+", " ", text).split()


# --- Markdown -----------------------------------------------------------------------------------


def shape_of_markdown(text: str) -> list[tuple[str, ...]]:
    """The blocks of a document, and what is in its lines besides text."""
    found: list[tuple[str, ...]] = []
    for token in MARKDOWN.parse(text):
        inner = {child.type for child in token.children or ()}
        found.append((token.type, token.tag, *sorted(inner - {"text", "text_special"})))
    return found


MARKDOWN_REPORTS: dict[str, Callable[[Pair], str]] = {
    "comparison": lambda pair: markdown_report(pair.comparison),
    "run": lambda pair: run_report_markdown(pair.record),
    "note": lambda pair: run_note(pair.comparison, "http://s/#/a", "http://s/#/b"),
    "leaderboard": lambda pair: _leaderboard_text(pair, "md"),
    "short note": lambda pair: compose_note("", {"x": "#/y"}, first_line=pair.record.model.name),
}


@pytest.mark.parametrize("report", list(MARKDOWN_REPORTS))
def test_markdown_keeps_its_blocks_and_shows_the_text(
    plain: Pair, hostile: Pair, report: str
) -> None:
    text = MARKDOWN_REPORTS[report](hostile)
    assert not OBEYED.search(text)
    assert shape_of_markdown(text) == shape_of_markdown(MARKDOWN_REPORTS[report](plain))
    page = _Page.of(MARKDOWN.render(text))
    assert page.dangers == []


# --- HTML ---------------------------------------------------------------------------------------


class _Page(HTMLParser):
    """The elements of a page in order, and what in it a browser would run or fetch."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[str] = []
        self.dangers: list[str] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self._in_script = False

    @classmethod
    def of(cls, text: str) -> _Page:
        page = cls()
        page.feed(text)
        page.close()
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self._in_script = tag == "script"
        for key, value in attrs:
            link = key in ("src", "href", "xlink:href", "action", "formaction", "style", "srcset")
            known = (value or "").startswith(("#", "data:,", "http://s/"))
            if key.startswith("on") or (link and key != "style" and not known):
                self.dangers.append(f"{tag} {key}={value}")
        if tag in ("iframe", "object", "embed", "img", "base", "form"):
            self.dangers.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.elements.append(f"/{tag}")
        self._in_script = False

    def handle_data(self, data: str) -> None:
        (self.scripts if self._in_script else self.text).append(data)


HTML_REPORTS: dict[str, Callable[[Pair], str]] = {
    "comparison": lambda pair: html_report(pair.comparison),
    "run": lambda pair: run_report_html(pair.record, read_structure(pair.pruned)),
}


@pytest.mark.parametrize("report", list(HTML_REPORTS))
def test_the_page_keeps_its_elements_and_runs_only_our_script(
    plain: Pair, hostile: Pair, report: str
) -> None:
    text = HTML_REPORTS[report](hostile)
    ours = _Page.of(HTML_REPORTS[report](plain))
    page = _Page.of(text)
    assert not OBEYED.search(text)
    assert page.elements == ours.elements
    assert page.dangers == []
    assert page.scripts == ours.scripts and page.elements.count("script") == 1
    shown = "".join(words(" ".join(page.text)))
    assert "".join(words(hostile.comparison.pruned.model.name)) in shown or not words(
        hostile.comparison.pruned.model.name
    )
    text.encode()


def test_a_runs_address_is_a_link_only_where_it_leads_to_a_server(plain: Pair) -> None:
    run = RunRef(run_id="a" * 32, experiment_id="1", run_name="x", tracking_uri="y")
    for url, linked in (("http://s/#/a", True), ("javascript:alert(1)", False)):
        text = run_report_html(plain.record, run=run.model_copy(update={"url": url}))
        assert (f'<a href="{url}"' in text) is linked
        assert ("javascript" in text) is False


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with start_browser() as found:
        yield found


def seen_in(browser: Any, path: Path) -> tuple[list[str], str]:
    """What a page did besides being shown, and its text once all is unfolded and sorted."""
    did: list[str] = []
    page = browser.new_page()
    page.on("console", lambda message: did.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: did.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (did.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: did.append(f"request: {request.url}"))
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    for button in page.locator("thead button").all():
        button.click()
    page.mouse.move(200, 200)
    text = page.locator("body").inner_text()
    page.close()
    return [one for one in did if one != f"request: {path.as_uri()}" and "data:," not in one], text


@needs_browser
@pytest.mark.parametrize("hostile", ["script", "attributes", "link", "bidi"], indirect=True)
@pytest.mark.parametrize("report", list(HTML_REPORTS))
def test_a_browser_runs_and_fetches_nothing(
    hostile: Pair, report: str, browser: Any, tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    path.write_text(HTML_REPORTS[report](hostile), encoding="utf-8")
    did, text = seen_in(browser, path)
    assert did == []
    shown = "".join(words(OBEYED.sub("", hostile.record.model.name)))
    assert shown in "".join(words(text))


@needs_browser
def test_a_browser_that_runs_something_is_noticed(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(f"<p>{NAMES['script']}</p>")
    did, _ = seen_in(browser, path)
    assert [one for one in did if one.startswith("dialog: 1")]


# --- CSV ----------------------------------------------------------------------------------------


def formula(cell: str) -> bool:
    """Whether a spreadsheet computes the cell; figures may begin with a sign."""
    try:
        float(cell)
    except ValueError:
        return cell.lstrip()[:1] in tuple("=+-@\uff1d\uff0b\uff0d\uff20") or cell[:1] in "\t\r\n"
    return False


CSV_REPORTS: dict[str, Callable[[Pair], str]] = {
    "comparison": lambda pair: csv_report(pair.comparison),
    "leaderboard": lambda pair: _leaderboard_text(pair, "csv"),
}


def _leaderboard_text(pair: Pair, form: str) -> str:
    from prunescope.cli.leaderboard import _text

    return _text(board_of(pair), form)


@pytest.mark.parametrize("report", list(CSV_REPORTS))
def test_csv_keeps_its_cells_and_no_cell_is_a_formula(
    plain: Pair, hostile: Pair, report: str
) -> None:
    text = CSV_REPORTS[report](hostile)
    assert not OBEYED.search(text.replace("\r\n", ""))
    rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    ours = list(csv.reader(io.StringIO(CSV_REPORTS[report](plain), newline=""), strict=True))
    assert [len(row) for row in rows] == [len(row) for row in ours]
    assert [cell for row in rows for cell in row if cell and formula(cell)] == []
    name = hostile.comparison.pruned.model.name
    shown = "".join(words(OBEYED.sub("", name)))
    assert any("".join(words(cell)) == shown for row in rows for cell in row)


# --- JSON and XML -------------------------------------------------------------------------------


def test_json_holds_the_texts_unchanged_and_nothing_that_a_terminal_obeys(hostile: Pair) -> None:
    text = json_text(hostile.comparison)
    assert not OBEYED.search(text)
    text.encode()
    read = json.loads(text)
    name = hostile.record.model.name
    assert read["pruned"]["model_name"] == name
    assert name in read["pruned"]["tasks"]


def test_a_gates_results_are_well_formed(hostile: Pair) -> None:
    from prunescope.compare.gate import evaluate_gate, read_gate
    from prunescope.compare.gate_output import gate_json, gate_junit

    result = evaluate_gate(hostile.comparison, read_gate("ppl<=+5%, acc.mean>=-1pt"))
    assert len(ElementTree.fromstring(gate_junit(result)).findall(".//testcase")) == 2
    assert len(json.loads(gate_json(result))["conditions"]) == 2


# --- LaTeX --------------------------------------------------------------------------------------


def latex_shape(text: str) -> list[int]:
    """Cells of each row; a row ends with two backslashes, which no escaped text has."""
    rows = [line for line in text.split("\n") if line.endswith(r" \\")]
    return [len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows]


LATEX_REPORTS: dict[str, Callable[[Pair], str]] = {
    "comparison": lambda pair: latex_report(pair.comparison),
    "leaderboard": lambda pair: _leaderboard_text(pair, "tex"),
}


@pytest.mark.parametrize("report", list(LATEX_REPORTS))
def test_latex_keeps_its_cells(plain: Pair, hostile: Pair, report: str) -> None:
    text = LATEX_REPORTS[report](hostile)
    assert not OBEYED.search(text)
    assert latex_shape(text) == latex_shape(LATEX_REPORTS[report](plain))
    obeyed = re.sub(r"^%.*$", "", text, flags=re.MULTILINE)  # the rest are comments
    for command in re.findall(r"\\([a-zA-Z]+)", obeyed):
        assert command in _OUR_COMMANDS, command


_OUR_COMMANDS = {
    *("begin", "end", "centering", "caption", "label", "toprule", "midrule", "bottomrule"),
    *("scriptsize", "setlength", "tabcolsep", "Delta", "pm", "times", "ldots", "geq"),
    *("textbackslash", "textasciicircum", "textasciitilde", "textless", "textgreater", "textbar"),
}


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs texlive-latex-base")
def test_all_names_together_compile(tmp_path: Path) -> None:
    body = []
    for number, name in enumerate(NAMES):
        pair = write_pair(tmp_path / str(number), NAMES[name])
        body += [report(pair) for report in LATEX_REPORTS.values()] + [r"\clearpage"]
    text = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
    (tmp_path / "paper.tex").write_text(text + "\n".join(body) + "\n\\end{document}\n")
    command = ["pdflatex", "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error"]
    done = subprocess.run(
        [*command, "paper.tex"], cwd=tmp_path, capture_output=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout[-2000:]


# --- the terminal -------------------------------------------------------------------------------


def drawn(part: Any) -> str:
    """What the command line's own console prints of a renderable."""
    from prunescope.cli import console

    made = console.stdout()
    made.file = io.StringIO()
    made.width = 400
    made.print(part)
    assert isinstance(made.file, io.StringIO)
    return made.file.getvalue()


TERMINAL_REPORTS: dict[str, Callable[[Pair], Any]] = {
    "comparison": lambda pair: terminal_report(pair.comparison),
    "summary": lambda pair: summary_table(pair.record),
    "sparsity": lambda pair: _sparsity_report(pair),
    "leaderboard": lambda pair: _leaderboard_table(pair),
}


def _sparsity_report(pair: Pair) -> Any:
    name = pair.record.model.name
    return sparsity_report(_measured(name), title=name, alarms=pair.record.alarms)


def _measured(name: str) -> SparsityResult:
    """Of weights whose modules have the name, so that it is a kind in each of the tables."""
    weights = {
        f"model.layers.{n}.mlp.{part}.weight" for n in range(2) for part in (name, "up_proj")
    }
    tensors = ((key, torch.eye(32)) for key in sorted(weights))
    return measure(tensors, block=(16, 16), topk=10, config={"model_type": "llama"}).result


def _leaderboard_table(pair: Pair) -> Any:
    from prunescope.compare.leaderboard import leaderboard_table
    from prunescope.compare.terminal import wide_table

    return wide_table(leaderboard_table(board_of(pair)))[0]


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("report", list(TERMINAL_REPORTS))
def test_the_terminal_shows_the_text_and_obeys_nothing_of_it(
    hostile: Pair, report: str, color: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    if color:
        monkeypatch.setenv("FORCE_COLOR", "1")
    text = drawn(TERMINAL_REPORTS[report](hostile))
    assert ("\x1b[" in text) is color
    bare = re.sub(r"\x1b\[[0-9;]*m", "", text)  # our own colours alone
    assert not OBEYED.search(bare)
    bare.encode()
    name = hostile.record.model.name
    if "[/red]" in name:
        assert "[red]red[/red]" in bare and ":smile:" in bare
    if "\x1b" in name:
        assert "[31mred[0m" in bare


def test_plain_text_keeps_its_lines(plain: Pair, hostile: Pair) -> None:
    text = plain_report(hostile.comparison)
    assert not OBEYED.search(text)
    assert len(text.splitlines()) == len(plain_report(plain.comparison).splitlines())


def test_notes_and_warnings_obey_nothing(hostile: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    output = Output()
    name = hostile.record.model.name
    output.line(name)
    output.note(name)
    output.warn(name)
    with output.progress() as progress:
        progress.start("tasks", name, 3)
        progress.say(name)
        progress.finish()
    found = capsys.readouterr()
    for text in (found.out, found.err):
        assert not OBEYED.search(text)
        assert words(name) == [] or words(name)[0] in text


@pytest.mark.parametrize("name", list(NAMES))
def test_pictures_of_modules_with_any_name_are_drawn(tmp_path: Path, name: str) -> None:
    files = write_pictures(_measured(NAMES[name]), tmp_path)
    assert len(files) == 4
    for path in files:
        if path.suffix == ".svg":
            root = ElementTree.fromstring(path.read_bytes())
            assert not [one for one in root.iter() if one.tag.endswith("script")]


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_curves_are_drawn_with_every_name(kind: str) -> None:
    from prunescope.compare.curves import CurvePoint, draw_curves

    points = tuple(CurvePoint(x, 0.5 - x / 4, None, None, 1) for x in (0.0, 0.5))
    picture = draw_curves(dict.fromkeys(NAMES.values(), points), kind=kind)
    assert len(picture) > 1000
    if kind == "svg":
        root = ElementTree.fromstring(picture)
        assert not [one for one in root.iter() if one.tag.endswith("script")]


# --- the commands -------------------------------------------------------------------------------


def test_runs_and_leaderboard_list_every_name(tmp_path: Path, empty_database: Path) -> None:
    store = fresh_store(empty_database, tmp_path / "mlruns")
    for number, name in enumerate(NAMES.values()):
        which = EXAMPLES["pruned"]
        folder = write_named(tmp_path / str(number), which, f"{number} {name}")
        record = read_record(folder).model_copy(update={"record_id": f"{number:032x}"})
        write_record(folder, record)
        run = store.upload(folder, experiment="hostile")
        note = store.get(run.run_id).tags["mlflow.note.content"]
        assert shape_of_markdown(note)[0][0] == "paragraph_open"
        assert not {"link_open", "image", "code_inline"} & {
            part for kinds in shape_of_markdown(note) for part in kinds
        }
    for command in (["runs"], ["leaderboard", "--filter", "model=*"]):
        done = run_cli(command, tmp_path)
        assert done.exit_code == 0, done.stderr
        assert not OBEYED.search(done.stdout)
        assert "[red]" in done.stdout or "[red" in done.stdout
    listed = json.loads(run_cli(["runs", "--json"], tmp_path).stdout)
    assert len(listed) == len(NAMES)
