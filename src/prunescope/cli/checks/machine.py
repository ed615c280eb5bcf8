"""GPU and dtypes, memory against a model's need, and the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prunescope.cli.checks.result import Check

if TYPE_CHECKING:
    from prunescope.evaluate.loading import ModelSize
    from prunescope.evaluate.machine import Device

__all__ = ["check_devices", "check_disk", "check_memory"]

_GIB = 2**30
_FULL = 0.25
"""GiB below which not even records and a small model's cache fit."""
_LITTLE = 5.0
"""GiB below which a disk is soon full."""
_TIGHT = 0.85
"""Share of the free memory above which weights leave too little for activations."""


def check_devices(devices: Sequence[Device], driver: bool | None = None) -> tuple[Check, ...]:
    """What can be run on, and in which dtypes.

    Args:
        devices: of :func:`~prunescope.evaluate.machine.list_devices`.
        driver: whether this machine has an NVIDIA driver; looked for by default.
    """
    driver = shutil.which("nvidia-smi") is not None if driver is None else driver
    found = []
    for device in devices:
        what = f"{device.name}: {device.title}, {_size(device.free)} of {_size(device.total)} free"
        dtypes = f"computes in {', '.join(device.dtypes) or 'no dtype'}"
        missing = [name for name in ("float32", "bfloat16") if name not in device.dtypes]
        if missing:
            found.append(
                Check(
                    "device",
                    "warning",
                    f"{what}; {dtypes}, not in {' and '.join(missing)}",
                    f"Use --dtype {device.dtypes[0]}" if device.dtypes else "Use --device cpu",
                )
            )
        elif not device.native_bfloat16:
            found.append(
                Check("device", "warning", f"{what}; bfloat16 is emulated", "Use --dtype float16")
            )
        else:
            found.append(Check("device", "ok", f"{what}; {dtypes}"))
    if driver and not any(device.name.startswith("cuda") for device in devices):
        found.append(
            Check(
                "device",
                "warning",
                "the machine has an NVIDIA driver, but this torch finds no GPU",
                "Install a torch that fits the driver (pytorch.org/get-started), and look at "
                "CUDA_VISIBLE_DEVICES",
            )
        )
    return tuple(found)


def check_memory(size: ModelSize | None, devices: Sequence[Device]) -> tuple[Check, ...]:
    """Whether a model's weights fit: parameters times bytes of the dtype it would run in.

    Args:
        size: of :func:`~prunescope.evaluate.loading.model_size`; None: only a download tells.
        devices: the first is the one that ``--device auto`` takes.
    """
    from prunescope.evaluate.machine import DTYPE_BYTES

    if size is None:
        text = "the hub has no safetensors of the model, whose headers would tell its size"
        return (Check("memory", "skipped", text),)
    device = devices[0]
    stored = size.stored_dtype if size.stored_dtype in DTYPE_BYTES else "float16"
    dtype = "float32" if device.name == "cpu" else str(stored)
    need = size.parameters * DTYPE_BYTES[dtype]
    text = (
        f"{size.parameters:,} parameters in {dtype} take {_size(need)}, "
        f"{device.name} has {_size(device.free)} free"
    )
    if need <= _TIGHT * device.free:
        return (Check("memory", "ok", text),)
    half = size.parameters * 2
    gpus = [one for one in devices if one.name.startswith("cuda")]
    if dtype == "float32" and half <= _TIGHT * device.free:
        advice = f"Use --dtype bfloat16: {_size(half)}"
    elif len(gpus) > 1 and need <= _TIGHT * sum(one.free for one in gpus):
        advice = "Spread it over the GPUs with --device-map auto"
    elif device.name != "cpu" and size.parameters * 4 <= _TIGHT * devices[-1].free:
        advice = "Free the GPU, or use --device cpu, which is slow"
    else:
        advice = "Free memory, or use a larger machine"
    if need <= device.free:
        return (Check("memory", "warning", f"{text}, which leaves little to work in", advice),)
    return (Check("memory", "problem", text, advice),)


def check_disk(folders: Sequence[tuple[str, Path]], download: int = 0) -> tuple[Check, ...]:
    """Whether the folders that are written to can be, and have room.

    Args:
        folders: what each is for, and where; one that is not there yet is judged by its nearest
            parent that is. The last is where models go.
        download: bytes that the last must still take.
    """
    found = []
    for number, (purpose, folder) in enumerate(folders):
        more = download if number == len(folders) - 1 else 0
        place = next((p for p in (folder, *folder.absolute().parents) if p.exists()), Path("/"))
        what = f"{purpose} in {folder}"
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            kind = "cannot be written" if place.is_dir() else "is no folder"
            found.append(Check("disk", "problem", f"{what}: {place} {kind}", _elsewhere(purpose)))
            continue
        free = shutil.disk_usage(place).free
        text = f"{what}: {_size(free)} free"
        text += f", the model's download takes {_size(more)}" if more else ""
        if free - more < _FULL * _GIB:
            found.append(Check("disk", "problem", text, f"Make room. {_elsewhere(purpose)}"))
        elif free - more < _LITTLE * _GIB:
            found.append(Check("disk", "warning", text, f"Make room. {_elsewhere(purpose)}"))
        else:
            found.append(Check("disk", "ok", text))
    return tuple(found)


def _elsewhere(purpose: str) -> str:
    if purpose == "records":
        return "Run prunescope in a folder on another disk"
    return "Point HF_HOME (or --cache-dir) at another disk"


def _size(size: int) -> str:
    return f"{size / _GIB:.1f} GiB" if size >= _GIB / 10 else f"{size / 2**20:.1f} MiB"
