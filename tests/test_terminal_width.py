"""What the commands print: it fits 80 columns, uses 160, is plain and unbroken in a pipe.

Colours follow the direction of each figure, results alone are on stdout, and progress is shown on
terminals alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from support.cli import SMALL, run_cli
from support.records import EXAMPLES, Example, write_example
from support.server import fresh_store

from prunescope.compare.analysis import compare_directories
from prunescope.compare.report import terminal_report

PAIR = ["latest:SmolLM2-135M", "latest:SmolLM2-135M-2of4"]
GATE = ["--gate", "ppl<=+5%, acc.mean>=-1pt, sparsity>=40%"]
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
RED, GREEN, YELLOW = "31", "32", "33"


@pytest.mark.parametrize(("width", "spare"), [(80, False), (160, True)])
def test_the_statistics_fit_the_terminal(tmp_path: Path, width: int, spare: bool) -> None:
    write_example(tmp_path / "a", "original")
    write_example(tmp_path / "b", "pruned")
    comparison = compare_directories(tmp_path / "a", tmp_path / "b")
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(terminal_report(comparison))
    lines = [line.rstrip() for line in capture.get().splitlines()]
    assert max(len(line) for line in lines) <= width
    header = next(line for line in lines if "Verdict" in line)
    assert ("Detectable" in header) is spare
    assert any("Detectable" in line for line in lines) is spare
    rows = [line for line in lines if line.startswith("arc_challenge ")]
    assert len(rows) == 3  # accuracies, their differences, the divergence of the choices
    assert rows[1].split()[-1] in ("worse", "better", "same", "unclear")


# --- every command at each width ----------------------------------------------------------------


@pytest.fixture(scope="module")
def workspace(
    tmp_path_factory: pytest.TempPathFactory, empty_database: Path, tiny_llama: Path
) -> Path:
    """A store with an original, a pruned run of its, one that broke, and a long name."""
    folder = tmp_path_factory.mktemp("terminal")
    fresh_store(empty_database, folder / "mlruns")
    records = folder / "mlruns" / "records"
    for name in ("original", "pruned", "broken"):
        write_example(records / name, name)
    long = Example(
        "a-model-with-a-name-of-many-words-" * 3, "f" * 32, role="pruned", method="wanda"
    )
    write_example(records / "long", long)
    assert run_cli(["sync"], folder).exit_code == 0
    original = json.loads(run_cli(["runs", "--json", "--role", "original"], folder).stdout)
    assert run_cli(["refresh", "--baseline", original[0]["run_id"], PAIR[1]], folder).exit_code == 0
    assert run_cli(["export", *PAIR, "--out", "pair.tar"], folder).exit_code == 0
    assert run_cli(evaluation(tiny_llama), folder).exit_code == 0
    return folder


def evaluation(model: Path) -> list[str]:
    """Of about a second; the second time it is only looked up."""
    return ["eval", str(model), "--tasks", "boolq,rte", *SMALL]


COMMANDS = {
    "runs": ["runs"],
    "leaderboard": ["leaderboard"],
    "compare": ["compare", *PAIR],
    "gate": ["compare", *PAIR, *GATE],
    "sparsity": ["sparsity", "MODEL"],
    "drift": ["sparsity", "MODEL", "--against", "MODEL"],
    "eval": ["eval"],
    "sync": ["sync"],
    "refresh": ["refresh"],
    "import": ["import", "pair.tar"],
    "export": ["export", *PAIR, "--out", "again.tar"],
    "doctor": ["doctor", "MODEL"],
}
TABLES = ("runs", "leaderboard", "compare", "gate", "sparsity", "drift", "eval", "doctor")


def arguments(name: str, model: Path) -> list[str]:
    if name == "eval":
        return evaluation(model)
    return [str(model) if part == "MODEL" else part for part in COMMANDS[name]]


def printed(
    name: str,
    workspace: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    width: int | None,
    **environment: str,
) -> str:
    """What is on stdout; without a width the environment says none, as in a pipe."""
    monkeypatch.delenv("COLUMNS", raising=False)
    for key, value in ({"COLUMNS": str(width)} if width else {}).items():
        monkeypatch.setenv(key, value)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    done = run_cli(arguments(name, model), workspace)
    assert done.exit_code in ((0, 1) if name in ("gate", "doctor") else (0,)), done.stderr
    return done.stdout


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize("name", TABLES)
def test_tables_fit_the_terminal(
    workspace: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, name: str, width: int
) -> None:
    text = printed(name, workspace, tiny_llama, monkeypatch, width)
    wide = [line for line in text.splitlines() if cell_len(line.rstrip()) > width]
    assert wide == []
    assert "\x1b" not in text


@pytest.mark.parametrize("name", TABLES)
def test_no_figure_is_lost_at_80_columns(
    workspace: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    narrow = printed(name, workspace, tiny_llama, monkeypatch, 80)
    if name == "doctor":
        assert re.findall(r"^\w+", narrow, re.M)  # its figures change from one second to the next
        return
    wide = printed(name, workspace, tiny_llama, monkeypatch, 1000)
    shown = set(re.findall(r"[-+]?\d+\.\d+%?", narrow))
    missing = [one for one in re.findall(r"[-+]?\d+\.\d+%?", wide) if one not in shown]
    if name == "leaderboard":  # it says which columns it leaves out
        assert "Left out, as the terminal is narrow: Method, boolq" in " ".join(narrow.split())
        assert all(re.fullmatch(r"[01]\.\d{4}", one) for one in missing), missing
    elif name in ("compare", "gate"):  # the column Detectable, which its caption then omits
        header = next(line for line in wide.splitlines() if "Detectable" in line)
        assert len(missing) <= wide.count("\n") and "Detectable" not in narrow and header
    else:
        assert missing == []


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_pipe_gets_plain_lines_that_are_not_broken(
    workspace: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    text = printed(name, workspace, tiny_llama, monkeypatch, None)
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", text)
    lines = text.splitlines()
    if name in ("runs", "leaderboard"):
        rows = [line for line in lines if re.match(r"[0-9a-f]{8}  ", line)]
        assert len(rows) >= 4
        long = "a-model-with-a-name-of-many-words-" * 3
        assert any(long in row and "wanda" in row for row in rows)
    if name == "compare":
        assert "Detectable" in text
        assert any(line.startswith("arc_challenge  ") and "worse" in line for line in lines)
    assert [line for line in lines if line != line.rstrip()] == []


def test_a_narrow_leaderboard_keeps_what_fits_and_says_what_does_not(
    workspace: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = printed("leaderboard", workspace, tiny_llama, monkeypatch, 80)
    header = " ".join(narrow[: narrow.index("SmolLM2")].split())
    assert "PPL (32)" in header and "Run Model Sparsity" in header
    assert "boolq" not in header
    wide = printed("leaderboard", workspace, tiny_llama, monkeypatch, 400)
    assert "openbookqa" in wide.splitlines()[0] and "Left out" not in wide


# --- colours ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """Text and the colour that it is printed in."""

    text: str
    codes: tuple[str, ...]


def pieces(line: str) -> list[Piece]:
    """A line cut where its colour changes."""
    found, codes = [], ()
    for part in re.split(r"(\x1b\[[0-9;]*m)", line):
        if COLOURS.fullmatch(part):
            given = tuple(part[2:-1].split(";"))
            codes = () if given in (("0",), ("",)) else given
        elif part:
            found.append(Piece(part, codes))
    return found


def colour_of(text: str, word: str, within: str) -> set[str]:
    """The colours of ``word`` in the lines that begin with ``within``."""
    lines = [line for line in text.splitlines() if COLOURS.sub("", line).startswith(within)]
    assert lines, within
    return {
        code
        for line in lines
        for piece in pieces(line)
        if word in piece.text
        for code in piece.codes
        if code in (RED, GREEN, YELLOW)
    }


TERMINAL = {"FORCE_COLOR": "1", "TERM": "xterm"}


def test_colours_follow_the_direction_of_each_figure(
    workspace: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = printed("gate", workspace, tiny_llama, monkeypatch, 160, **TERMINAL)
    assert colour_of(text, "+60.60%", "PPL Degradation") == {RED}  # a higher perplexity is worse
    assert colour_of(text, "-8.89%", "boolq") == {RED}  # a lower accuracy is worse
    assert colour_of(text, "+10.00%", "rte") == {GREEN}  # a higher accuracy is better
    assert colour_of(text, "+0.00%", "openbookqa") == set()
    assert colour_of(text, "0.7500", "boolq") == set()  # figures alone have no direction
    assert colour_of(text, "worse", "SUITE") == {RED}
    assert colour_of(text, "fail", "fail: ppl") == {RED}
    assert colour_of(text, "pass", "pass: sparsity") == {GREEN}
    assert colour_of(text, "gate", "gate: fail") == {RED}


def test_the_other_way_round_the_colours_are_the_others(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in {**TERMINAL, "COLUMNS": "160"}.items():
        monkeypatch.setenv(key, value)
    text = run_cli(["compare", *reversed(PAIR)], workspace).stdout
    assert colour_of(text, "-37.73%", "PPL Degradation") == {GREEN}
    assert colour_of(text, "+9.76%", "boolq") == {GREEN}
    assert colour_of(text, "-9.09%", "rte") == {RED}


def test_a_leaderboard_marks_what_is_beyond_chance(
    workspace: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = printed("leaderboard", workspace, tiny_llama, monkeypatch, 400, **TERMINAL)
    (row,) = (
        line for line in text.splitlines() if EXAMPLES["pruned"].name in COLOURS.sub("", line)
    )
    (change,) = (piece for piece in pieces(row) if "*" in piece.text)
    assert change.text.startswith("-") and RED in change.codes


@pytest.mark.parametrize("name", ["runs", "leaderboard", "gate", "sparsity", "eval", "doctor"])
def test_no_color_leaves_no_colour(
    workspace: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    coloured = printed(name, workspace, tiny_llama, monkeypatch, 100, **TERMINAL)
    assert "\x1b[" in coloured
    text = printed(name, workspace, tiny_llama, monkeypatch, 100, **TERMINAL, NO_COLOR="1")
    codes = {code for found in COLOURS.findall(text) for code in found[2:-1].split(";")}
    assert codes <= {"", "0", "1", "2"}  # bold and dim are no colours
    if name not in ("doctor", "runs"):  # those tell of seconds
        assert COLOURS.sub("", text) == COLOURS.sub("", coloured)


# --- stdout, stderr and progress ----------------------------------------------------------------


@dataclass
class Terminal:
    """What a process wrote on a terminal of its own."""

    code: int
    out: str
    err: str


def in_a_terminal(
    command: list[str],
    cwd: Path,
    *,
    out: bool = True,
    err: bool = True,
    width: int = 80,
    **environment: str,
) -> Terminal:
    """Run the command with stdout and stderr, or one of them, being a terminal of this width."""
    ends: dict[str, tuple[int, int]] = {}
    for stream, wanted in (("out", out), ("err", err)):
        ends[stream] = pty.openpty() if wanted else os.pipe()
        if wanted:
            size = struct.pack("HHHH", 40, width, 0, 0)
            fcntl.ioctl(ends[stream][1], termios.TIOCSWINSZ, size)
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "prunescope", *command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=ends["out"][1],
        stderr=ends["err"][1],
        env={**kept, "TERM": "xterm", "OMP_NUM_THREADS": "1", **environment},
    )
    for _, theirs in ends.values():
        os.close(theirs)
    texts = _read_all({stream: ours for stream, (ours, _) in ends.items()})
    return Terminal(process.wait(timeout=60), texts["out"], texts["err"])


def _read_all(ends: dict[str, int]) -> dict[str, str]:
    found = {stream: bytearray() for stream in ends}
    open_ends = {number: stream for stream, number in ends.items()}
    deadline = time.monotonic() + 180
    while open_ends and time.monotonic() < deadline:
        ready, _, _ = select.select(list(open_ends), [], [], 1)
        for number in ready:
            try:
                content = os.read(number, 65536)
            except OSError:  # a terminal whose other end was closed
                content = b""
            if content:
                found[open_ends[number]] += content
            else:
                os.close(number)
                del open_ends[number]
    assert not open_ends
    return {stream: content.decode(errors="replace") for stream, content in found.items()}


def test_a_comparison_in_a_real_terminal_fits_and_has_colours(workspace: Path) -> None:
    done = in_a_terminal(["compare", *PAIR, *GATE], workspace)
    assert done.code == 1  # the gate failed
    plain = COLOURS.sub("", done.out).replace("\r", "")
    assert max(cell_len(line.rstrip()) for line in plain.splitlines()) <= 80
    assert "\x1b" not in plain
    assert colour_of(done.out.replace("\r", ""), "+60.60%", "PPL Degradation") == {RED}
    assert "wrote " not in plain and "wrote " in done.err


def test_what_is_no_letter_of_the_terminals_is_no_error(workspace: Path) -> None:
    done = in_a_terminal(["leaderboard"], workspace, out=False, PYTHONIOENCODING="latin-1")
    assert done.code == 0
    assert "? mean" in done.out and "Traceback" not in done.err


@pytest.mark.slow
def test_progress_is_on_a_terminals_stderr_and_results_on_stdout(
    workspace: Path, tiny_llama: Path
) -> None:
    command = [*evaluation(tiny_llama), "--force"]
    done = in_a_terminal(command, workspace, out=False)
    assert done.code == 0, done.err
    assert "\x1b" not in done.out
    assert "boolq" in done.out and "mean accuracy" in done.out
    assert re.search(r"\x1b\[\?25l.*tasks.*0:00:\d\d", done.err, re.S)  # bars with their times
    assert "browse it with" in done.err and "browse it with" not in done.out


@pytest.mark.slow
def test_progress_is_silent_where_stderr_is_no_terminal_whatever_is_forced(
    workspace: Path, tiny_llama: Path
) -> None:
    command = [*evaluation(tiny_llama), "--force"]
    done = in_a_terminal(command, workspace, err=False, FORCE_COLOR="1")
    assert done.code == 0, done.err
    assert "\x1b[?25" not in done.err and "%|" not in done.err and "\r" not in done.err
    told = [COLOURS.sub("", line) for line in done.err.splitlines()]
    assert [line.split()[0] for line in told] == ["run", "browse"]
