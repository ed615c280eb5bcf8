"""docs/cli.md: fresh, and every command has help, an example and a section."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import cli_docs
import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = cli_docs.command_paths()
TEXT = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


def title(words: tuple[str, ...]) -> str:
    return " ".join(("prunescope", *words))


def section(words: tuple[str, ...]) -> str:
    _, found, rest = TEXT.partition(f"\n## {title(words)}\n")
    assert found, f"docs/cli.md has no section on {title(words)}"
    return rest.partition("\n## ")[0]


@pytest.mark.parametrize("settings", [{}, {"COLUMNS": "60", "FORCE_COLOR": "1", "LANG": "zh_CN"}])
def test_the_docs_are_fresh_whatever_the_terminal(settings: dict[str, str]) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "cli_docs.py"), "--check"]
    done = subprocess.run(
        command, env={**os.environ, **settings}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_colours_and_no_line_wider_than_the_page() -> None:
    assert "\x1b" not in TEXT
    shown = [line for line in TEXT.splitlines() if not line.startswith(("#", "-", "Generated"))]
    assert max(map(len, shown)) <= cli_docs.WIDTH


@pytest.mark.parametrize("words", COMMANDS, ids=title)
def test_every_command_has_a_section_with_help_and_an_example(words: tuple[str, ...]) -> None:
    text = section(words)
    described = re.search(r"Usage: .*\n\n (\w.+)", text)
    assert described, f"{title(words)} has no help"
    examples = re.findall(r"^ +(?:[A-Z_]+=\S+ )?(prunescope .*)$", text, re.MULTILINE)
    own = [line for line in examples if line.startswith(title(words))]
    assert own, f"{title(words)} shows no example of itself"


def test_every_option_of_every_command_is_described() -> None:
    for words in COMMANDS:
        for line in section(words).splitlines():
            if re.match(r"│ +--[a-z]", line):
                described = re.search(r"<[^>]+>  +\S", line)
                assert described, f"{title(words)}: {line}"


def test_the_readme_examples_name_commands_that_exist() -> None:
    known = {words[0] for words in COMMANDS if words}
    for name in ("README.md", "README.zh-CN.md"):
        path = ROOT / name
        used = re.findall(r"^(?:[A-Z_]+=\S+ )*prunescope (\w+)", path.read_text(), re.MULTILINE)
        assert set(used) <= known, name


WITHOUT_FORMS = {(), ("data",)}
"""Groups of commands, and one that runs until it is stopped."""


@pytest.mark.parametrize("words", COMMANDS, ids=title)
def test_every_command_answers_scripts(words: tuple[str, ...]) -> None:
    text = section(words)
    assert ("--json" in text) is (words not in WITHOUT_FORMS)
    assert ("--quiet" in text) is (words not in WITHOUT_FORMS)
