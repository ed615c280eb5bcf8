"""Python, the installed packages, and whether ``evaluate`` is Hugging Face's."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

from prunescope.cli.checks.result import Check

__all__ = ["check_packages", "check_python", "check_shadowing"]

_SHOWN = ("torch", "transformers", "lm-eval", "datasets", "mlflow")


def check_python(
    version: tuple[int, int, int] | None = None, wanted: str | None = None
) -> tuple[Check, ...]:
    """Whether this Python is one that prunescope supports.

    Args:
        version: this interpreter's by default.
        wanted: a version specifier; by default what prunescope's metadata says.
    """
    from packaging.specifiers import SpecifierSet

    text = ".".join(map(str, version or sys.version_info[:3]))
    wanted = wanted or metadata.metadata("prunescope")["Requires-Python"]
    if SpecifierSet(wanted).contains(text, prereleases=True):
        return (Check("python", "ok", f"Python {text} at {sys.executable}"),)
    return (
        Check(
            "python",
            "problem",
            f"Python {text}, expected {wanted}",
            "Make a new environment with a newer Python (make setup PYTHON=python3.12)",
        ),
    )


def check_packages(
    requirements: Iterable[str] | None = None, installed: Mapping[str, str] | None = None
) -> tuple[Check, ...]:
    """Whether every package that prunescope needs is there and new enough.

    Args:
        requirements: as in ``pyproject.toml``; by default those of the installed prunescope.
        installed: package -> version; by default what this environment has.
    """
    from packaging.requirements import Requirement

    wanted = [
        requirement
        for text in (
            metadata.requires("prunescope") or [] if requirements is None else requirements
        )
        if (requirement := Requirement(text)).marker is None or requirement.marker.evaluate()
    ]
    failed, versions = [], {}
    for requirement in wanted:
        found = installed.get(requirement.name) if installed is not None else None
        found = found if installed is not None else _version(requirement.name)
        versions[requirement.name] = found
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            state = f"is {found}" if found else "is not installed"
            failed.append(
                Check(
                    "packages",
                    "problem",
                    f"{requirement.name} {state}, expected {requirement.specifier}",
                    f'Run: {sys.executable} -m pip install "{requirement.name}'
                    f'{requirement.specifier}"',
                )
            )
    if failed:
        return tuple(failed)
    shown = ", ".join(f"{name} {versions[name]}" for name in _SHOWN if versions.get(name))
    text = f"all {len(wanted)} packages are new enough"
    return (Check("packages", "ok", f"{text}: {shown}" if shown else text),)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_shadowing(folder: Path, search_path: Iterable[str] | None = None) -> tuple[Check, ...]:
    """Whether ``import evaluate`` gives Hugging Face's package, which lm-eval and MLflow import.

    A folder ``evaluate`` with an ``__init__.py``, or a file ``evaluate.py``, takes its place for
    all that Python starts from that folder (``python -m prunescope``), or that has the folder on
    PYTHONPATH.

    Args:
        folder: the working directory.
        search_path: ``sys.path`` by default.
    """
    path = list(sys.path if search_path is None else search_path)
    owners = sorted(set(_owners("evaluate")))
    if not owners:
        return (
            Check(
                "evaluate",
                "problem",
                "Hugging Face's package evaluate is not installed, and lm-eval imports it",
                f"Run: {sys.executable} -m pip install --force-reinstall evaluate",
            ),
        )
    if owners != ["evaluate"]:
        return (_overwritten(owners),)
    expected = Path(str(metadata.distribution("evaluate").locate_file("evaluate"))).resolve()
    found, from_here = _found(path), _found([str(folder), *path])
    if found is None or found.parent != expected:
        return (_shadowed(found, "Every import of it here fails or gives something else"),)
    if from_here is None or from_here.parent != expected:
        consequence = "python -m, python -c and pytest from this folder import it instead"
        return (_shadowed(from_here, consequence, status_is_problem=False),)
    version = metadata.version("evaluate")
    return (Check("evaluate", "ok", f"import evaluate gives Hugging Face's, {version}"),)


def _owners(package: str) -> Iterable[str]:
    """The installed distributions that have a file of the top-level package."""
    return (name.lower() for name in metadata.packages_distributions().get(package, ()))


def _found(path: list[str]) -> Path | None:
    """The file that ``import evaluate`` would run with this search path; None without one."""
    spec = PathFinder.find_spec("evaluate", path)
    return Path(spec.origin).resolve() if spec is not None and spec.origin else None


def _shadowed(found: Path | None, consequence: str, status_is_problem: bool = True) -> Check:
    return Check(
        "evaluate",
        "problem" if status_is_problem else "warning",
        f"{found or 'nothing'} stands in for Hugging Face's package evaluate: {consequence}",
        "Rename that file or folder (or take it off PYTHONPATH); a folder evaluate/ without an "
        "__init__.py does no harm",
    )


def _overwritten(owners: list[str]) -> Check:
    others = ", ".join(name for name in owners if name != "evaluate")
    return Check(
        "evaluate",
        "problem",
        f"{others} has installed files of its own into Hugging Face's package evaluate",
        f"Uninstall {others}, then run: {sys.executable} -m pip install --force-reinstall evaluate",
    )
