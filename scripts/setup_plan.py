"""Which torch `make setup` uses, and what becomes of `.venv`: all decided before a file is touched.

Nothing but the standard library is needed, and nothing is changed here. Run as a script, it prints
what the interpreter is that runs it, and the torch that it sees, as JSON.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.machinery import PathFinder
from importlib.metadata import Distribution, distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

LINKS = "linked-torch"
"""The folder in `.venv` through which a torch that lies elsewhere is seen."""

Action = Literal["create", "recreate", "update"]
Source = Literal["active", "own", "pin"]


@dataclass(frozen=True)
class Torch:
    """A torch that is installed somewhere."""

    version: str
    location: str
    """The folder that the package lies in."""
    requires: dict[str, str] = field(default_factory=dict)
    """Each distribution that it names: specifier."""
    installed: dict[str, str] = field(default_factory=dict)
    """Each distribution that it needs, directly or not, and that lies beside it: version."""
    entries: dict[str, dict[str, str]] = field(default_factory=dict)
    """Each of these distributions, torch first: file or folder name -> path."""


@dataclass(frozen=True)
class Interpreter:
    """A Python and the torch that it sees."""

    prefix: str
    base: str
    """The interpreter that a virtual environment is made with."""
    version: tuple[int, int, int]
    torch: Torch | None


@dataclass(frozen=True)
class Plan:
    """What is to be done."""

    action: Action
    python: str
    source: Source
    torch: str
    """The version that will be in use; of the pin, as constraints.txt has it."""
    why: str
    constraints: tuple[str, ...]
    links: dict[str, str] = field(default_factory=dict)


class SetupError(Exception):
    """Something that the user has to mend."""


# --- what is there ------------------------------------------------------------------------------


def normalize(name: str) -> str:
    """A distribution's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def split_requirement(requirement: str) -> tuple[str, str]:
    """``sympy==1.13.1; marker`` as ``("sympy", "==1.13.1")``."""
    match = re.match(r"\s*([\w.-]+)\s*(?:\[[^\]]*\])?\s*([^;]*)", requirement)
    if match is None:
        raise SetupError(f"cannot read the requirement {requirement!r}")
    return normalize(match[1]), match[2].strip().strip("()")


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version, for comparing: ``2.6.0+cu124`` gives ``(2, 6, 0)``."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _requirements(distribution: Distribution) -> dict[str, str]:
    found = (line for line in distribution.requires or () if "extra ==" not in line)
    return dict(split_requirement(line) for line in found)


def _entries(distribution: Distribution) -> dict[str, str]:
    """Name -> path of everything that a distribution put into its folder on sys.path."""
    location = Path(str(distribution.locate_file("")))
    wanted = {
        normalize(distribution.name),
        f"{normalize(distribution.name)}-{distribution.version}",
    }
    names = {path.parts[0] for path in distribution.files or ()}
    for path in location.iterdir():
        if path.suffix in (".dist-info", ".egg-info") and _info_name(path.stem) in wanted:
            names.add(path.name)
    names -= {"..", "__pycache__", "bin"}
    return _existing({name: location / name for name in sorted(names)})


def _existing(paths: Mapping[str, Path]) -> dict[str, str]:
    return {name: str(path) for name, path in paths.items() if path.exists()}


def _info_name(stem: str) -> str:
    name, _, rest = stem.partition("-")
    return f"{normalize(name)}-{rest.partition('-py')[0]}" if rest else normalize(name)


def find_torch(path: Sequence[str] | None = None) -> Torch | None:
    """The torch that an import finds, with the distributions it needs; None without one.

    Args:
        path: folders to look in; sys.path when None.
    """
    known: dict[str, Distribution] = {}
    for distribution in distributions(path=list(sys.path if path is None else path)):
        name = distribution.metadata["Name"]
        if name:
            known.setdefault(normalize(name), distribution)
    if "torch" not in known:
        return None
    torch = known["torch"]
    package = _package_folder(path)
    if package is None:
        return None
    beside = {name: package.parent / name for name in ("torch", "torchgen", "functorch")}
    entries = {"torch": _entries(torch) | _existing(beside)}
    installed: dict[str, str] = {}
    requires = _requirements(torch)
    queue = list(requires)
    while queue:
        name = queue.pop()
        if name in known and name not in installed:
            installed[name] = known[name].version
            entries[name] = _entries(known[name])
            queue.extend(_requirements(known[name]))
    return Torch(torch.version, str(package.parent), requires, installed, entries)


def _package_folder(path: Sequence[str] | None) -> Path | None:
    # A torch built from source may lie elsewhere than its dist-info.
    spec = find_spec("torch") if path is None else PathFinder.find_spec("torch", path)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def this_interpreter() -> Interpreter:
    """What is running, and the torch it sees."""
    base = getattr(sys, "_base_executable", None) or sys.executable
    return Interpreter(sys.prefix, base, sys.version_info[:3], find_torch())


def ask_interpreter(python: Path) -> Interpreter | None:
    """What ``python`` is, and the torch it sees; None where it does not run."""
    command = [str(python), str(Path(__file__).resolve())]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        raw = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    torch = Torch(**raw["torch"]) if raw["torch"] else None
    return Interpreter(raw["prefix"], raw["base"], tuple(raw["version"]), torch)


# --- what to do ---------------------------------------------------------------------------------


def minimum_torch(pyproject: Mapping[str, Any]) -> str:
    """The lowest torch that pyproject.toml admits."""
    for requirement in pyproject["project"]["dependencies"]:
        name, specifier = split_requirement(requirement)
        if name == "torch":
            return specifier.removeprefix(">=")
    raise SetupError("pyproject.toml names no torch")


def read_pins(text: str) -> dict[str, str]:
    """The lines of constraints.txt: name -> version."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    pairs = (split_requirement(line) for line in lines if line)
    return {name: specifier.removeprefix("==") for name, specifier in pairs}


def pins_beside(torch: Torch, pins: Mapping[str, str]) -> dict[str, str]:
    """``pins`` as they must be for ``torch`` to stay as it is.

    torch and the distributions that only it brings (nvidia-*, triton) are held at what is
    installed; a pin that torch itself excludes gives way to the version that lies beside it, or
    is dropped where none does.
    """
    changed = dict(pins)
    for name, specifier in torch.requires.items():
        if name in pins and _excludes(specifier, pins[name]):
            changed.pop(name)
            if name in torch.installed:
                changed[name] = torch.installed[name]
    for name, version in torch.installed.items():
        if name not in pins:
            changed[name] = version
    changed["torch"] = torch.version
    return changed


def _excludes(specifier: str, pin: str) -> bool:
    """Whether a specifier may exclude the pin: judged from ``>=`` and ``==``, else assumed."""
    for clause in filter(None, (part.strip() for part in specifier.split(","))):
        version = clause.lstrip("<>=!~ ")
        operator = clause[: -len(version)].strip()
        admitted = {">=": release(pin) >= release(version), "==": pin == version}
        if not admitted.get(operator, False):
            return True
    return False


def links_for(torch: Torch, pins: Mapping[str, str]) -> dict[str, str]:
    """What `.venv` borrows: torch and the distributions that only it brings."""
    links: dict[str, str] = {}
    for name, entries in torch.entries.items():
        if name == "torch" or name not in pins:
            links |= entries
    return links


def make_plan(
    venv: Path,
    active: Interpreter,
    existing: Interpreter | None,
    record: Mapping[str, Any],
    pins: Mapping[str, str],
    minimum: str,
) -> Plan:
    """Decide which torch is used and what becomes of `.venv`.

    Args:
        venv: where the environment is, or will be.
        active: the interpreter that the user has active; it may be the one of ``venv``.
        existing: the interpreter of ``venv``, where it runs.
        record: what the last setup wrote.
        pins: constraints.txt.
        minimum: the lowest torch that will do.
    """
    if existing is not None and existing.version < (3, 11):
        existing = None
    action: Action = "update"
    if existing is None:
        action = "recreate" if venv.exists() else "create"
    torch, source, why = _choose_torch(venv, active, existing, record, minimum)
    if torch is None:
        return Plan(action, active.base, source, pins["torch"], why, _lines(pins))
    if source == "active" and existing is not None:
        replaces = existing.torch is not None and not _is_linked(venv, existing.torch)
        other_python = not _is_same(venv, active.prefix) and (
            existing.version[:2] != active.version[:2]
        )
        if replaces or (other_python and torch is active.torch):
            action = "recreate"
    links = links_for(torch, pins) if source == "active" else {}
    lines = _lines(pins_beside(torch, pins))
    return Plan(action, active.base, source, torch.version, why, lines, links)


def _choose_torch(
    venv: Path,
    active: Interpreter,
    existing: Interpreter | None,
    record: Mapping[str, Any],
    minimum: str,
) -> tuple[Torch | None, Source, str]:
    def is_usable(torch: Torch | None) -> bool:
        return torch is not None and release(torch.version) >= release(minimum)

    inside = existing.torch if existing is not None else None
    outside = None if _is_same(venv, active.prefix) else active.torch
    if inside is not None and not _is_linked(venv, inside):
        pinned = record.get("source") == "pin" and _is_version(inside, record.get("torch"))
        if is_usable(inside) and not pinned:
            return inside, "own", f"torch {inside.version}, installed in {venv.name}, is kept"
    if outside is None and record.get("source") == "active":
        outside = find_torch(record.get("paths"))
    if outside is None:
        return None, "pin", "no torch in the active environment: the pinned one is used"
    found = f"torch {outside.version} of {outside.location}"
    if not is_usable(outside):
        return (
            None,
            "pin",
            f"{found} is older than {minimum}: the pinned one is used in {venv.name}",
        )
    return outside, "active", f"{found} is kept and used"


def _is_same(venv: Path, prefix: str) -> bool:
    return Path(prefix).resolve() == venv.resolve()


def _is_version(torch: Torch, version: object) -> bool:
    return isinstance(version, str) and release(torch.version) == release(version)


def _is_linked(venv: Path, torch: Torch) -> bool:
    return Path(torch.location).resolve() == (venv / LINKS).resolve()


def _lines(pins: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"{name}=={version}" for name, version in sorted(pins.items()))


if __name__ == "__main__":
    print(json.dumps(asdict(this_interpreter())))
