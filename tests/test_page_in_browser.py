"""The HTML page in a real browser: no errors, no requests, and sorting works."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support.records import pruned_record, write_example

from prunescope.compare.analysis import compare_directories
from prunescope.compare.report import html_report, run_report_html

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium (apt install chromium)")

PROBE = """<script>
window.problems = [];
window.addEventListener("error", e => window.problems.push(String(e.message || e.target)), true);
window.addEventListener("securitypolicyviolation", e => window.problems.push(e.blockedURI));
</script>"""
REPORT = """<script>
window.addEventListener("load", () => {
  const column = (table, n) => [...table.tBodies[0].rows].map(r => r.cells[n].textContent);
  const table = [...document.querySelectorAll("table.sortable")].find(
    t => t.tHead.textContent.startsWith("Task"));
  const seen = {problems: window.problems, tables: document.querySelectorAll("table").length,
    charts: document.querySelectorAll("svg.chart").length,
    requests: performance.getEntriesByType("resource").map(e => e.name),
    wider: document.documentElement.scrollWidth > document.documentElement.clientWidth};
  if (table) {
    const heads = [...table.tHead.rows[0].cells];
    const press = n => heads[n].querySelector("button").click();
    const n = heads.findIndex(h => /Original|Value/.test(h.textContent));
    press(n); seen.up = column(table, n); seen.sort = heads[n].getAttribute("aria-sort");
    press(n); seen.down = column(table, n);
    press(0); seen.names = column(table, 0);
  }
  const out = document.createElement("pre");
  out.id = "seen";
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
});
</script>"""


def look(page: str, folder: Path, width: int = 1000) -> dict[str, Any]:
    """What the page looks like to a browser that has loaded it, and what it complained of."""
    path = folder / "page.html"
    path.write_text(page.replace("<head>", "<head>" + PROBE).replace("</body>", REPORT + "</body>"))
    assert BROWSER is not None
    done = subprocess.run(
        [
            BROWSER,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--enable-logging=stderr",
            "--v=0",
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={width},900",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.S)
    assert found is not None, done.stderr[-2000:]
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    seen["console"] = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return seen


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("records")
    for name in ("original", "pruned"):
        write_example(folder / name, name)
    now = datetime(2026, 3, 14, 12, 0, 0, tzinfo=UTC)
    return html_report(compare_directories(folder / "original", folder / "pruned", now=now))


def test_a_comparison_has_no_errors_no_requests_and_sorts(page: str, tmp_path: Path) -> None:
    seen = look(page, tmp_path)
    assert seen["problems"] == seen["console"] == seen["requests"] == []
    assert seen["tables"] >= 8 and seen["charts"] == 2
    *values, last = seen["up"]
    assert last == "0.5606"  # AVERAGE stays below
    assert seen["sort"] == "ascending"
    assert values == sorted(values, key=float)
    assert seen["down"] == [*sorted(values, key=float, reverse=True), last]
    assert seen["names"] == [*sorted(seen["names"][:-1]), "AVERAGE"]


def test_a_narrow_window_scrolls_tables_and_not_the_page(page: str, tmp_path: Path) -> None:
    assert look(page, tmp_path, width=500)["wider"] is False


@pytest.mark.parametrize(
    ("fault", "field"),
    [
        ('<img src="http://127.0.0.1:9/picture.png">', "requests"),
        ("<script>undefinedFunction()</script>", "problems"),
        ("<script>console.error('wrong')</script>", "console"),
    ],
)
def test_a_fault_would_be_seen(page: str, tmp_path: Path, fault: str, field: str) -> None:
    assert look(page.replace("<h1>", fault + "<h1>"), tmp_path)[field] != []


def test_a_single_run_has_no_errors_and_no_requests(tmp_path: Path) -> None:
    seen = look(run_report_html(pruned_record()), tmp_path)
    assert seen["problems"] == seen["console"] == seen["requests"] == []
    assert seen["charts"] == 2
    assert seen["up"] == sorted(seen["up"], key=float)
