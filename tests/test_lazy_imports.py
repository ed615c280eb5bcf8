"""What a command loads: help is instant, and comparing needs neither torch nor transformers."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
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
        """Processor time: what a person waits on a machine that does nothing else."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, capture_output=True, check=True, cwd=tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(5)) < 0.5


MODEL_LIBRARIES = {"torch", "transformers", "lm_eval", "datasets", "accelerate", "peft"}


def test_comparing_two_record_folders_loads_no_model_library(tmp_path: Path) -> None:
    write_example(tmp_path / "a", "original")
    write_example(tmp_path / "b", "pruned")
    loaded = loaded_by(tmp_path, "compare", "a", "b")
    assert loaded & MODEL_LIBRARIES == set()
    assert "prunescope" in loaded
    assert list((tmp_path / "eval_results").glob("comparison_*.json"))


def test_sending_listing_and_comparing_runs_loads_no_model_library(
    empty_database: Path, tmp_path: Path
) -> None:
    records = tmp_path / "mlruns" / "records"
    write_example(records / "a", "original")
    write_example(records / "b", "pruned")
    shutil.copy(empty_database, tmp_path / "mlruns" / "mlflow.db")
    sent = loaded_by(tmp_path, "sync")
    listed = loaded_by(tmp_path, "runs")
    compared = loaded_by(tmp_path, "compare", "latest:SmolLM2-135M", "latest:SmolLM2-135M-2of4")
    assert "mlflow" in sent & listed & compared
    assert (sent | listed | compared) & MODEL_LIBRARIES == set()
    assert list((tmp_path / "eval_results").glob("comparison_*.json"))
