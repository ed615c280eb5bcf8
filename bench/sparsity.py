"""How fast sparsity is measured, beside plain reading and sha256 alone, and with what memory.

    python bench/sparsity.py                  # a 2 GB checkpoint in bfloat16, 5 rounds
    python bench/sparsity.py --megabytes 256 --dtype float32 --rounds 3

Makes a pruned checkpoint in a temporary folder, then runs the three in turn, each in a process of
its own (so that its peak memory is its own), on files that the page cache holds. Ours is total,
N:M groups, blocks, rows, columns and both hashes. The targets: at least 0.8 of the speed of
sha256, and a peak under 300 MB plus twice the largest tensor.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SIDES = ("read", "sha256", "ours")
SHARDS = 4
HIDDEN, INTERMEDIATE, VOCABULARY = 2048, 5632, 32000
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN // 4, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 4, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}


def make_checkpoint(directory: Path, megabytes: int, dtype: str) -> int:
    """Write shards of random weights, half of them zero; return the largest tensor's bytes."""
    import torch
    from safetensors.torch import save_file

    kind = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(0)

    def weights(shape: tuple[int, int]) -> torch.Tensor:
        values = torch.randn(shape, generator=generator)
        return torch.where(torch.rand(shape, generator=generator) < 0.5, 0.0, values).to(kind)

    block = {name: weights(shape) for name, shape in SHAPES.items()}
    embedding = torch.randn((VOCABULARY, HIDDEN), generator=generator).to(kind)
    size = sum(tensor.nbytes for tensor in block.values())
    layers = max(1, round((megabytes * 1e6 - embedding.nbytes) / size))
    shards = min(SHARDS, layers)
    for shard in range(shards):
        tensors = {
            # rolled, so that no two layers are the same bytes
            f"model.layers.{layer}.{name}.weight": tensor.roll(layer, 0)
            for layer in range(shard, layers, shards)
            for name, tensor in block.items()
        }
        if shard == 0:
            tensors["model.embed_tokens.weight"] = embedding
        save_file(tensors, directory / f"model-{shard + 1:05}-of-{shards:05}.safetensors")
    return max(tensor.nbytes for tensor in (embedding, *block.values()))


def read_all(files: list[Path], use: Callable[[memoryview], object]) -> None:
    """Hand every byte to ``use``, 4 MB at a time."""
    buffer = memoryview(bytearray(4 * 2**20))
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                use(buffer[:count])


def measure_files(files: list[Path]) -> None:
    """What ``prunescope sparsity`` and ``prunescope eval`` do."""
    from prunescope.evaluate.checkpoint import iter_tensors
    from prunescope.evaluate.sparsity import measure

    measure(iter_tensors(files, "safetensors"))


def run_side(side: str, files: list[Path]) -> dict[str, float]:
    """Seconds, processor seconds and peak memory of one pass, measured in this process."""
    if side == "ours":  # imports are not what is measured
        import prunescope.evaluate.checkpoint
        import prunescope.evaluate.sparsity  # noqa: F401
    before, began, busy = peak_memory(), time.perf_counter(), time.process_time()
    if side == "ours":
        measure_files(files)
    else:
        read_all(files, hashlib.sha256().update if side == "sha256" else len)
    return {
        "seconds": time.perf_counter() - began,
        "busy": time.process_time() - busy,
        "before": before,
        "peak": peak_memory(),
    }


def peak_memory() -> int:
    """Bytes; 0 where the system does not tell (it is read from Linux's /proc)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])


def run_apart(side: str, directory: Path) -> dict[str, float]:
    """:func:`run_side` in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--directory", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def bench(directory: Path, megabytes: int, dtype: str, rounds: int) -> None:
    """Make the checkpoint, run the rounds, print the table."""
    largest = make_checkpoint(directory, megabytes, dtype)
    files = sorted(directory.glob("*.safetensors"))
    size = sum(path.stat().st_size for path in files)
    read_all(files, len)  # into the page cache
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            found[side].append(run_apart(side, directory))
    print(f"{size / 1e9:.2f} GB of {dtype} in {len(files)} shards, {os.cpu_count()} cores")
    print(f"{'':8}{'GB/s, median':>14}{'best':>8}{'processor s':>13}{'peak MB':>9}")
    for side in SIDES:
        seconds = [run["seconds"] for run in found[side]]
        print(
            f"{side:8}{size / statistics.median(seconds) / 1e9:14.2f}"
            f"{size / min(seconds) / 1e9:8.2f}"
            f"{statistics.median(run['busy'] for run in found[side]):13.2f}"
            f"{max(run['peak'] for run in found[side]) / 1e6:9.0f}"
        )
    pairs = zip(found["sha256"], found["ours"], strict=True)
    ratio = statistics.median(hashed["seconds"] / ours["seconds"] for hashed, ours in pairs)
    peak = max(run["peak"] for run in found["ours"])
    before = max(run["before"] for run in found["ours"])
    limit = 300e6 + 2 * largest
    print(f"ours / sha256 alone: {ratio:.2f} (target: at least 0.80)")
    print(
        f"peak memory: {peak / 1e6:.0f} MB, of which {before / 1e6:.0f} MB before the first tensor "
        f"(target: under {limit / 1e6:.0f} MB; the largest tensor is {largest / 1e6:.0f} MB)"
    )


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=2000, help="size of the checkpoint")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="where to put it (default: temporary)")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        files = sorted(options.directory.glob("*.safetensors"))
        print(json.dumps(run_side(options.side, files)))
        return
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        bench(Path(directory), options.megabytes, options.dtype, options.rounds)


if __name__ == "__main__":
    main()
