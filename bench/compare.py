"""How long comparing two full-size evaluations takes, and with what memory.

    python bench/compare.py                 # two records, 18,904 documents and 339,802 tokens each
    python bench/compare.py --runs 1000     # and a leaderboard of that many runs

Makes two record directories of the seven tasks' real sizes with texts as long as the real ones,
then compares them and writes every report, in a process of its own. Targets: under 3 s after
imports, under 500 MB, and a leaderboard of 1,000 runs under 5 s.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

COUNTS = {
    "boolq": 3270,
    "rte": 277,
    "hellaswag": 10042,
    "winogrande": 1267,
    "arc_easy": 2376,
    "arc_challenge": 1172,
    "openbookqa": 500,
}
WINDOWS, SEQLEN = 166, 2048


def make_record(directory: Path, example: str) -> None:
    """A record directory of full size: the tests' example with longer lists and texts."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
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


def measure_leaderboard(count: int) -> dict[str, float]:
    """Seconds for ranking and writing ``count`` runs from their index fields."""
    from prunescope.compare.curves import curve_points, draw_curves
    from prunescope.compare.leaderboard import (
        leaderboard,
        leaderboard_csv,
        leaderboard_run,
        leaderboard_table,
    )
    from prunescope.compare.markdown import markdown_table

    rng = random.Random(0)
    fields = []
    for number in range(count):
        metrics = {f"acc/{task}": rng.random() for task in COUNTS}
        metrics |= {f"stderr/acc/{task}": 0.01 for task in COUNTS}
        metrics |= {"acc/mean": rng.random(), "ppl/wikitext2": 5 + 9 * rng.random()}
        metrics["sparsity/linear"] = rng.choice((0.3, 0.5, 0.7))
        tags = {"prunescope.model": f"model-{number}", "prunescope.method": rng.choice("abcd")}
        if number:
            tags["prunescope.baseline_run_id"] = "0"
        when = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number)
        fields.append((str(number), f"run {number}", when, metrics, {"seqlen": "2048"}, tags))
    start = time.perf_counter()
    runs = [leaderboard_run(*each) for each in fields]
    board = leaderboard(runs)
    markdown_table(leaderboard_table(board))
    leaderboard_csv(board)
    ranked = time.perf_counter()
    draw_curves(curve_points(runs))
    return {"leaderboard_s": ranked - start, "curves_s": time.perf_counter() - ranked}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--measure", nargs=3, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        sides = [Path(folder) / name for name in ("original", "pruned")]
        for side in sides:
            make_record(side, side.name)
        for number in range(options.rounds):
            command = [sys.executable, __file__, "--measure", *map(str, sides), f"{folder}/out"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout)
            print(f"round {number + 1}:", ", ".join(f"{k} {v:.2f}" for k, v in found.items()))
    found = measure_leaderboard(options.runs)
    print(f"{options.runs} runs:", ", ".join(f"{k} {v:.2f}" for k, v in found.items()))


if __name__ == "__main__":
    main()
