"""Keep the libraries' own bars, warnings and logs off the terminal, which is ours."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["quiet_libraries"]

_LOGGERS = ("transformers", "huggingface_hub", "accelerate", "peft", "httpx", "httpx2", "filelock")


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hold back what Hugging Face's libraries print; afterwards everything is as it was.

    Import transformers before, where it is used inside: its import sets the level of its logger.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), _no_bars():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Switch off every tqdm bar: some of transformers' heed none of its own switches."""
    from tqdm.std import tqdm  # type: ignore[import-untyped]

    original = tqdm.__init__

    def disabled(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **{**kwargs, "disable": True})

    tqdm.__init__ = disabled
    try:
        yield
    finally:
        tqdm.__init__ = original
