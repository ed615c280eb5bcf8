"""Draw the terminal's comparison of two record folders as docs/demo.svg, for the README.

Usage: scripts/picture.py ORIGINAL_RECORD PRUNED_RECORD
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from prunescope.compare.analysis import compare_directories
from prunescope.compare.report import terminal_report

TARGET = Path(__file__).parents[1] / "docs" / "demo.svg"


def main() -> None:
    original, pruned = (Path(argument) for argument in sys.argv[1:3])
    with Path("/dev/null").open("w") as nowhere:
        console = Console(width=92, record=True, file=nowhere, force_terminal=True)
        console.print(terminal_report(compare_directories(original, pruned)))
    drawn = console.export_svg(title="make demo", theme=MONOKAI)
    # The reader's own monospace font: a picture must not load anything from elsewhere.
    drawn = re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)
    TARGET.write_text(drawn.replace("Fira Code", "monospace"), encoding="utf-8")


if __name__ == "__main__":
    main()
