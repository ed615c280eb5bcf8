"""What this machine has to run a model on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "DTYPE_BYTES",
    "Device",
    "cgroup_limit",
    "free_bytes",
    "list_devices",
]

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of a parameter in each dtype that a model can run in."""


@dataclass(frozen=True)
class Device:
    """Something to run a model on."""

    name: str
    """As ``--device`` takes it."""
    title: str
    free: int
    """Bytes."""
    total: int
    """Bytes."""
    dtypes: tuple[str, ...]
    """Those in which it multiplied two matrices."""
    native_bfloat16: bool = True
    """False: bfloat16 works there, but is emulated and slow."""


def list_devices() -> tuple[Device, ...]:
    """The GPUs that torch can use, then the CPU.

    Raises:
        ImportError: torch cannot be imported.
        OSError: a library that torch needs is missing.
    """
    import torch

    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        name = f"cuda:{index}"
        free, total = torch.cuda.mem_get_info(index)
        with torch.cuda.device(index):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        title = torch.cuda.get_device_name(index)
        found.append(Device(name, title, free, total, _usable_dtypes(name), native))
    if torch.backends.mps.is_available():
        free, total = free_bytes()
        found.append(Device("mps", "Apple GPU", free, total, _usable_dtypes("mps")))
    free, total = free_bytes()
    title = f"CPU, {torch.get_num_threads()} threads"
    return (*found, Device("cpu", title, free, total, _usable_dtypes("cpu")))


def _usable_dtypes(device: str) -> tuple[str, ...]:
    import torch

    usable = []
    for name in DTYPE_BYTES:
        try:
            square = torch.ones(2, 2, dtype=getattr(torch, name), device=device)
            if (square @ square).sum().item() == 8:
                usable.append(name)
        except (RuntimeError, TypeError):
            continue
    return tuple(usable)


def free_bytes() -> tuple[int, int]:
    """Memory that a process here can still get, and all of it, in bytes.

    A container or a batch job may use less than the machine has: the tightest limit of its
    control groups counts (v2; see the kernel's ``cgroup-v2.rst``, section Memory).
    """
    import psutil

    machine = psutil.virtual_memory()
    free, total = int(machine.available), int(machine.total)
    for folder in _control_groups(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")):
        limit = cgroup_limit(folder)
        if limit is not None:
            free, total = min(free, limit[0]), min(total, limit[1])
    return free, total


def _control_groups(table: Path, mount: Path) -> tuple[Path, ...]:
    """The folder of this process's control group and those above it."""
    try:
        lines = table.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ()
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    if own is None:
        return ()
    folder = mount / own.lstrip("/")
    return tuple(f for f in (folder, *folder.parents) if f == mount or mount in f.parents)


def cgroup_limit(folder: Path) -> tuple[int, int] | None:
    """(free, limit) in bytes of one control group; None where it sets no limit.

    Pages of files that were not used lately do not count as taken: the kernel drops them.
    """
    try:
        limit = int((folder / "memory.max").read_text())
        taken = int((folder / "memory.current").read_text())
        lines = (folder / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):  # "max" is no number
        return None
    reclaimable = next(
        (int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0
    )
    return max(0, limit - taken + reclaimable), limit
