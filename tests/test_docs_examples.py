"""Every command and Python example of the README and of docs/ runs, or says why it does not.

A fenced block without a language (or ``bash``) holds commands, run line by line on tiny models
under the names that the pages use; its options are parsed, and it is not run, where
``<!-- not run: why -->`` stands above it. A script (``#!``) is checked by ``bash -n``, YAML is
parsed, and the commands inside both are parsed. Any other language fails but ``text``.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.cli import ROWS, SMALL, run_cli
from support.models import save_tiny_model
from typer.main import get_command

from prunescope import api
from prunescope.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *sorted(ROOT.glob("README*.md")),
    *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "cli.md"),
]
FENCE = re.compile(
    r"(?:<!-- not run: (?P<why>[^>]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
INLINE = re.compile(r"`((?:[A-Z_]+=\S+ )*prunescope [a-z][^`]*)`")
JUDGES = {"--gate": {0, 1, 3}, "--require-mask-kept": {0, 1}}
"""Options with which other exit codes than 0 are an answer."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    why_not: str | None

    @property
    def kind(self) -> str:
        if self.language in ("", "bash", "sh"):
            return "script" if self.text.startswith("#!") else "commands"
        return self.language


def blocks(page: Path) -> list[Block]:
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [Block(one["language"], one["text"], one["why"]) for one in found]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command, with ``NAME=value`` in front; comments left out."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def split(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Settings in front, and the command itself."""
    count = 0
    while count < len(words) and re.fullmatch(r"[A-Z_]+=.*", words[count]):
        count += 1
    return dict(word.split("=", 1) for word in words[:count]), words[count:]


def parse(arguments: list[str]) -> None:
    """Read a command's options as the command line does, and run nothing."""
    command: Any = get_command(app)
    path = ["prunescope"]
    while hasattr(command, "commands"):
        assert arguments, f"{' '.join(path)} needs a command"
        assert arguments[0] in command.commands, f"no command {' '.join([*path, arguments[0]])}"
        path.append(arguments[0])
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context(" ".join(path), list(arguments))


def parse_words(words: list[str]) -> None:
    _, words = split(words)
    if words[0] == "prunescope":
        parse([word for word in words[1:] if word != "..."])
    elif words[0] == "make":
        make(words)


def make(words: list[str]) -> None:
    # --assume-old: whether .venv is stale is not the question here.
    done = subprocess.run(
        ["make", "-n", "-o", ".venv/.stamp", *words[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A folder with what the pages name: models, data, old results, and two runs."""
    folder = tmp_path_factory.mktemp("docs")
    save_tiny_model(folder / "Llama-2-7b-hf")
    for name in ("wanda-50", "wanda-2-4", "finetuned", "three-tier"):
        save_tiny_model(folder / "out" / name, sparsity=0.5)
    shutil.copytree(ROWS, folder / "data")
    (folder / "mlruns").mkdir()
    shutil.copy(empty_database, folder / "mlruns" / "mlflow.db")
    for arguments in (
        ["Llama-2-7b-hf", "--role", "original"],
        ["out/wanda-50", "--baseline", "latest:Llama-2-7b-hf", "--method", "wanda"],
    ):
        done = run_cli(["eval", *arguments, *SMALL], folder)
        assert done.exit_code == 0, done.stderr
    done = run_cli(["compare", "latest:wanda-50"], folder)
    assert done.exit_code == 0, done.stderr
    for name in (".txt", ".json"):
        for old in sorted((ROOT / "tests" / "data" / "legacy").rglob(f"*{name}")):
            shutil.copy(old, folder / "eval_results")
    return folder


@pytest.fixture
def stand_ins(workspace: Path, mlflow_server: str) -> dict[str, str]:
    """What the pages name -> what is here."""
    with contextlib.chdir(workspace):
        run = api.find_runs(model="wanda-50", limit=1)[0].ref.run_id
    return {"3f9c1e7a": run, "http://mlflow.lab:5000": mlflow_server}


def run_command(words: list[str], folder: Path, stand_ins: dict[str, str]) -> None:
    settings, words = split(words)
    if words[0] == "make":
        make(words)
        return
    assert words[0] == "prunescope", (
        f"'{shlex.join(words)}' cannot be run here: put <!-- not run: why --> above its block"
    )
    arguments = [stand_ins.get(word, word) for word in words[1:]]
    if arguments[0] in ("eval", "pair"):
        given = set(arguments)
        for option, value in zip(SMALL[::2], SMALL[1::2], strict=True):
            if option not in given:
                arguments += [option, value]
    allowed = {0}.union(*(codes for option, codes in JUDGES.items() if option in arguments))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        done = run_cli(arguments, folder)
    assert done.exit_code in allowed, f"{shlex.join(words)}: {done.stdout}{done.stderr}"


def run_python(text: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Run an example; evaluations are as small as the tiny models."""
    build = api._config
    small = {"data_dir": ROWS, "seqlen": 64, "limit": 4, "device": "cpu"}
    patch.setattr(api, "_config", lambda model, settings: build(model, {**settings, **small}))
    with contextlib.chdir(folder):
        exec(compile(ast.parse(text), "example", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_runs_or_says_why_not(
    page: Path, workspace: Path, stand_ins: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for block in blocks(page):
        if block.kind == "commands":
            for words in commands(block.text):
                if block.why_not is None:
                    run_command(words, workspace, stand_ins)
                else:
                    parse_words(words)
        elif block.kind == "python":
            run_python(block.text, workspace, monkeypatch)
        elif block.kind == "script":
            check_script(block.text)
        elif block.kind == "yaml":
            check_yaml(block.text)
        else:
            assert block.kind == "text", f"{page.name}: nobody checks a block of {block.kind}"
            assert not re.search(r"^(prunescope|make) \w+ [^>]*$", block.text, re.MULTILINE)


def test_pictures_are_there_small_and_all_shown() -> None:
    shown = set()
    for page in PAGES:
        for place in re.findall(r"!\[[^]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            picture = (page.parent / place).resolve()
            assert picture.stat().st_size < 200_000, place
            shown.add(picture)
    assert shown == set((ROOT / "docs" / "images").iterdir())


def check_script(text: str) -> None:
    subprocess.run(["bash", "-n"], input=text, text=True, check=True, timeout=30)
    found = re.findall(r"^\s*(prunescope .*)$", text.replace("\\\n", " "), re.MULTILINE)
    assert found
    for line in found:
        parse_words(shlex.split(line.rstrip(" &")))


def check_yaml(text: str) -> None:
    workflow = yaml.safe_load(text)
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    scripts = [step["run"] for step in steps if "run" in step]
    assert scripts
    for script in scripts:
        check_script(script)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_text_exist(page: Path) -> None:
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    for text in INLINE.findall(prose):
        _, words = split(shlex.split(text.split(" || ")[0]))
        words = [word for word in words[1:] if word != "..."]
        try:
            parse(words)
        except Exception as error:
            # A command may be named without its arguments.
            assert type(error).__name__ in ("MissingParameter", "NoArgsIsHelpError"), text


EXAMPLES = [
    (name, textwrap.dedent(example))
    for name in (*api.__all__, None)
    for example in re.findall(
        r"\n\n((?:    (?:from|import) .*\n)(?:(?:    .*)?\n)*?)(?=\S|\Z)",
        (inspect.getdoc(getattr(api, name) if name else api) or "") + "\n",
    )
]


def test_the_api_has_examples() -> None:
    assert {"evaluate_model", "evaluate_pair", "compare_runs", "check_gate", "find_runs"} <= {
        name for name, _ in EXAMPLES
    }


@pytest.mark.parametrize(("name", "text"), EXAMPLES, ids=[str(name) for name, _ in EXAMPLES])
def test_the_examples_of_the_api_run(
    name: str | None, text: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_python(text, workspace, monkeypatch)


# --- the test itself ----------------------------------------------------------------------------


def test_what_cannot_run_fails(workspace: Path) -> None:
    with pytest.raises(AssertionError, match="not run: why"):
        run_command(["hf", "auth", "login"], workspace, {})
    with pytest.raises(AssertionError):
        run_command(["prunescope", "runs", "--no-such-option"], workspace, {})
    with pytest.raises(AssertionError, match="make"):
        run_command(["make", "no-such-target"], workspace, {})
    with pytest.raises(AssertionError, match="no command"):
        parse(["evaluate", "m"])
    with pytest.raises(Exception, match="no-such-option"):
        parse(["runs", "--no-such-option"])


def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="install the docs group: make setup")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"),
            "--site-dir",
            str(tmp_path),
        ],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "python-api" / "index.html").read_text()
    described = set(re.findall(r'<h2 id="[\w.]*\.(\w+)"', reference))
    assert described >= set(api.__all__)
    assert 'id="prunescope.compare.delta.Comparison.average"' in reference
