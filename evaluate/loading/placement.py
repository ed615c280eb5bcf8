"""On which device and in which dtype a model runs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from prunescope.errors import SettingError
from prunescope.evaluate.loading.files import dtype_in_config, stored_dtype
from prunescope.evaluate.loading.gguf_header import read_gguf_header
from prunescope.evaluate.loading.locate import ResolvedModel, read_config
from prunescope.records import EvalConfig

if TYPE_CHECKING:
    import torch

__all__ = ["checkpoint_dtype", "resolve_device", "resolve_dtype"]

_FLOATS = ("float32", "float16", "bfloat16")


def resolve_device(config: EvalConfig) -> torch.device:
    """The device that ``config.device`` names; ``auto`` is the first GPU, else the CPU.

    Raises:
        SettingError: the name is none, or this machine has no such device.
    """
    import torch

    name = config.device
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if name == "mps":
        if not torch.backends.mps.is_available():
            raise SettingError("--device mps needs an Apple GPU, found none", hint=_other_device())
        return torch.device("mps")
    if not re.fullmatch(r"cuda(:\d+)?", name):
        raise SettingError(f"--device must be auto, cpu, cuda, cuda:N or mps, found {name!r}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(name.partition(":")[2] or 0)
    if index >= count:
        built = (
            "" if torch.version.cuda or torch.version.hip else " (this torch has no GPU support)"
        )
        raise SettingError(
            f"--device {name} needs {index + 1} GPU{'s' if index else ''}, found {count}{built}",
            hint=_other_device(),
        )
    return torch.device("cuda", index)


def resolve_dtype(resolved: ResolvedModel, config: EvalConfig, device: torch.device) -> torch.dtype:
    """dtype to run in: what was asked for; by ``auto`` float32 on CPU, the checkpoint's on GPU.

    A checkpoint that is not stored in one of the three (quantized, float64) runs in float16 on
    GPU.
    """
    import torch

    name = config.dtype
    if name == "auto":
        stored = "float32" if device.type == "cpu" else checkpoint_dtype(resolved)
        name = stored if stored in _FLOATS else "float16"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def checkpoint_dtype(resolved: ResolvedModel) -> str | None:
    """dtype that most stored weights have (of an adapter: its base's); None where unknown.

    From the headers of safetensors and GGUF files (``q4_1`` and the like for quantized ones),
    from ``config.json`` for .bin files.
    """
    if resolved.base is not None:
        return checkpoint_dtype(resolved.base)
    if resolved.kind == "gguf":
        kind = read_gguf_header(resolved.path).main_type
        return {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}.get(
            str(kind), kind and kind.lower()
        )
    return stored_dtype(resolved.files) or dtype_in_config(read_config(resolved))


def _other_device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"Use --device cuda:0 to cuda:{torch.cuda.device_count() - 1}, or --device cpu"
    return "Use --device cpu"
