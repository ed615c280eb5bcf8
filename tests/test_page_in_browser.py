"""The report page in a real browser: legible, accessible, silent, and its tables sort."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page
from support.browser import needs_browser, screenshot, start_browser
from support.records import pruned_record, write_example

from prunescope.compare.analysis import compare_directories
from prunescope.compare.html import html_report, run_report_html
from prunescope.compare.structure import read_structure

pytestmark = needs_browser

NAMES = ("pair", "broken", "run")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with start_browser() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("records")
    for name in ("original", "pruned", "broken"):
        write_example(folder / name, name)
    now = datetime(2026, 3, 14, 12, 0, 0, tzinfo=UTC)
    original, pruned, broken = folder / "original", folder / "pruned", folder / "broken"
    return {
        "pair": html_report(compare_directories(original, pruned, now=now)),
        "broken": html_report(compare_directories(original, broken, now=now)),
        "run": run_report_html(pruned_record(), read_structure(pruned)),
    }


class Seen:
    """A page that was opened, and what the browser heard from it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.console: list[str] = []
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.console.append(message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    @property
    def asked(self) -> list[str]:
        """Requests beyond the page itself and what it carries inside."""
        return [url for url in self.requests[1:] if not url.startswith("data:")]

    def column(self, table: str, number: int) -> list[str]:
        cells = self.page.locator(f'[aria-label="{table}"] tbody tr td:nth-child({number})')
        return cells.all_inner_texts()

    def press(self, table: str, number: int) -> str | None:
        head = self.page.locator(f'[aria-label="{table}"] thead tr > :nth-child({number})')
        head.locator("button").click()
        return head.get_attribute("aria-sort")


def look(browser: Browser, text: str, folder: Path, **settings: Any) -> Seen:
    path = folder / "page.html"
    path.write_text(text)
    seen = Seen(browser.new_page(**settings))
    seen.page.goto(path.as_uri())
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_a_page_says_nothing_on_the_console_and_asks_the_network_for_nothing(
    browser: Browser, pages: dict[str, str], tmp_path: Path, name: str
) -> None:
    seen = look(browser, pages[name], tmp_path)
    assert seen.errors == seen.console == seen.asked == []


@pytest.mark.parametrize(
    ("fault", "field"),
    [
        ('<img src="http://127.0.0.1:9/picture.png">', "asked"),
        ("<script>undefinedFunction()</script>", "errors"),
        ("<script>console.error('wrong')</script>", "console"),
    ],
)
def test_a_fault_would_be_seen(
    browser: Browser, pages: dict[str, str], tmp_path: Path, fault: str, field: str
) -> None:
    text = pages["pair"].replace("<h1>", fault + "<h1>")
    assert getattr(look(browser, text, tmp_path), field) != []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_axe_finds_no_barrier(
    browser: Browser, pages: dict[str, str], tmp_path: Path, name: str, scheme: str
) -> None:
    seen = look(browser, pages[name], tmp_path, color_scheme=scheme)
    seen.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    screenshot(seen.page, f"report-{name}-{scheme}")
    found = Axe().run(seen.page)
    assert found.response["violations"] == [], found.generate_report()
    assert len(found.response["passes"]) > 15


def test_axe_would_find_a_barrier(browser: Browser, pages: dict[str, str], tmp_path: Path) -> None:
    text = pages["pair"].replace("--soft: #565f6b", "--soft: #c9cdd2")
    rules = {v["id"] for v in Axe().run(look(browser, text, tmp_path).page).response["violations"]}
    assert rules == {"color-contrast"}


def test_a_table_sorts_both_ways_and_keeps_the_sum_below(
    browser: Browser, pages: dict[str, str], tmp_path: Path
) -> None:
    seen = look(browser, pages["pair"], tmp_path)
    assert seen.press("Task Results", 2) == "ascending"
    *values, last = seen.column("Task Results", 2)
    assert last == "0.5606"  # AVERAGE
    assert values == sorted(values, key=float)
    assert seen.press("Task Results", 2) == "descending"
    assert seen.column("Task Results", 2) == [*sorted(values, key=float, reverse=True), last]
    seen.press("Task Results", 1)
    names = seen.column("Task Results", 1)
    assert names == [*sorted(names[:-1]), "AVERAGE"]


def test_the_first_screen_says_what_it_cost_and_whether_that_is_real(
    browser: Browser, pages: dict[str, str], tmp_path: Path
) -> None:
    seen = look(browser, pages["pair"], tmp_path, viewport={"width": 1280, "height": 800})
    verdict = seen.page.locator("p.verdict")
    assert verdict.inner_text().startswith("Worse: mean accuracy changed by \u221210.58 points")
    for element in (verdict, seen.page.locator("dl.tiles"), seen.page.locator("svg.wide").first):
        box = element.bounding_box()
        assert box is not None
        assert box["y"] + box["height"] < 800


def test_the_forest_plot_tells_direction_by_colour_and_by_shape(
    browser: Browser, pages: dict[str, str], tmp_path: Path
) -> None:
    seen = look(browser, pages["pair"], tmp_path)
    plot = seen.page.locator("svg.wide").first
    said = plot.get_attribute("aria-label") or ""
    assert "arc_easy \u221221.67, from \u221236.01 to \u22127.33, worse" in said
    assert "all tasks \u221210.58, from \u221216.32 to \u22124.85, worse" in said
    worse, unclear = plot.locator(".mark.worse"), plot.locator(".mark.unclear")
    assert (worse.count(), unclear.count()) == (3, 5)  # two tasks and the mean; five tasks
    colours = {
        mark.first.evaluate("e => getComputedStyle(e).stroke + getComputedStyle(e).fill")
        for mark in (worse, unclear)
    }
    shapes = {mark.first.evaluate("e => e.tagName") for mark in (worse, unclear)}
    assert len(colours) == len(shapes) == 2


@pytest.mark.parametrize("name", NAMES)
def test_a_phone_scrolls_tables_and_not_the_page_and_its_charts_are_legible(
    browser: Browser, pages: dict[str, str], tmp_path: Path, name: str
) -> None:
    seen = look(browser, pages[name], tmp_path, viewport={"width": 390, "height": 844})
    screenshot(seen.page, f"report-{name}-phone")
    wider = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert seen.page.evaluate(wider) is False
    texts = seen.page.locator("svg.narrow text.label")
    assert texts.count() > 5
    heights = [t.bounding_box() for t in texts.all()]
    assert min(box["height"] for box in heights if box) > 11


def test_paper_is_light_whatever_the_screen_is(
    browser: Browser, pages: dict[str, str], tmp_path: Path
) -> None:
    seen = look(browser, pages["pair"], tmp_path, color_scheme="dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    assert seen.page.evaluate(colour) == "rgb(22, 25, 29)"
    seen.page.emulate_media(media="print")
    assert seen.page.evaluate(colour) == "rgb(255, 255, 255)"
    assert seen.page.locator("svg.wide").first.is_visible()


def test_long_tables_are_folded(browser: Browser, pages: dict[str, str], tmp_path: Path) -> None:
    seen = look(browser, pages["pair"], tmp_path)
    table = seen.page.get_by_role("region", name="Documents That Lost Most")
    assert not table.is_visible()
    seen.page.get_by_text("Documents That Lost Most").click()
    assert table.is_visible()
