"""A disk that fills up: a small tmpfs, which takes root to mount."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.faultbench import Bench, record_ids, runs_of
from support.ledger import Ledger, Row

ROOM = 2_000_000
"""Bytes of the whole disk."""
LEFT = [0, 8192, 40960, 81920, 122880]
"""Bytes that are left, so that it fills up in one stage or another."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small disk takes the right to mount a tmpfs: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, left: int) -> Path:
    """A file that leaves so many bytes of the disk."""
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            pass
        file.truncate(max(0, file.tell() - left))
    return filler


@pytest.mark.slow
@pytest.mark.parametrize("left", LEFT if os.environ.get("PRUNESCOPE_ALL_FAULTS") else LEFT[::2])
def test_the_disk_is_full(
    bench: Bench, ledger: Ledger, small_disk: Path, tmp_path: Path, left: int
) -> None:
    earlier = bench.start(bench.arguments(bench.server), small_disk).wait()
    assert earlier.exit_code == 0, earlier.stderr
    (known,) = record_ids(small_disk)
    filler = fill(small_disk, left)
    elsewhere = tmp_path / "terminal"  # what it prints has room
    elsewhere.mkdir()
    arguments = bench.arguments(bench.server)
    (elsewhere / "mlruns").symlink_to(small_disk / "mlruns")
    done = bench.start(arguments, elsewhere).wait()
    assert done.exit_code == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr
    filler.unlink()
    again = bench.start(arguments, elsewhere).wait()
    assert again.exit_code == 0, again.stderr
    after = [one for one in record_ids(small_disk) if one != known]
    store = bench.store(small_disk)
    runs = [run for one in after for run in runs_of(store, one)]
    whole = sum(run.is_complete and run.status == "FINISHED" for run in runs)
    equal = all(bench.is_undisturbed(run) for run in [*runs, *runs_of(store, known)])
    name = f"the disk is full, {left // 1024} kB left"
    ledger.add(Row(name, 1, 0, whole, len(runs) - 1, equal))
