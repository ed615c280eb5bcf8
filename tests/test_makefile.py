"""The Makefile: what it lists, what it asks for, and that values reach the command unharmed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")

# Writes down how it was called, in place of the commands and of the setup script.
ECHO = """#!/usr/bin/env python3
import json, sys
with open("calls.jsonl", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
"""

FAKE_SETUP = """
from pathlib import Path
folder = Path(".venv")
(folder / "bin").mkdir(parents=True, exist_ok=True)
with open("setups", "a") as file:
    file.write("x")
for name in ("prunescope", "python"):
    (folder / "bin" / name).write_text(Path("echo.py").read_text())
    (folder / "bin" / name).chmod(0o755)
(folder / ".stamp").write_text(str(folder.absolute()) + "\\n")
"""


class Project:
    """A copy of the Makefile whose setup installs commands that only write down their arguments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "scripts").mkdir(parents=True)
        shutil.copy(ROOT / "Makefile", folder)
        shutil.copy(ROOT / "scripts" / "find_python", folder / "scripts")
        (folder / "scripts" / "setup_env.py").write_text(FAKE_SETUP)
        (folder / "echo.py").write_text(ECHO)
        for name in ("pyproject.toml", "constraints.txt", "scripts/setup_plan.py"):
            (folder / name).touch()

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME")}
        return subprocess.run(
            ["make", *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def called(self, *arguments: str) -> list[str]:
        """The arguments that the last command got."""
        done = self.make(*arguments)
        assert done.returncode == 0, done.stderr
        last: list[str] = json.loads((self.folder / "calls.jsonl").read_text().splitlines()[-1])
        return last

    @property
    def setups(self) -> int:
        path = self.folder / "setups"
        return len(path.read_text()) if path.exists() else 0


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "a folder")


def test_make_alone_lists_every_target_and_variable(project: Project) -> None:
    done = project.make()
    assert done.returncode == 0
    targets = re.findall(r"^\.PHONY: (help .*)$", MAKEFILE, re.MULTILINE)[0].split()
    variables = re.findall(r"^([A-Z]+) *\?=", MAKEFILE, re.MULTILINE)
    listed = re.findall(r"^  (\S+) +\S", done.stdout, re.MULTILINE)
    assert listed == [*sorted(targets, key=listed.index), *variables]
    assert {"setup", "eval", "pair", "compare", "demo", "ui", "test", "check"} <= set(targets)
    assert "[data]" in done.stdout  # a default
    assert project.setups == 0


def test_every_variable_is_passed_on_as_it_was_typed() -> None:
    declared = set(re.findall(r"^([A-Z]+) *\?=", MAKEFILE, re.MULTILINE))
    raw = re.findall(r"^VARIABLES := (.*)$", MAKEFILE, re.MULTILINE)[0].split()
    assert set(raw) == declared


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["eval"], "MODEL"),
        (["pair", "PRUNED=b"], "ORIGINAL"),
        (["pair", "ORIGINAL=a"], "PRUNED"),
        (["compare"], "PRUNED"),
    ],
)
def test_a_missing_value_is_asked_for_before_anything_is_set_up(
    project: Project, arguments: list[str], missing: str
) -> None:
    done = project.make(*arguments)
    assert done.returncode == 2
    first, *rest = done.stderr.splitlines()
    assert first.startswith(f"{missing} is missing: make ")
    assert len(rest) == 1  # make's own line
    assert project.setups == 0


def test_values_with_spaces_quotes_and_dollars_reach_the_command_whole(project: Project) -> None:
    model = """my "best" $HOME model's `x` #1 $(shell false)"""
    assert project.called(
        "eval", f"MODEL={model}", "TASKS=boolq,my task", "LIMIT=10", "EXPERIMENT=a b"
    ) == ["eval", model, "--tasks", "boolq,my task", "--limit", "10", "--experiment", "a b"]


def test_args_are_read_as_the_shell_reads_them(project: Project) -> None:
    called = project.called("eval", "MODEL=m", """ARGS=--dtype bfloat16 --run-name "two words" """)
    assert called == ["eval", "m", "--dtype", "bfloat16", "--run-name", "two words"]


def test_each_command_gets_its_own_values_and_no_empty_ones(project: Project) -> None:
    assert project.called("eval", "MODEL=m", "BASELINE=b") == ["eval", "m", "--baseline", "b"]
    assert project.called("pair", "ORIGINAL=a", "PRUNED=b", "LIMIT=5") == [
        *("pair", "a", "b", "--limit", "5")
    ]
    assert project.called("compare", "ORIGINAL=a", "PRUNED=b") == ["compare", "a", "b"]
    assert project.called("compare", "PRUNED=b") == ["compare", "b"]
    assert project.called("data", "DIR=some where") == ["data", "pull", "some where"]
    spread = ["-m", "pytest", "-n", "2", "--dist", "loadfile"]
    assert project.called("test", "FAST=1") == [*spread, "-m", "not slow"]
    assert project.called("test") == spread


def test_the_environment_is_set_up_when_it_is_missing_stale_or_moved(project: Project) -> None:
    project.called("ui")
    project.called("ui")
    assert project.setups == 1
    stamp = project.folder / ".venv" / ".stamp"
    later = stamp.stat().st_mtime + 10
    os.utime(project.folder / "constraints.txt", (later, later))
    project.called("ui")
    assert project.setups == 2
    os.utime(project.folder / "constraints.txt", (1, 1))
    project.called("ui")
    assert project.setups == 2
    stamp.write_text("/another/folder/.venv\n")
    project.called("ui")
    assert project.setups == 3
    links = project.folder / ".venv" / "linked-torch"
    links.mkdir()
    (links / "torch").symlink_to("/no/torch/any/more")
    project.called("ui")
    assert project.setups == 4


def test_a_failed_setup_stops_before_the_command(project: Project) -> None:
    (project.folder / "scripts" / "setup_env.py").write_text("raise SystemExit(2)")
    done = project.make("eval", "MODEL=m")
    assert done.returncode == 2
    assert not (project.folder / "calls.jsonl").exists()


def test_the_commands_exit_code_fails_make(project: Project) -> None:
    (project.folder / "echo.py").write_text("#!/bin/sh\nexit 2\n")
    assert project.make("demo").returncode == 2


def test_clean_leaves_results_alone(project: Project) -> None:
    project.called("ui")
    kept = [project.folder / "mlruns" / "mlflow.db", project.folder / "eval_results" / "a.json"]
    for path in kept:
        path.parent.mkdir()
        path.touch()
    assert project.make("clean").returncode == 0
    assert not (project.folder / ".venv").exists()
    assert all(path.exists() for path in kept)
