"""Keep lm-eval and transformers from writing on the terminal, where our progress bars are."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet"]

# lm-eval warns about loading that does not happen here and, once a request, about truncation;
# transformers warns that a text is longer than the model's maximum before we cut it.
_LOGGERS = ("lm_eval", "transformers.tokenization_utils_base")


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back warnings that tell the user nothing, or what we say once ourselves."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
