"""prunescope: what did pruning cost? Evaluate an LLM, track the run, compare any two.

The names below are the Python API; :mod:`prunescope.api` describes it. They are imported when
they are first used, so that ``import prunescope`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunescope.api import (
        Comparison,
        EvalRecord,
        GateResult,
        Outcome,
        Pair,
        PrunescopeError,
        Refreshed,
        RunRef,
        StoredRun,
        check_gate,
        compare_runs,
        evaluate_model,
        evaluate_pair,
        find_runs,
        read_run,
        refresh_runs,
        write_comparison,
    )

    __version__: str

__all__ = [
    "Comparison",
    "EvalRecord",
    "GateResult",
    "Outcome",
    "Pair",
    "PrunescopeError",
    "Refreshed",
    "RunRef",
    "StoredRun",
    "__version__",
    "check_gate",
    "compare_runs",
    "evaluate_model",
    "evaluate_pair",
    "find_runs",
    "read_run",
    "refresh_runs",
    "write_comparison",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("prunescope")
    elif name in __all__:
        value = getattr(importlib.import_module("prunescope.api"), name)
    else:
        raise AttributeError(f"module 'prunescope' has no attribute '{name}'")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
