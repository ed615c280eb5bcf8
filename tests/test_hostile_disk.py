"""Read-only folders, damaged and newer records, odd clocks and paths: one clear line, no harm.

Whatever lies beside a damaged record goes on as if it were not there, and nothing is changed that
was not asked for. A full disk is in ``tests/faults``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.cli import SMALL, Finished, run_cli
from support.records import write_example
from support.server import fresh_store

from prunescope.records import read_record
from prunescope.tracking.store import open_store

FAST = ["--tasks", "boolq", "--skip", "perplexity", *SMALL]
PAIR = ["latest:SmolLM2-135M", "latest:SmolLM2-135M-2of4"]


def digest(folder: Path) -> dict[str, str]:
    """Every file below a folder, and the hash of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def assert_one_line(done: Finished, *texts: str) -> None:
    """It ended as a user's mistake does, with one line besides what it wrote before."""
    told = [line for line in done.error_lines if not line.startswith("wrote ")]
    assert done.exit_code == 2, done
    assert len(told) == 1, told
    assert told[0].startswith("Error: ")
    for text in texts:
        assert text in told[0], told[0]


# --- damaged and newer records beside healthy ones ----------------------------------------------


def _damage_newer(text: str) -> bytes:
    return json.dumps({**json.loads(text), "schema_version": 99, "new_field": 1}).encode()


DAMAGES = {
    "empty": lambda text: b"",
    "truncated": lambda text: text.encode()[: len(text) // 2],
    "newer": _damage_newer,
    "another": lambda text: b'["a", "list"]',
    "binary": lambda text: b"\xff\xfe\x00PK\x03\x04",
    "deep": lambda text: b"[" * 200_000,
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """Two healthy records that are on the server, one that is not, and one damaged of each kind."""
    folder = tmp_path_factory.mktemp("damaged")
    fresh_store(empty_database, folder / "mlruns")
    records = folder / "mlruns" / "records"
    for name in ("original", "pruned"):
        write_example(records / f"healthy-{name}", name)
    assert run_cli(["sync"], folder).exit_code == 0
    whole = (records / "healthy-original" / "record.json").read_text()
    for name, damage in DAMAGES.items():
        (records / f"bad-{name}").mkdir()
        (records / f"bad-{name}" / "record.json").write_bytes(damage(whole))
    (records / "bad-folder" / "record.json").mkdir(parents=True)
    (records / "a file").touch()
    (records / "bad-link").symlink_to("bad-link")
    write_example(records / "waiting", "other-window")
    return folder


@pytest.fixture
def damaged(workspace: Path, tmp_path: Path) -> Path:
    """A copy of the workspace that a test may change."""
    folder = tmp_path / "work"
    shutil.copytree(workspace, folder, symlinks=True)
    database = folder / "mlruns" / "mlflow.db"
    fresh = open_store(f"sqlite:///{database}", root=folder / "mlruns")
    assert len(fresh.search()) == 2
    return folder


def bad_files(folder: Path) -> dict[str, str]:
    found = digest(folder / "mlruns" / "records")
    return {name: found[name] for name in found if name.startswith("bad-")}


def test_sync_sends_what_is_whole_and_names_the_rest(damaged: Path) -> None:
    before = bad_files(damaged)
    done = run_cli(["sync"], damaged)
    assert done.exit_code == 2
    assert "sent waiting" in done.stdout
    *named, last = done.error_lines
    assert last == f"Error: {len(DAMAGES)} records were not sent. See the lines above."
    assert len(named) == len(DAMAGES)
    for name in DAMAGES:
        (line,) = (line for line in named if f"bad-{name}" in line)
        assert line.startswith("not sent: ")
    assert "reads up to 1. Install a newer prunescope" in next(n for n in named if "newer" in n)
    assert bad_files(damaged) == before


@pytest.mark.parametrize(
    "command",
    [
        ["runs"],
        ["leaderboard"],
        ["compare", *PAIR],
        ["compare", "mlruns/records/healthy-original", "mlruns/records/healthy-pruned"],
        ["export", *PAIR, "--out", "pair.tar"],
        ["refresh"],
        ["sync", "--dry-run"],
    ],
    ids=lambda command: " ".join(command[:2])[:20],
)
def test_commands_go_on_beside_damaged_records(damaged: Path, command: list[str]) -> None:
    before = digest(damaged / "mlruns" / "records")
    done = run_cli(command, damaged)
    assert done.exit_code == (2 if command[0] == "sync" else 0), done.stderr
    assert done.stdout.strip()
    assert digest(damaged / "mlruns" / "records") == before


def test_an_evaluation_and_an_import_go_on_beside_damaged_records(
    damaged: Path, tiny_llama: Path
) -> None:
    before = bad_files(damaged)
    for _ in range(2):  # the second one looks for the first among the records
        done = run_cli(["eval", str(tiny_llama), *FAST], damaged)
        assert done.exit_code == 0, done.stderr
    assert "not run again" in done.stderr
    assert run_cli(["export", *PAIR, "--out", "pair.tar"], damaged).exit_code == 0
    elsewhere = ["--tracking-uri", f"sqlite:///{damaged / 'other' / 'mlflow.db'}"]
    shutil.copytree(damaged / "mlruns", damaged / "other", ignore=lambda *_: {"records"})
    assert run_cli(["import", "pair.tar", *elsewhere], damaged).exit_code == 0
    assert bad_files(damaged) == before


@pytest.mark.parametrize("name", list(DAMAGES))
def test_a_damaged_record_that_is_named_is_told_in_a_line(damaged: Path, name: str) -> None:
    folder = f"mlruns/records/bad-{name}"
    for command in (
        ["compare", folder, "mlruns/records/healthy-pruned"],
        ["export", folder, "--out", "bad.tar"],
    ):
        assert_one_line(run_cli(command, damaged), "record.json")
    assert not (damaged / "bad.tar").exists()


def test_damaged_parts_of_a_record_are_told_in_a_line(damaged: Path) -> None:
    folder = damaged / "mlruns" / "records" / "healthy-pruned"
    for path in (folder / "samples" / "boolq.parquet", folder / "tokens" / "wikitext2.npz"):
        whole = path.read_bytes()
        for content in (b"", whole[: len(whole) // 2]):
            path.write_bytes(content)
            done = run_cli(["compare", "mlruns/records/healthy-original", str(folder)], damaged)
            assert_one_line(done, path.name)
        path.write_bytes(whole)


@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3\0" + b"\0" * 84])
def test_a_damaged_store_is_told_in_a_line_and_left_as_it_is(
    tmp_path: Path, tiny_llama: Path, content: bytes
) -> None:
    database = tmp_path / "mlruns" / "mlflow.db"
    database.parent.mkdir()
    database.write_bytes(content)
    write_example(tmp_path / "mlruns" / "records" / "kept", "original")
    for command in (["runs"], ["sync"], ["leaderboard"]):
        assert_one_line(run_cli(command, tmp_path), "mlflow.db")
    assert database.read_bytes() == content
    done = run_cli(["eval", str(tiny_llama), *FAST], tmp_path)
    assert done.exit_code == 0  # the numbers are not lost
    assert "not tracked: " in done.stderr
    assert database.read_bytes() == content


# --- read-only folders --------------------------------------------------------------------------


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing below the folder can be changed, not by root either; skips where that cannot be."""
    if os.geteuid():
        modes = {path: path.stat().st_mode for path in [folder, *folder.rglob("*")]}
        for path, mode in modes.items():
            path.chmod(mode & ~0o222)
        try:
            yield
        finally:
            for path, mode in modes.items():
                path.chmod(mode)
        return
    chattr = shutil.which("chattr")
    if (
        chattr is None
        or subprocess.run([chattr, "-R", "+i", folder], capture_output=True).returncode
    ):
        pytest.skip("root may write everywhere, and this file system has no chattr +i")
    try:
        yield
    finally:
        subprocess.run([chattr, "-R", "-i", folder], check=True)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A folder with a store of two runs and their records; nobody changes it."""
    folder = tmp_path_factory.mktemp("tracked")
    fresh_store(empty_database, folder / "mlruns")
    for name in ("original", "pruned"):
        write_example(folder / "mlruns" / "records" / name, name)
    assert run_cli(["sync"], folder).exit_code == 0
    return folder


def test_what_only_reads_works_on_a_read_only_store(tracked: Path, tmp_path: Path) -> None:
    with read_only(tracked / "mlruns"):
        for command in (
            ["runs"],
            ["leaderboard"],
            ["sync"],
            ["compare", *PAIR, "--output-dir", str(tmp_path / "reports")],
            ["export", *PAIR, "--out", str(tmp_path / "pair.tar")],
        ):
            done = run_cli(command, tracked)
            assert done.exit_code == 0, (command, done.stderr)
            assert done.stdout.strip()


def test_what_writes_says_so_in_a_line(tracked: Path, tiny_llama: Path, tmp_path: Path) -> None:
    run_cli(["export", *PAIR, "--out", str(tmp_path / "pair.tar")], tracked)
    before = digest(tracked / "mlruns")
    reports = ["--output-dir", str(tmp_path / "reports")]
    with read_only(tracked / "mlruns"):
        evaluated = ["eval", str(tiny_llama), *FAST]
        assert_one_line(run_cli(evaluated, tracked), "cannot write into mlruns/records")
        done = run_cli(["compare", *PAIR, "--log", *reports], tracked)
        assert_one_line(done, "mlflow.db failed", "the folder's permissions")
        assert_one_line(run_cli(["sparsity", str(tiny_llama), "--log"], tracked), "mlruns/records")
    assert digest(tracked / "mlruns") == before


@pytest.mark.parametrize(
    "command",
    [
        ["runs"],
        ["leaderboard"],
        ["sync"],
        ["compare", "a", "b"],
        ["export", "a", "--out", "a.tar"],
        ["eval", "MODEL", *FAST],
        ["pair", "MODEL", "MODEL", *FAST],
    ],
    ids=lambda command: command[0],
)
def test_a_read_only_working_folder_is_told_in_a_line(
    tmp_path: Path, tiny_llama: Path, command: list[str]
) -> None:
    (tmp_path / "work").mkdir()
    named = [str(tiny_llama) if part == "MODEL" else part for part in command]
    with read_only(tmp_path / "work"):
        assert_one_line(run_cli(named, tmp_path / "work"), "cannot write")
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        ["export", PAIR[0], "--out", "TARGET/a.tar"],
        ["compare", *PAIR, "--output-dir", "TARGET"],
        ["compare", *PAIR, "--output-dir", "GOOD", "--gate", "ppl<=+5%", "--junit", "TARGET/a.xml"],
        ["leaderboard", "--format", "csv", "--output", "TARGET/a.csv"],
        ["leaderboard", "--curves", "TARGET/a.png"],
    ],
    ids=lambda command: f"{command[0]} {command[-2]}",
)
def test_a_read_only_target_is_told_in_a_line(
    tracked: Path, tmp_path: Path, command: list[str]
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    places = {"TARGET": str(target), "GOOD": str(tmp_path / "good")}
    for name, place in places.items():
        command = [part.replace(name, place) for part in command]
    with read_only(target):
        assert_one_line(run_cli(command, tracked), "cannot write", str(target))
    assert list(target.iterdir()) == []


def test_a_read_only_model_is_evaluated(
    tiny_llama: Path, tmp_path: Path, empty_store: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    before = digest(model)
    with read_only(model):
        assert run_cli(["eval", str(model), *FAST], empty_store.parent).exit_code == 0
    assert digest(model) == before


# --- clocks -------------------------------------------------------------------------------------


class Clock:
    """Tells the times that it was given, then the last one for ever."""

    def __init__(self, *times: datetime) -> None:
        self._times = list(times)

    def __call__(self) -> datetime:
        return self._times.pop(0) if len(self._times) > 1 else self._times[0]


def set_clock(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Every place that asks for the time gets this clock's."""
    from prunescope.evaluate import prepare, runner
    from prunescope.tracking.store import client

    for module in (prepare, runner, client):
        monkeypatch.setattr(module, "utc_now", clock)


NOON = datetime(2026, 3, 14, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    "times",
    [
        (NOON, NOON - timedelta(hours=3)),
        (NOON, NOON - timedelta(days=20_000)),
        (datetime(1970, 1, 1, tzinfo=UTC), NOON),
        (datetime(2099, 1, 1, tzinfo=UTC), NOON),
    ],
    ids=["back 3 hours", "back to 1971", "from 1970", "back from 2099"],
)
def test_a_clock_that_jumps_costs_nothing(
    tiny_llama: Path,
    empty_store: Path,
    monkeypatch: pytest.MonkeyPatch,
    times: tuple[datetime, ...],
) -> None:
    folder = empty_store.parent
    with monkeypatch.context() as patched:
        set_clock(patched, Clock(*times))
        done = run_cli(["eval", str(tiny_llama), *FAST, "--role", "original"], folder)
    assert done.exit_code == 0, done.stderr
    (run,) = open_store(None, root=empty_store).search()
    record = read_record(next((empty_store / "records").iterdir()))
    assert record.started_at == times[0]
    assert abs(run.started_at - times[0]) <= timedelta(milliseconds=1)
    client, _ = open_store(None, root=empty_store).connection
    info = client.get_run(run.ref.run_id).info
    assert info.end_time >= info.start_time  # MLflow shows no negative durations
    assert all(seconds >= 0 for seconds in record.provenance.timings.values())
    for command in (["runs"], ["leaderboard"], ["compare", run.ref.run_id, run.ref.run_id]):
        assert run_cli(command, folder).exit_code == 0
    again = run_cli(["eval", str(tiny_llama), *FAST, "--role", "original"], folder)
    assert "not run again" in again.stderr


# --- names and paths ----------------------------------------------------------------------------

NAMES = {
    "chinese": "模型-7B-剪枝",
    "emoji": "model 🦙 50%",
    "combining": "e\u0301te\u0301",
    "quotes": 'it\'s "q" $x `y`;&|',
    "lines": "two\nlines\ttab",
    "sharp": "50%#?&=x",
    "longest": "n" * 255,
    "longest in UTF-8": "模" * 85,
    "option": "-rf",
    "dots": "..model..",
}


@pytest.mark.parametrize("name", list(NAMES))
def test_any_name_of_a_model_folder_goes_through(
    tiny_llama: Path, tmp_path: Path, empty_store: Path, name: str
) -> None:
    model = tmp_path / "models" / NAMES[name]
    model.parent.mkdir()
    shutil.copytree(tiny_llama, model)
    folder = empty_store.parent
    done = run_cli(["eval", str(model), *FAST], folder)
    assert done.exit_code == 0, done.stderr
    assert len(done.error_lines) == 2  # the run, and how to browse it
    (directory,) = (empty_store / "records").iterdir()
    assert len(os.fsencode(directory.name)) <= 255
    assert read_record(directory).model.name == NAMES[name]
    (run,) = json.loads(run_cli(["runs", "--json"], folder).stdout)
    assert run["model"] == NAMES[name]
    assert len(run["run_name"]) <= 250
    lines = run_cli(["runs"], folder).stdout.splitlines()
    assert "Perplexity" in lines[0] and "Run" in lines[0]
    # MLflow's search cannot spell a value with both kinds of quotes.
    selector = run["run_id"] if name == "quotes" else f"latest:{NAMES[name]}"
    again = run_cli(["compare", selector, run["run_id"]], folder)
    assert again.exit_code == 0, again.stderr


def deep(folder: Path, length: int) -> Path:
    """A folder whose path is at least so many bytes long."""
    while len(os.fsencode(folder)) < length:
        folder = folder / ("d" * 240)
    return folder


def test_a_model_deep_down_goes_through(
    tiny_llama: Path, tmp_path: Path, empty_store: Path
) -> None:
    model = deep(tmp_path, 1200) / "tiny"
    shutil.copytree(tiny_llama, model)
    done = run_cli(["eval", str(model), *FAST], empty_store.parent)
    assert done.exit_code == 0, done.stderr
    assert read_record(next((empty_store / "records").iterdir())).model.path == str(model)
    (run,) = open_store(None, root=empty_store).search()
    assert all(len(value) <= 8000 for value in run.tags.values())


def test_a_working_folder_too_deep_for_sqlite_keeps_the_record_and_says_why(
    tiny_llama: Path, tmp_path: Path
) -> None:
    folder = deep(tmp_path, 1200)
    folder.mkdir(parents=True)
    done = run_cli(["eval", str(tiny_llama), *FAST], folder)
    assert done.exit_code == 0
    assert "not tracked" in done.stderr
    assert "SQLite takes at most 504 bytes" in done.stderr
    assert len(list((folder / "mlruns" / "records").iterdir())) == 1
    assert_one_line(run_cli(["runs"], folder), "SQLite takes at most 504 bytes")


@pytest.mark.parametrize("length", [504, 505])
def test_the_longest_path_of_an_sqlite_store_is_as_told(
    tmp_path: Path, empty_database: Path, length: int
) -> None:
    from prunescope.errors import TrackingError

    folder = deep(tmp_path, 200)
    folder = folder / ("e" * (length - len(os.fsencode(folder)) - len("//mlflow.db")))
    folder.mkdir(parents=True)
    shutil.copy(empty_database, folder)
    context = contextlib.nullcontext() if length <= 504 else pytest.raises(TrackingError)
    with context:
        assert open_store(None, root=folder).search() == []


@pytest.mark.parametrize("name", ["arbeit äöü", "hash#and'quote", "工作 🦙"])
def test_any_name_of_the_working_folder_goes_through(
    tiny_llama: Path, tmp_path: Path, empty_database: Path, name: str
) -> None:
    folder = tmp_path / name
    fresh_store(empty_database, folder / "mlruns")
    done = run_cli(["eval", str(tiny_llama), *FAST], folder)
    assert done.exit_code == 0 and "not tracked" not in done.stderr
    (run,) = json.loads(run_cli(["runs", "--json"], folder).stdout)
    assert run_cli(["compare", run["run_id"], run["run_id"]], folder).exit_code == 0


def test_a_path_that_is_not_utf8_is_told_in_a_line(tiny_llama: Path, tmp_path: Path) -> None:
    model = Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff"))
    try:
        shutil.copytree(tiny_llama, model)
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    for command in (["eval", str(model), *FAST], ["sparsity", str(model)]):
        assert_one_line(run_cli(command, tmp_path), "in UTF-8", "bad\\xff")
