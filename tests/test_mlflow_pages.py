"""MLflow's own pages in a real browser: what someone sees who opens the links that we print."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from support.browsed import Browsed, fill
from support.browser import needs_browser, screenshot, start_browser
from support.cli import run_cli
from support.records import sample_rows
from support.server import running_server

from prunescope.cli.console import Output
from prunescope.cli.publishing import Outcome, Tracker
from prunescope.cli.summary import print_outcome
from prunescope.records import DEFAULT_TASKS, EvalRecord, RunRef
from prunescope.tracking.links import compare_path, experiment_path
from prunescope.tracking.store import open_store
from prunescope.tracking.view import VIEW_ID

pytestmark = [needs_browser, pytest.mark.slow]

ASSISTANT_CLOSED = """
    localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
    localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
"""
"""On localhost alone MLflow opens its assistant, a third of the window, until it is closed once."""

MLFLOW_MS = 30_000

CELLS = """() => {
    const rows = {};
    for (const cell of document.querySelectorAll('.ag-row [col-id]')) {
        const row = rows[cell.closest('.ag-row').getAttribute('row-index')] ??= {};
        row[cell.getAttribute('col-id')] = cell.innerText.trim();
    }
    return Object.keys(rows).sort((a, b) => a - b).map(key => rows[key]);
}"""
"""The run table's rows in their order on the screen: column -> text."""

HEADINGS = """() => [...document.querySelectorAll('.ag-header-cell')]
    .filter(cell => cell.innerText.trim())
    .sort((a, b) => a.getBoundingClientRect().x - b.getBoundingClientRect().x)
    .map(cell => cell.innerText.trim())"""
"""From left to right."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with start_browser() as found:
        yield found


@pytest.fixture(scope="module")
def browsed(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Browsed]:
    """A server of its own: a session's shared one holds other tests' runs."""
    folder = tmp_path_factory.mktemp("browsed")
    shutil.copy(empty_database, folder / "server.db")
    with running_server(folder) as address:
        yield fill(address, folder / "mlruns")


@contextmanager
def fresh_page(browser: Browser, width: int, height: int) -> Iterator[Page]:
    """Nothing is known of MLflow but that its assistant was closed."""
    context = browser.new_context(viewport={"width": width, "height": height})
    context.add_init_script(ASSISTANT_CLOSED)
    context.set_default_timeout(MLFLOW_MS)
    yield context.new_page()
    context.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with fresh_page(browser, 2600, 1000) as page:
        yield page


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    """MLflow's pages take their time."""
    expect.set_options(timeout=MLFLOW_MS)
    yield
    expect.set_options(timeout=5_000)


# --- the link -----------------------------------------------------------------------------------


def test_eval_and_compare_print_the_link_that_ui_prints(
    browsed: Browsed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = browsed.pruned[0]
    runs = [browsed.original.run_id, run.run_id]
    done = run_cli(["compare", *runs, "--tracking-uri", browsed.address], tmp_path)
    assert browsed.table_url in done.stderr.split()
    outcome = Outcome(browsed.records[run.run_id], run, None)
    tracker = Tracker(tmp_path, open_store(browsed.address, root=tmp_path), None)
    print_outcome(outcome, tracker, Output())
    assert browsed.table_url in capsys.readouterr().err.split()


# --- the table ----------------------------------------------------------------------------------


def table(page: Page, browsed: Browsed) -> list[dict[str, str]]:
    page.goto(browsed.table_url)
    page.wait_for_function(f"({CELLS})().length == {len(browsed.records)}")
    rows: list[dict[str, str]] = page.evaluate(CELLS)
    return rows


def test_the_printed_link_shows_every_column_without_a_click(page: Page, browsed: Browsed) -> None:
    table(page, browsed)
    page.wait_for_function(f"({HEADINGS})().at(-1) === 'Duration'")  # the columns are in order
    screenshot(page, "mlflow-table")
    assert page.evaluate(HEADINGS) == [
        *("Run Name", "Created", "prunescope.role", "prunescope.method"),
        *("sparsity/linear", "ppl/wikitext2", "pct/mean", "delta/mean_points"),
        *(f"pct/{task}" for task in DEFAULT_TASKS),
        *("prunescope.model", "Duration"),
    ]


def test_the_table_says_what_the_records_say_in_the_order_of_sparsity(
    page: Page, browsed: Browsed
) -> None:
    rows = table(page, browsed)
    wanted = sorted(browsed.records.values(), key=sparsity)
    assert [row["tags.`prunescope.model`"] for row in rows] == [r.model.name for r in wanted]
    for row, record in zip(rows, wanted, strict=True):
        assert row["tags.`prunescope.role`"] == record.labels.role
        assert row["tags.`prunescope.method`"] == (record.labels.method or "-")
        assert number(row, "sparsity/linear") == pytest.approx(sparsity(record), rel=1e-6)
        perplexity = record.perplexity["wikitext2"].perplexity
        assert number(row, "ppl/wikitext2") == pytest.approx(perplexity, rel=1e-6)
        accuracies = [record.tasks[task].metrics["acc"] for task in DEFAULT_TASKS]
        for task, accuracy in zip(DEFAULT_TASKS, accuracies, strict=True):
            assert number(row, f"pct/{task}") == pytest.approx(100 * accuracy, abs=5e-4)
        mean = sum(accuracies) / len(accuracies)
        assert number(row, "pct/mean") == pytest.approx(100 * mean, abs=5e-4)


def sparsity(record: EvalRecord) -> float:
    assert record.sparsity is not None
    return record.sparsity.linear.fraction


def number(row: dict[str, str], metric: str) -> float:
    return float(row[f"metrics.`{metric}`"])


def test_a_laptop_with_the_assistant_open_still_shows_the_runs_in_their_order(
    browser: Browser, browsed: Browsed
) -> None:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.goto(browsed.table_url)
    expect(page.get_by_text("MLflow Assistant")).to_be_visible()
    expect(page.locator(".ag-row [col-id='tags.`prunescope.role`']").first).to_be_visible()
    screenshot(page, "mlflow-table-assistant")
    page.close()


# --- the charts ---------------------------------------------------------------------------------


DIFFERENCES = "Each run against the first column (a rise is green, of perplexity too)"
OVERVIEW = (
    "delta/mean_points",
    "sparsity/linear vs. pct/mean",
    "sparsity/linear vs. ppl/wikitext2",
    "layers/sparsity",
)


@pytest.fixture(scope="module")
def charts(browser: Browser, browsed: Browsed) -> Iterator[Page]:
    path = experiment_path(browsed.experiment_id, view=VIEW_ID, charts=True)
    with fresh_page(browser, 1920, 2200) as page:
        page.goto(f"{browsed.address}/{path}")
        for title in OVERVIEW:
            expect(card(page, title).locator(".js-plotly-plot")).to_be_visible()
        yield page


def card(page: Page, title: str) -> Locator:
    heading = page.get_by_role("heading", name=title, exact=True)
    return page.get_by_test_id("experiment-view-compare-runs-card").filter(has=heading)


def drawn(page: Page, title: str) -> list[dict[str, Any]]:
    """What Plotly was given for a chart."""
    plot = card(page, title).locator(".js-plotly-plot")
    traces: list[dict[str, Any]] = plot.evaluate(
        "e => e.data.map(({x, y, name}) => ({x, y, name}))"
    )
    return traces


def test_charts_draw_what_was_measured(charts: Page, browsed: Browsed) -> None:
    screenshot(charts, "mlflow-charts")
    expect(charts.get_by_text("No charts in this section")).to_have_count(0)
    records = browsed.records
    (bars,) = drawn(charts, "delta/mean_points")
    changes = dict(zip(bars["y"], bars["x"], strict=True))
    base = accuracy(records[browsed.original.run_id])
    for run in browsed.pruned:
        change = 100 * (accuracy(records[run.run_id]) - base)
        assert changes.pop(run.run_id) == pytest.approx(change, abs=1e-4)
    assert list(changes) == [run.run_id for run in browsed.imported if is_pruned(records, run)]
    expect(card(charts, "delta/mean_points").locator(".barlayer .point")).to_have_count(4)
    (points,) = drawn(charts, "sparsity/linear vs. ppl/wikitext2")
    measured = [(sparsity(r), r.perplexity["wikitext2"].perplexity) for r in records.values()]
    found = sorted(zip(points["x"], points["y"], strict=True))
    assert found == [pytest.approx(pair) for pair in sorted(measured)]
    scatter = card(charts, "sparsity/linear vs. ppl/wikitext2")
    expect(scatter.locator(".scatterlayer .point")).to_have_count(len(records))


def test_each_layers_sparsity_is_a_line(charts: Page, browsed: Browsed) -> None:
    traces = {trace["name"]: trace for trace in drawn(charts, "layers/sparsity")}
    for run in (browsed.original, *browsed.pruned):
        found = browsed.records[run.run_id].sparsity
        assert found is not None
        shares = [layer.zeros / layer.parameters for layer in found.layers]
        assert traces[run.run_name]["x"] == list(range(len(shares)))
        assert traces[run.run_name]["y"] == pytest.approx(shares)


def test_differences_are_taken_from_the_original_that_was_pruned(
    charts: Page, browsed: Browsed
) -> None:
    found = card(charts, DIFFERENCES)
    first = found.get_by_role("columnheader").filter(has_text="#")  # the runs' have a colour
    expect(first.first).to_contain_text(browsed.original.run_name)
    text = found.get_by_role("row").filter(has_text="pct/mean").inner_text()
    base = accuracy(browsed.records[browsed.original.run_id])
    assert f"{100 * base:.2f}" in text
    shown = [float(word) for word in text.split() if word[0] in "+-"]
    for run in browsed.pruned:
        change = 100 * (accuracy(browsed.records[run.run_id]) - base)
        # Between values of three decimals, shown with two.
        assert any(value == pytest.approx(change, abs=0.006) for value in shown)


def accuracy(record: EvalRecord) -> float:
    return fmean(record.tasks[task].metrics["acc"] for task in DEFAULT_TASKS)


def is_pruned(records: dict[str, EvalRecord], run: RunRef) -> bool:
    return records[run.run_id].labels.role == "pruned"


# --- a run's page -------------------------------------------------------------------------------


def test_the_note_is_a_table_of_differences_with_links_that_lead_there(
    page: Page, browsed: Browsed
) -> None:
    run = browsed.pruned[1]
    page.set_viewport_size({"width": 1600, "height": 1200})
    page.goto(url(run))
    page.get_by_text("Show more").click()
    screenshot(page, "mlflow-run")
    records = browsed.records
    before, after = accuracy(records[browsed.original.run_id]), accuracy(records[run.run_id])
    average = page.get_by_role("row").filter(has_text="AVERAGE")
    assert average.get_by_role("cell").all_inner_texts() == [
        *("AVERAGE", f"{before:.4f}", f"{after:.4f}"),
        *(f"{after - before:+.4f}", f"{(after - before) / before:+.2%}"),
    ]
    baseline = opened(page, "The original's run")
    expect(baseline.get_by_role("heading", name=browsed.original.run_name)).to_be_visible()
    assert browsed.original.run_id in baseline.url
    both = opened(page, "Both runs compared")
    expect(both.get_by_text("Comparing 2 Runs from 1 Experiment")).to_be_visible()
    for one in (browsed.original, run):
        expect(both.get_by_role("link", name=one.run_id)).to_be_visible()


def opened(page: Page, link: str) -> Page:
    """The tab that a link of the note opens."""
    with page.expect_popup() as found:
        page.get_by_role("link", name=link).click()
    return found.value


def test_the_report_page_renders_inside_the_artifact_viewer(page: Page, browsed: Browsed) -> None:
    run = browsed.pruned[1]
    page.set_viewport_size({"width": 1600, "height": 1200})
    page.goto(f"{url(run).partition('?')[0]}/artifacts/report.html?{url(run).partition('?')[2]}")
    frame = page.frame_locator("iframe").first
    expect(frame.locator("h1")).to_contain_text(run_model(browsed, run))
    expect(frame.locator("svg.wide").first).to_be_visible()
    screenshot(page, "mlflow-report")
    before = frame.get_by_role("region", name="Task Results").locator("tbody td").first
    first = before.inner_text()
    frame.get_by_role("region", name="Task Results").get_by_role("button").first.click()
    expect(before).not_to_have_text(first)  # its script runs: the table sorts


def test_report_plots_and_samples_preview_in_the_artifact_viewer(
    page: Page, browsed: Browsed
) -> None:
    run = browsed.pruned[1]
    base, _, query = url(run).partition("?")
    page.set_viewport_size({"width": 1600, "height": 1200})
    page.goto(f"{base}/artifacts/report.md?{query}")
    title = f"{run_model(browsed, run)} against {run_model(browsed, browsed.original)}"
    expect(page.get_by_role("heading", name=title)).to_be_visible()
    page.get_by_text("plots", exact=True).click()
    page.get_by_text("sparsity-heatmap.png", exact=True).click()
    expect(page.get_by_alt_text("plots/sparsity-heatmap.png").first).to_be_visible()
    screenshot(page, "mlflow-plot")
    page.get_by_text("tables", exact=True).click()
    page.get_by_text("samples.json", exact=True).click()
    heads = page.get_by_role("columnheader")
    expect(heads.filter(has_text="document").first).to_be_visible()
    expect(heads.filter(has_text="score").first).to_be_visible()
    screenshot(page, "mlflow-samples")


def test_the_documents_scores_of_all_runs_stand_side_by_side(page: Page, browsed: Browsed) -> None:
    page.set_viewport_size({"width": 2600, "height": 1000})
    page.goto(browsed.table_url.replace("&view", "&compareRunsMode=ARTIFACT&view"))
    row = page.get_by_role("row").filter(has_text="boolq 0: Question 0")
    expect(row.get_by_text("(empty)")).to_have_count(len(browsed.imported))
    screenshot(page, "mlflow-documents")
    found = [text for text in row.get_by_role("gridcell").all_inner_texts() if text in ("0", "1")]
    correct = [sample_rows(which, "boolq")[0]["acc"] for which in browsed.examples]
    assert found == [f"{score:g}" for score in correct]


# --- side by side -------------------------------------------------------------------------------


def test_the_compare_page_shows_the_same_artifacts_of_both_side_by_side(
    page: Page, browsed: Browsed
) -> None:
    run = browsed.pruned[1]
    page.set_viewport_size({"width": 1600, "height": 2600})
    runs = [browsed.original, run]
    path = compare_path([one.run_id for one in runs], [one.experiment_id for one in runs])
    page.goto(f"{browsed.address}/{path}")
    for name in ("record.json", "report.html", "report.md", "sparsity.json"):
        expect(page.get_by_text(name, exact=True)).to_be_visible()
    page.get_by_text("report.html", exact=True).click()
    frames = page.locator("iframe")
    expect(frames).to_have_count(2)
    for index, one in enumerate(runs):
        heading = frames.nth(index).content_frame.locator("h1")
        expect(heading).to_contain_text(run_model(browsed, one))
    screenshot(page, "mlflow-compare")


def url(run: RunRef) -> str:
    assert run.url is not None
    return run.url


def run_model(browsed: Browsed, run: RunRef) -> str:
    return browsed.records[run.run_id].model.name
