"""``make screenshots``: the pictures of the documentation, taken from a store's runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from support.browsed import send_example
from support.browser import needs_browser
from support.records import EXAMPLES
from support.server import fresh_store

from prunescope.cli.publishing import Baseline, Tracker

SCRIPT = Path(__file__).parents[1] / "scripts" / "screenshots.py"
PICTURES = {"comparison.svg"} | {
    f"{name}.png" for name in ("mlflow-charts", "mlflow-run", "mlflow-table", "report")
}


def take(store: Path, into: Path) -> subprocess.CompletedProcess[str]:
    code = f"import screenshots, pathlib; screenshots.TARGET = pathlib.Path({str(into)!r})"
    return subprocess.run(
        [sys.executable, "-c", f"{code}; screenshots.main()", str(store)],
        cwd=SCRIPT.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.slow
@needs_browser
def test_every_picture_is_taken_and_small(empty_database: Path, tmp_path: Path) -> None:
    root = tmp_path / "mlruns"
    tracker = Tracker(root, fresh_store(empty_database, root), "prunescope")
    original = root / "records" / "original"
    run, _ = send_example(tracker, original, EXAMPLES["original"], None)
    baseline = Baseline(run, original)
    send_example(tracker, root / "records" / "pruned", EXAMPLES["pruned"], baseline)
    done = take(root, tmp_path / "images")
    assert done.returncode == 0, done.stderr
    taken = {path.name: path for path in (tmp_path / "images").iterdir()}
    assert set(taken) == PICTURES
    for path in taken.values():
        assert path.stat().st_size < 200_000
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert picture.width >= 1500
                assert len(picture.getcolors() or []) > 10  # not an empty page
    assert "+60.60%" in taken["comparison.svg"].read_text().replace("&#160;", " ")


def test_a_folder_without_runs_is_told_in_one_line(tmp_path: Path) -> None:
    done = take(tmp_path, tmp_path / "images")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"no runs in {tmp_path}: run 'make demo' first, or name another store"
    ]
