"""MkDocs hook: a copy of the package that the API pages are read from.

griffe, which reads the docstrings, follows no links and wants an ``__init__.py`` in each folder:
evaluate/, tracking/ and compare/ are links, and must not have one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPY = ROOT / "build" / "docs-source"
"""As `paths` in mkdocs.yml."""


def on_startup(**_: object) -> None:
    shutil.rmtree(COPY, ignore_errors=True)
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src", COPY, ignore=unwanted, dirs_exist_ok=True)
    for link in (ROOT / "src" / "prunescope").iterdir():
        if link.is_symlink():
            (COPY / "prunescope" / link.name / "__init__.py").touch()
