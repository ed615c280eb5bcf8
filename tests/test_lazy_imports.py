"""What a command loads: help is instant, and comparing needs neither torch nor transformers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.records import write_example

HEAVY = (
    "accelerate",
    "datasets",
    "huggingface_hub",
    "lm_eval",
    "matplotlib",
    "mlflow",
    "numpy",
    "pandas",
    "peft",
    "pyarrow",
    "scipy",
    "torch",
    "transformers",
)

# Runs a command in this process and says which modules it loaded.
PROGRAM = """
import json, sys
arguments, out = json.loads(sys.argv[1]), sys.argv[2]
sys.argv = ["prunescope", *arguments]
from prunescope.cli import app
code = 0
try:
    app()
except SystemExit as stopped:
    code = stopped.code
with open(out, "w") as file:
    json.dump({"code": code, "modules": sorted(sys.modules)}, file)
"""


def loaded_by(folder: Path, *arguments: str) -> set[str]:
    """The top-level modules that ``prunescope ARGUMENTS`` loads; it must succeed."""
    out = folder / "loaded.json"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(arguments), str(out)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert out.exists(), done.stderr
    found = json.loads(out.read_text())
    assert found["code"] in (0, None), done.stdout + done.stderr
    return {name.partition(".")[0] for name in found["modules"]}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("eval", "--help"),
        ("pair", "--help"),
        ("compare", "--help"),
        ("runs", "--help"),
        ("data", "pull", "--help"),
        ("demo", "--help"),
    ],
    ids=" ".join,
)
def test_help_loads_nothing_heavy(arguments: tuple[str, ...], tmp_path: Path) -> None:
    assert loaded_by(tmp_path, *arguments) & set(HEAVY) == set()


def test_help_answers_within_half_a_second(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("prunescope")), "--help"]

    def seconds() -> float:
        started = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True, cwd=tmp_path)
        return time.perf_counter() - started

    # The best of many: what else the machine is doing does not count.
    best = min(seconds() for _ in range(5))
    for _ in range(20):
        if best < 0.5:
            break
        best = min(best, seconds())
    assert best < 0.5


MODEL_LIBRARIES = {"torch", "transformers", "lm_eval", "datasets", "accelerate", "peft"}


def test_comparing_two_record_folders_loads_no_model_library(tmp_path: Path) -> None:
    write_example(tmp_path / "a", "original")
    write_example(tmp_path / "b", "pruned")
    loaded = loaded_by(tmp_path, "compare", "a", "b")
    assert loaded & MODEL_LIBRARIES == set()
    assert "prunescope" in loaded
    assert list((tmp_path / "eval_results").glob("comparison_*.json"))
