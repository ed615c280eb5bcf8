"""Tiny distributions, installed by hand or packed as wheels, for tests of installing."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path


def distribution_files(
    name: str, version: str, requires: Sequence[str] = (), modules: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Path -> text of every file of a distribution, its RECORD included.

    Args:
        modules: path -> text; by default a package of that name with ``__version__``.
    """
    if modules is None:
        modules = {f"{name}/__init__.py": f"__version__ = {version!r}\n"}
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    metadata += [f"Requires-Dist: {requirement}" for requirement in requires]
    wheel = ["Wheel-Version: 1.0", "Generator: tests", "Root-Is-Purelib: true", "Tag: py3-none-any"]
    files = dict(modules)
    files[f"{info}/METADATA"] = "\n".join(metadata) + "\n"
    files[f"{info}/WHEEL"] = "\n".join(wheel) + "\n"
    record = [f"{path},," for path in (*files, f"{info}/RECORD")]
    files[f"{info}/RECORD"] = "\n".join(record) + "\n"
    return files


def install_stub(site: Path, files: Mapping[str, str]) -> None:
    """Put a distribution into a site-packages folder, as pip would."""
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text, encoding="utf-8")


def build_wheel(folder: Path, name: str, version: str, files: Mapping[str, str]) -> Path:
    """Pack a distribution as a wheel that any Python takes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name_in_archive, text in files.items():
            archive.writestr(name_in_archive, text)
    return path
