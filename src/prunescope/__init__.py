"""prunescope: what did pruning cost? Evaluate an LLM, track the run, compare any two."""

from __future__ import annotations

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("prunescope")
