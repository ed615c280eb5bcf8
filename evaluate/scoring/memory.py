"""Recognise that memory ran out, and go on with less."""

from __future__ import annotations

import gc
from typing import Literal

import torch

from prunescope.errors import SettingError

__all__ = ["check_batch_size", "free_memory", "is_out_of_memory", "out_of_memory_error"]


def check_batch_size(batch_size: int | Literal["auto"]) -> None:
    """Refuse sizes below 1.

    Raises:
        SettingError: it is below 1.
    """
    if batch_size != "auto" and batch_size < 1:
        raise SettingError(
            f"the batch size must be at least 1 or auto, not {batch_size}",
            hint="Give --batch-size 8, for example, or leave it out",
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that a smaller batch may succeed."""
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return "out of memory" in str(error).lower() or bool(should_reduce_batch_size(error))


def free_memory() -> None:
    """Give cached blocks back. Call it outside the ``except`` block, whose traceback keeps them."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def out_of_memory_error(what: str = "a single sequence") -> SettingError:
    """The error for when even ``what`` is too much."""
    return SettingError(
        f"out of memory even for {what}",
        hint="Spread the model with --device-map auto, or use --dtype bfloat16 or a larger device",
    )
