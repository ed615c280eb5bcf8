"""Chromium, driven by Playwright; its screenshots are kept for whoever reads the CI's output."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

__all__ = ["SCREENSHOTS", "needs_browser", "screenshot", "start_browser"]

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FOUND = next((found for name in _NAMES if (found := shutil.which(name))), None)

SCREENSHOTS = Path(__file__).parents[2] / ".cache" / "screenshots"
"""Outside version control."""

needs_browser = pytest.mark.skipif(_FOUND is None, reason="needs Chromium (apt install chromium)")


@contextmanager
def start_browser() -> Iterator[Browser]:
    """A headless Chromium that the system has installed."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=_FOUND, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            browser.close()


def screenshot(page: Page, name: str) -> None:
    """Keep a picture of the whole page as ``.cache/screenshots/<name>.png``."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
