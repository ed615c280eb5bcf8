"""Take the pictures of docs/images from a store's runs: MLflow's pages, the report, the terminal.

Usage: scripts/screenshots.py [STORE] [RUN]

STORE is a folder such as mlruns, after `make demo`; RUN names a run that has a baseline, by
default the newest one. Needs Chromium (apt install chromium). In MLflow's pages nothing is
changed but what a reader would click away: the assistant, the side bar and the banner.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from playwright.sync_api import BrowserContext, Locator, Page, sync_playwright
from rich.console import Console
from rich.terminal_theme import MONOKAI

from prunescope.compare.analysis import compare_directories
from prunescope.compare.report import terminal_report
from prunescope.tracking.links import experiment_path, run_path
from prunescope.tracking.query import resolve_run
from prunescope.tracking.runs import StoredRun
from prunescope.tracking.store import Store, open_store
from prunescope.tracking.view import VIEW_ID

TARGET = Path(__file__).parents[1] / "docs" / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LARGEST = 200_000
"""Bytes of a picture."""
ASSISTANT_CLOSED = """
    localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
    localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
"""


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "mlruns").resolve()
    if not (root / "mlflow.db").is_file():
        sys.exit(f"no runs in {root}: run 'make demo' first, or name another store")
    chromium = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if chromium is None:
        sys.exit("needs Chromium: apt install chromium")
    uri = f"sqlite:///{root / 'mlflow.db'}"
    store = open_store(uri, root=root)
    run = resolve_run(store, sys.argv[2]) if len(sys.argv) > 2 else newest(store)
    TARGET.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as scratch,
        browser_context(chromium) as context,
        served(uri) as address,
    ):
        report, original = fetch(store, run, Path(scratch))
        terminal(original, report.parent)
        report_page(context, report)
        experiment, run_id = run.ref.experiment_id, run.ref.run_id
        table(context, f"{address}/{experiment_path(experiment, view=VIEW_ID)}")
        charts(context, f"{address}/{experiment_path(experiment, view=VIEW_ID, charts=True)}")
        run_page(context, f"{address}/{run_path(experiment, run_id)}")


def newest(store: Store) -> StoredRun:
    for run in store.search(role="pruned"):
        if run.baseline_run_id:
            return run
    sys.exit("no run here has a baseline: run 'make demo' first, or name another store")


def fetch(store: Store, run: StoredRun, scratch: Path) -> tuple[Path, Path]:
    """The run's report page in its record folder, and its baseline's record folder."""
    baseline = store.get(run.baseline_run_id or "")
    original = store.fetch(baseline, scratch / "original", everything=True)
    return store.fetch(run, scratch / "pruned", everything=True) / "report.html", original


@contextlib.contextmanager
def served(uri: str) -> Iterator[str]:
    """`prunescope ui` on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "prunescope", "ui", "--port", str(port), "--tracking-uri", uri]
    server = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        if server.stdout is None or not server.stdout.readline():  # its links: the pages answer
            sys.exit("MLflow did not start: run 'prunescope ui' to see why")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # MLflow's own processes too
        server.wait()


@contextlib.contextmanager
def browser_context(chromium: str) -> Iterator[BrowserContext]:
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        context = browser.new_context(device_scale_factor=1.5)
        context.add_init_script(ASSISTANT_CLOSED)
        yield context
        browser.close()


# --- the pictures -------------------------------------------------------------------------------


def terminal(original: Path, pruned: Path) -> None:
    with Path("/dev/null").open("w") as nowhere:
        console = Console(width=92, record=True, file=nowhere, force_terminal=True)
        console.print(terminal_report(compare_directories(original, pruned)))
    drawn = console.export_svg(title="prunescope compare", theme=MONOKAI)
    # The reader's own monospace font: a picture must not load anything from elsewhere.
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)
    path = TARGET / "comparison.svg"
    path.write_text(drawn.replace("Fira Code", "monospace"), encoding="utf-8")


def report_page(context: BrowserContext, report: Path) -> None:
    page = context.new_page()
    page.set_viewport_size({"width": 1000, "height": 1120})
    page.goto(report.as_uri())
    keep(page, "report")


def table(context: BrowserContext, url: str) -> None:
    page = opened(context, url, 1500, 700)
    rows = page.locator(".ag-pinned-left-cols-container .ag-row")
    rows.first.wait_for()
    page.wait_for_timeout(1000)
    keep(page, "mlflow-table", below=rows.last)


def charts(context: BrowserContext, url: str) -> None:
    page = opened(context, url, 1500, 1200)
    plots = page.locator(".js-plotly-plot")
    for index in range(4):
        plots.nth(index).wait_for()
    page.wait_for_timeout(2000)
    keep(page, "mlflow-charts", below=plots.nth(3), margin=60)


def run_page(context: BrowserContext, url: str) -> None:
    page = opened(context, url, 1300, 1000)
    page.get_by_text("Show more").click()
    page.wait_for_timeout(1000)
    keep(page, "mlflow-run", below=page.get_by_text("Show less"))


def opened(context: BrowserContext, url: str, width: int, height: int) -> Page:
    page = context.new_page()
    page.set_viewport_size({"width": width, "height": height})
    page.goto(url)
    page.get_by_role("button", name="Toggle sidebar").click()
    banner = page.get_by_role("button", name="Hide banner")
    with contextlib.suppress(Exception):
        banner.click(timeout=5000)
    return page


def keep(page: Page, name: str, *, below: Locator | None = None, margin: int = 24) -> None:
    """Save what the window shows, down to an element, in as many colours as keep it small."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    page_size = page.viewport_size
    box = below.bounding_box() if below is not None else None
    if box is not None and page_size is not None:
        scale = picture.width / page_size["width"]
        bottom = round(scale * (box["y"] + box["height"] + margin))
        picture = picture.crop((0, 0, picture.width, min(bottom, picture.height)))
    path = TARGET / f"{name}.png"
    for colours in (256, 64, 32):
        picture.quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size < LARGEST:
            break
    print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
