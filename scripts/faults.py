"""Run tests/faults and print its table: each fault, and what was lost (nothing).

python scripts/faults.py                # all of it, 20 random kills: several minutes
python scripts/faults.py -k disk        # as pytest takes it
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> int:
    sys.path.insert(0, str(ROOT / "tests"))
    ledger = importlib.import_module("support.ledger")
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        environment = {
            **os.environ,
            "PRUNESCOPE_FAULTS_FILE": str(rows),
            "PRUNESCOPE_ALL_FAULTS": "1",
        }
        command = [sys.executable, "-m", "pytest", "tests/faults", "-q", *sys.argv[1:]]
        code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
        if rows.is_file():
            print(ledger.read_table(rows))
    return code


if __name__ == "__main__":
    sys.exit(main())
