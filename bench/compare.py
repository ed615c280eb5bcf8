"""How long comparing two full-size evaluations takes, with what memory, among how many runs.

    python bench/compare.py                  # everything; a few minutes
    python bench/compare.py --part records   # two records of 22,000 documents and 340,000 tokens
    python bench/compare.py --part store     # the same two among 10 and among 10,000 runs
    python bench/compare.py --part board     # leaderboard of 1,000 runs: SQLite and a real server

Targets: comparing and every report under 3 s after imports and under 500 MB; among 10,000 runs
at most 1.2 times the time among ten; a leaderboard of 1,000 runs under 5 s.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TESTS = Path(__file__).parents[1] / "tests"
COUNTS = {
    "boolq": 3270,
    "rte": 277,
    "hellaswag": 13138,  # its own 10,042, and what the seven tasks lack of 22,000
    "winogrande": 1267,
    "arc_easy": 2376,
    "arc_challenge": 1172,
    "openbookqa": 500,
}
WINDOWS, SEQLEN = 167, 2048


def make_record(directory: Path, example: str) -> None:
    """A record directory of full size: the tests' example with longer lists and texts."""
    sys.path.insert(0, str(TESTS))
    import pyarrow.parquet as pq
    from support import records

    from prunescope.records import samples_path, tokens_path, write_record

    records.DOCUMENTS.update(COUNTS)
    which = records.EXAMPLES[example]
    record = records.example(which)
    text = record.perplexity["wikitext2"].model_copy(
        update={"seqlen": SEQLEN, "windows": WINDOWS, "tokens": WINDOWS * (SEQLEN - 1)}
    )
    write_record(directory, record.model_copy(update={"perplexity": {"wikitext2": text}}))
    words = random.Random(1)
    for task in COUNTS:
        rows = records.sample_rows(which, task)
        for number, row in enumerate(rows):
            passage = " ".join(words.choice(("pruning", "keeps", "weights")) for _ in range(110))
            row["context"] = f"{passage} {row['context']}"
            field = {"boolq": "passage", "hellaswag": "activity_label"}.get(task, "question")
            value = f"kind {number % 190}" if task == "hellaswag" else f"{number % 2500} {passage}"
            row["document"] = json.dumps({field: value, "text": passage})
        path = samples_path(directory, task)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(records.samples_table(rows), path, compression="zstd")
    rng = np.random.default_rng(0)
    nll = rng.gamma(2.0, 1.6, (WINDOWS, SEQLEN - 1))
    nll += np.abs(np.random.default_rng(len(example)).normal(0, which.noise / 5 + 1e-9, nll.shape))
    target = rng.integers(0, 49152, nll.shape).astype(np.int32)
    path = tokens_path(directory, "wikitext2")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        logprob=(-nll).astype(np.float32),
        target=target,
        top1=np.where(nll < 2, target, 0).astype(np.int32),
        window_nll=nll.mean(axis=1),
    )


def measure(original: Path, pruned: Path, out: Path) -> dict[str, float]:
    """Seconds for comparing and for the reports, and the peak of memory in MB."""
    from prunescope.compare.analysis import compare_directories
    from prunescope.compare.report import FORMATS, plain_report, write_comparison

    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    comparison = compare_directories(original, pruned)
    compared = time.perf_counter()
    plain_report(comparison)
    write_comparison(comparison, out, formats=tuple(FORMATS))
    end = time.perf_counter()
    return {
        "compare_s": compared - start,
        "reports_s": end - compared,
        "total_s": end - start,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "imported_mb": imported,
    }


# --- many runs in a store -------------------------------------------------------------------------


def fill_store(root: Path, sides: list[Path], count: int) -> None:
    """An embedded store with the two records as real runs, and copies of their rows up to
    ``count`` runs, of other models. Logging so many would take an hour, so SQL writes them."""
    from prunescope.records import read_record, write_record
    from prunescope.tracking.store import open_store

    store = open_store(None, root=root)
    baseline = None
    refs = []
    for side in sides:
        record = read_record(side)
        labels = record.labels.model_copy(update={"baseline_run_id": baseline})
        write_record(side, record.model_copy(update={"labels": labels}))
        refs.append(store.upload(side, experiment="prunescope"))
        baseline = refs[0].run_id
    database = sqlite3.connect(root / "mlflow.db")
    with database:
        for number in range(count - len(refs)):
            _copy_run(database, refs[number % len(refs)].run_id, number)
    database.close()


def _copy_run(database: sqlite3.Connection, source: str, number: int) -> None:
    run_id = hashlib.md5(str(number).encode()).hexdigest()
    changes = {"run_uuid": run_id, "name": f"copy {number}"}
    later = {"start_time": -1000 * (number + 1)}  # older than the two real ones
    _copy_rows(database, "runs", "run_uuid", source, changes, later)
    for table in ("metrics", "latest_metrics", "params", "tags"):
        _copy_rows(database, table, "run_uuid", source, {"run_uuid": run_id})
    own = {
        "prunescope.model": f"model-{number % 500}",
        "prunescope.record_id": run_id,
        "prunescope.record_key": f"{number:064x}",
        "mlflow.runName": f"copy {number}",
    }
    for key, value in own.items():
        database.execute(
            "update tags set value = ? where key = ? and run_uuid = ?", (value, key, run_id)
        )
    for table in ("metrics", "latest_metrics"):
        database.execute(
            f"update {table} set value = value * ? where run_uuid = ? and key like 'acc/%'",
            (random.Random(number).uniform(0.7, 1.0), run_id),
        )
    inputs = database.execute(
        "select source_id from inputs where destination_id = ?", (source,)
    ).fetchall()
    for place, (dataset,) in enumerate(inputs):
        values = (f"{run_id[:20]}{place:012x}", "DATASET", dataset, "RUN", run_id, 0)
        database.execute(
            "insert into inputs (input_uuid, source_type, source_id, destination_type, "
            "destination_id, step) values (?, ?, ?, ?, ?, ?)",
            values,
        )


def _copy_rows(
    database: sqlite3.Connection,
    table: str,
    key: str,
    source: str,
    changes: dict[str, str],
    shifts: dict[str, int] | None = None,
) -> None:
    columns = [row[1] for row in database.execute(f"pragma table_info({table})")]
    chosen = [
        "?" if name in changes else f"{name} + ?" if name in (shifts or {}) else name
        for name in columns
    ]
    values = [
        changes[name] if name in changes else (shifts or {})[name]
        for name in columns
        if name in changes or name in (shifts or {})
    ]
    database.execute(
        f"insert into {table} select {', '.join(chosen)} from {table} where {key} = ?",
        (*values, source),
    )


def measure_store(root: Path, out: Path) -> dict[str, float]:
    """Seconds for finding, fetching and comparing the two newest runs, reports included."""
    from prunescope.cli.finder import RunFinder
    from prunescope.compare.analysis import compare_directories
    from prunescope.compare.report import FORMATS, write_comparison

    uri = f"sqlite:///{root / 'mlflow.db'}"
    with RunFinder(uri) as finder:
        _ = finder.store  # opening is importing MLflow, whatever the store holds
        start = time.perf_counter()
        first = finder.find("latest:SmolLM2-135M")
        second = finder.find("latest:SmolLM2-135M-2of4")
        found = time.perf_counter()
        comparison = compare_directories(first.directory, second.directory)
        write_comparison(comparison, out, formats=tuple(FORMATS))
        end = time.perf_counter()
    return {"find_s": found - start, "compare_s": end - found, "total_s": end - start}


def measure_board(uri: str, out: Path) -> dict[str, float]:
    """Seconds of ``prunescope leaderboard`` after imports: table, CSV file and curves."""
    from typer.testing import CliRunner

    from prunescope.cli import app

    runner = CliRunner()
    runner.invoke(app, ["leaderboard", "--tracking-uri", uri, "--filter", "model=none"])
    seconds = {}
    for name, more in (
        ("table_s", []),
        ("csv_s", ["--format", "csv", "-o", str(out / "board.csv")]),
        ("curves_s", ["--curves", str(out / "curves.png")]),
    ):
        start = time.perf_counter()
        done = runner.invoke(app, ["leaderboard", "--tracking-uri", uri, *more])
        seconds[name] = time.perf_counter() - start
        if done.exit_code:
            raise RuntimeError(done.output)
    lines = (out / "board.csv").read_text(encoding="utf-8").count("\n")
    return {"runs": lines - 1, **seconds}


# --- parts ----------------------------------------------------------------------------------------


def in_process(what: str, *arguments: object) -> dict[str, float]:
    """Measure in a process of its own, so that memory and caches are its own."""
    command = [sys.executable, __file__, "--measure", what, *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def show(title: str, found: dict[str, float]) -> None:
    """One line of figures, with what else the machine was doing."""
    load = os.getloadavg()[0]
    figures = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
    print(f"{title}: {figures} (load {load:.1f})", flush=True)


def part_records(folder: Path, sides: list[Path], rounds: int) -> None:
    """Two records of full size."""
    for number in range(rounds):
        show(f"records, round {number + 1}", in_process("records", *sides, folder / "out"))


def part_store(folder: Path, sides: list[Path], rounds: int, counts: tuple[int, ...]) -> None:
    """The same two in small and in large stores."""
    best = []
    for count in counts:
        root = folder / f"store-{count}"
        fill_store(root, sides, count)
        found = [in_process("store", root, folder / "out") for _ in range(rounds)]
        for each in found:
            show(f"among {count:,} runs", each)
        best.append(min(each["total_s"] for each in found))
    print(f"ratio of the best: {best[-1] / best[0]:.3f}", flush=True)


def part_board(folder: Path, count: int) -> None:
    """A leaderboard over SQLite and over a real server."""
    sys.path.insert(0, str(TESTS))
    from support.records import write_example
    from support.server import running_server

    small = [folder / "small-original", folder / "small-pruned"]
    for side, name in zip(small, ("original", "pruned"), strict=True):
        write_example(side, name)
    root = folder / "board"
    fill_store(root, small, count)
    uri = f"sqlite:///{root / 'mlflow.db'}"
    show("leaderboard, SQLite", in_process("board", uri, folder))
    server = folder / "server"
    server.mkdir()
    shutil.copy(root / "mlflow.db", server / "server.db")
    # Four workers are what `mlflow server` starts of itself.
    for workers in ("4", "1"):
        with running_server(server, "--workers", workers) as address:
            title = f"leaderboard, mlflow server with {workers} worker(s)"
            show(title, in_process("board", address, folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("all", "records", "store", "board"), default="all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=1000, help="runs in the leaderboard")
    parser.add_argument("--store-runs", type=int, default=10_000, help="runs in the large store")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        what, *arguments = options.measure
        if what == "board":
            print(json.dumps(measure_board(arguments[0], Path(arguments[1]))))
        else:
            chosen = {"records": measure, "store": measure_store}[what]
            print(json.dumps(chosen(*map(Path, arguments))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sides = [folder / side for side in ("original", "pruned")]
        if options.part != "board":
            for side in sides:
                make_record(side, side.name)
        if options.part in ("all", "records"):
            part_records(folder, sides, options.rounds)
        if options.part in ("all", "store"):
            part_store(folder, sides, options.rounds, (10, options.store_runs))
        if options.part in ("all", "board"):
            part_board(folder, options.runs)


if __name__ == "__main__":
    main()
