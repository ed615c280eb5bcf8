"""Records from strangers: nothing is written outside their folder, sent from there, or run."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from support.cli import SMALL, Finished, run_cli
from support.leaks import leaks_in
from support.records import write_example
from support.server import fresh_store

from prunescope.records import read_record, samples_path, tokens_path, write_record

PRIVATE = {"a private file": "dear diary, 4711 reasons"}
FAST = ["--tasks", "boolq", "--skip", "perplexity", *SMALL]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that no record may touch."""
    folder = tmp_path / "outside"
    folder.mkdir()
    for name in ("report.md", "report.html", "private.txt", "boolq.parquet", "record.json"):
        (folder / name).write_text(PRIVATE["a private file"])
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def linked(tmp_path: Path, outside: Path, empty_database: Path) -> Path:
    """A working folder with a record full of links to the outside, symbolic and hard."""
    work = tmp_path / "work"
    fresh_store(empty_database, work / "mlruns")
    record = work / "mlruns" / "records" / "linked"
    write_example(record, "original")
    (record / "report.md").symlink_to(outside / "report.md")
    (record / "report.html").symlink_to("../../../../outside/report.html")
    (record / "samples" / "private.parquet").symlink_to(outside / "private.txt")
    (record / "plots").symlink_to(outside, target_is_directory=True)
    (record / "tables").symlink_to(outside, target_is_directory=True)
    (record / ".uploads.json").symlink_to(outside / "private.txt")
    return work


def test_links_in_a_record_are_neither_followed_nor_sent(linked: Path, outside: Path) -> None:
    before = contents(outside)
    assert run_cli(["sync"], linked).exit_code == 0
    assert (
        run_cli(["export", "mlruns/records/linked", "--out", "bundle.tar"], linked).exit_code == 0
    )
    again = ["compare", "mlruns/records/linked", "latest:SmolLM2-135M"]
    assert run_cli(again, linked).exit_code == 0
    assert contents(outside) == before
    shutil.rmtree(outside)  # what is found now was copied
    assert leaks_in(linked, PRIVATE) == []


def contents_of_files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_evaluation_does_not_go_on_in_a_record_whose_folders_lead_away(
    tiny_llama: Path, tmp_path: Path, outside: Path, empty_database: Path
) -> None:
    work = tmp_path / "work"
    fresh_store(empty_database, work / "mlruns")
    assert run_cli(["eval", str(tiny_llama), *FAST], work).exit_code == 0
    (directory,) = (work / "mlruns" / "records").iterdir()
    shutil.rmtree(work / "mlruns" / "artifacts")
    fresh_store(empty_database, work / "mlruns")
    # What a stranger can make of any public model: unfinished, with the key of our evaluation.
    record = read_record(directory)
    unfinished = record.model_copy(update={"status": "running", "finished_at": None, "tasks": {}})
    write_record(directory, unfinished)
    shutil.rmtree(directory / "samples")
    (directory / "samples").symlink_to(outside, target_is_directory=True)
    before = contents(outside)
    done = run_cli(["eval", str(tiny_llama), *FAST], work)
    assert done.exit_code == 0, done.stderr
    assert contents(outside) == before
    assert len(list((work / "mlruns" / "records").iterdir())) == 2


class _Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self._path),)


def _trapped_npz(path: Path) -> bytes:
    out = io.BytesIO()
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        array, {"descr": "|O", "fortran_order": False, "shape": (1,)}
    )
    array.write(pickle.dumps([_Trap(path)]))
    with zipfile.ZipFile(out, "w") as archive:
        for name in ("logprob", "target", "top1", "window_nll"):
            archive.writestr(f"{name}.npy", array.getvalue())
    return out.getvalue()


def test_arrays_with_objects_in_them_are_refused_without_making_them(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    assert not trap.exists()
    with pytest.raises(FileExistsError):  # the trap works where somebody unpickles it
        for _ in range(2):
            np.load(io.BytesIO(_trapped_npz(trap)), allow_pickle=True)["logprob"]
    trap.rmdir()
    for name in ("original", "pruned"):
        write_example(tmp_path / name, name)
        tokens_path(tmp_path / name, "wikitext2").write_bytes(_trapped_npz(trap))
    done = run_cli(["compare", "original", "pruned"], tmp_path)
    assert_one_line(done, "wikitext2.npz")
    assert not trap.exists()


def assert_one_line(done: Finished, *texts: str) -> None:
    assert done.exit_code == 2, done
    (line,) = done.error_lines
    assert all(text in line for text in texts), line


@pytest.mark.parametrize(
    "name", ["../../../escape", "/tmp/escape", "..", "a/b", "C:\\escape", "nul\0", "x" * 3000]
)
def test_names_in_a_record_are_no_paths(tmp_path: Path, empty_database: Path, name: str) -> None:
    """A task and a corpus become file names, a model the name of a folder."""
    base = tmp_path / "deep" / "down" / "work"
    fresh_store(empty_database, base / "mlruns")
    source = tmp_path / "bundle"
    record = write_example(source, "original")
    tasks = {name: record.tasks["boolq"].model_copy(update={"task": name})}
    perplexity = {name: record.perplexity["wikitext2"].model_copy(update={"corpus": name})}
    model = record.model.model_copy(update={"name": name, "path": name})
    for path in (samples_path(source, name), tokens_path(source, name)):
        assert path.resolve().is_relative_to(source)
        assert len(path.name) <= 255
    shutil.copy(samples_path(source, "boolq"), samples_path(source, name))
    shutil.rmtree(source / "tokens")
    changes = {"tasks": tasks, "perplexity": perplexity, "model": model}
    write_record(source, record.model_copy(update=changes))
    bundle = tmp_path / "bundle.tar"
    assert run_cli(["export", str(source), "--out", str(bundle)], base).exit_code == 0
    before = contents_of_files(tmp_path)
    done = run_cli(["import", str(bundle)], base)
    assert done.exit_code == 0, done.stderr
    new = set(contents_of_files(tmp_path)) - set(before)
    assert new
    assert all(path.startswith(str(base / "mlruns")) for path in new)
    assert not Path("/tmp/escape").exists()
    (run,) = json.loads(run_cli(["runs", "--json"], base).stdout)
    assert run["role"] == "original"
