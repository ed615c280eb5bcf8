"""Whole outputs compared with files under ``tests/data/golden``.

``PRUNESCOPE_UPDATE_GOLDEN=1 pytest ...`` writes them anew; read the diff before committing it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["GOLDEN", "check_golden"]

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def check_golden(name: str, text: str) -> None:
    """Assert that ``text`` is what the golden file holds, byte for byte.

    Numbers with more than eleven decimals are kept to ten digits: their last ones depend on the
    processor.
    """
    text = re.sub(r"-?\d+\.\d{12,}(?:e[+-]?\d+)?", lambda m: f"{float(m[0]):.10g}", text)
    path = GOLDEN / name
    if os.environ.get("PRUNESCOPE_UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
    assert text == path.read_text(encoding="utf-8")
