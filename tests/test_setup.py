"""`make setup`: which Python and which torch are used, and that the user's torch is not touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import setup_env
import setup_plan
from packaging.requirements import Requirement
from support.stubs import build_wheel, distribution_files, install_stub

ROOT = Path(__file__).resolve().parent.parent
SETUP = ROOT / "scripts" / "setup_env.py"
FIND_PYTHON = ROOT / "scripts" / "find_python"

CUDA_TORCH = distribution_files(
    "torch",
    "2.6.0+cu124",
    ["sympy==1.13.1", "filelock", 'nvidia-cublas-cu12==12.4.5.8; platform_system == "Linux"'],
)
CUBLAS = distribution_files(
    "nvidia-cublas-cu12", "12.4.5.8", modules={"nvidia/cublas/__init__.py": "LOADED = True\n"}
)
SYMPY = distribution_files("sympy", "1.13.1")
FILELOCK = distribution_files("filelock", "3.0.0")
STRANGER = distribution_files("numpy", "1.0.0")

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "small"
version = "1.0"
dependencies = ["torch>=2.6", "wants-torch"]

[dependency-groups]
dev = ["tool"]
"""

BACKEND = """
from pathlib import Path
from zipfile import ZipFile

METADATA = "Metadata-Version: 2.1\\nName: small\\nVersion: 1.0\\n" \\
    "Requires-Dist: torch>=2.6\\nRequires-Dist: wants-torch\\n"
WHEEL = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
INFO = "small-1.0.dist-info"
NAMES = ["small.pth", f"{INFO}/METADATA", f"{INFO}/WHEEL", f"{INFO}/RECORD"]


def build_editable(directory, config_settings=None, metadata_directory=None):
    name = "small-1.0-py3-none-any.whl"
    with ZipFile(Path(directory) / name, "w") as wheel:
        wheel.writestr("small.pth", str(Path(__file__).parent))
        wheel.writestr(f"{INFO}/METADATA", METADATA)
        wheel.writestr(f"{INFO}/WHEEL", WHEEL)
        wheel.writestr(f"{INFO}/RECORD", "".join(f"{name},,\\n" for name in NAMES))
    return name
"""

CONSTRAINTS = """# a comment
filelock==4.2.0
sympy==1.14.0
tool==1.0
torch==2.13.0
wants-torch==1.0
"""


@dataclass(frozen=True)
class Sandbox:
    """A small project, a folder of wheels in place of an index, and an active environment."""

    project: Path
    wheels: Path
    active: Path

    @property
    def venv(self) -> Path:
        return self.project / ".venv"

    def site(self, environment: Path) -> Path:
        return setup_env.site_packages(environment)

    def run(self, *arguments: str, python: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run the setup script with the active environment's Python, or with ``python``."""
        command = [str(python or self.active / "bin" / "python"), str(SETUP)]
        command += ["--venv", str(self.venv), "--project", str(self.project), *arguments]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
        environment |= {
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
            "PIP_CONFIG_FILE": os.devnull,
        }
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=300
        )

    def plan(self, **options: Any) -> dict[str, Any]:
        done = self.run("--plan", **options)
        assert done.returncode == 0, done.stderr
        plan: dict[str, Any] = json.loads(done.stdout)
        return plan

    def python(self, code: str) -> str:
        """What ``code`` prints in the environment that was set up."""
        command = [str(self.venv / "bin" / "python"), "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    project = tmp_path / "a project"
    project.mkdir()
    (project / "pyproject.toml").write_text(PYPROJECT)
    (project / "backend.py").write_text(BACKEND)
    (project / "constraints.txt").write_text(CONSTRAINTS)
    wheels = tmp_path / "wheels"
    for name, version, requires in (
        ("torch", "2.13.0+cpu", ["sympy>=1.13.3", "filelock"]),
        ("torch", "2.14.0", ["sympy>=1.13.3"]),
        ("sympy", "1.13.1", []),
        ("sympy", "1.14.0", []),
        ("filelock", "4.2.0", []),
        ("wants-torch", "1.0", ["torch>=2.0", "filelock"]),
        ("tool", "1.0", []),
    ):
        modules = {f"{name.replace('-', '_')}/__init__.py": f"__version__ = {version!r}\n"}
        files = distribution_files(name, version, requires, modules)
        build_wheel(wheels, name, version, files)
    active = tmp_path / "active"
    venv.create(active, with_pip=False, symlinks=True)
    return Sandbox(project, wheels, active)


def install_cuda_torch(sandbox: Sandbox) -> Path:
    site = sandbox.site(sandbox.active)
    for files in (CUDA_TORCH, CUBLAS, SYMPY, FILELOCK, STRANGER):
        install_stub(site, files)
    return site


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# --- the plan -----------------------------------------------------------------------------------


def test_without_any_torch_the_pins_are_used_as_they_are(sandbox: Sandbox) -> None:
    plan = sandbox.plan()
    assert (plan["action"], plan["source"], plan["torch"]) == ("create", "pin", "2.13.0")
    assert plan["links"] == {}
    assert set(plan["constraints"]) == set(CONSTRAINTS.splitlines()[1:])


def test_a_torch_of_the_active_environment_is_linked_and_held(sandbox: Sandbox) -> None:
    site = install_cuda_torch(sandbox)
    plan = sandbox.plan()
    assert (plan["source"], plan["torch"]) == ("active", "2.6.0+cu124")
    assert plan["links"] == {
        name: str(site / name)
        for name in (
            "torch",
            "torch-2.6.0+cu124.dist-info",
            "nvidia",
            "nvidia_cublas_cu12-12.4.5.8.dist-info",
        )
    }
    assert set(plan["constraints"]) == {
        "torch==2.6.0+cu124",
        "nvidia-cublas-cu12==12.4.5.8",
        "sympy==1.13.1",  # torch 2.6 excludes the pin
        "filelock==4.2.0",
        "tool==1.0",
        "wants-torch==1.0",
    }


def test_a_torch_that_is_too_old_is_left_alone_and_the_reason_is_told(sandbox: Sandbox) -> None:
    install_stub(sandbox.site(sandbox.active), distribution_files("torch", "2.5.1+cu121"))
    plan = sandbox.plan()
    assert (plan["source"], plan["links"]) == ("pin", {})
    assert "2.5.1+cu121" in plan["why"]
    assert "older than 2.6" in plan["why"]


def test_planning_touches_nothing(sandbox: Sandbox) -> None:
    install_cuda_torch(sandbox)
    before = contents(sandbox.project) | contents(sandbox.active)
    sandbox.plan()
    assert contents(sandbox.project) | contents(sandbox.active) == before


@pytest.mark.parametrize(
    ("specifier", "pin", "excluded"),
    [
        ("", "1.0", False),
        (">=1.13.3", "1.14.0", False),
        (">=1.13.3", "1.13.1", True),
        ("==1.13.1", "1.14.0", True),
        ("==1.14.0", "1.14.0", False),
        (">=1.0,<2", "1.5", True),  # an upper bound is never judged: the installed version wins
    ],
)
def test_a_pin_gives_way_where_torch_excludes_it(specifier: str, pin: str, excluded: bool) -> None:
    torch = setup_plan.Torch("2.6.0", "/x", {"lib": specifier}, {"lib": "9.9"})
    pins = setup_plan.pins_beside(torch, {"lib": pin, "torch": "2.13.0"})
    assert pins == {"lib": "9.9" if excluded else pin, "torch": "2.6.0"}


def test_every_dependency_of_the_project_is_pinned_and_theirs_too() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pins = setup_plan.read_pins((ROOT / "constraints.txt").read_text())
    queue = [*pyproject["project"]["dependencies"], *pyproject["dependency-groups"]["dev"]]
    seen: set[str] = set()
    while queue:
        requirement = Requirement(queue.pop())
        name = setup_plan.normalize(requirement.name)
        extras = requirement.extras or {""}
        if name in seen or not applies(requirement):
            continue
        seen.add(name)
        if name != "torch":  # a torch of the user's may bring others
            inner = (Requirement(line) for line in metadata.requires(name) or ())
            queue += [str(each) for each in inner if applies(each, extras)]
    assert sorted(seen - set(pins)) == []
    assert len(seen) > 100
    assert pins["torch"] == "2.13.0"
    assert all(version and version[0].isdigit() for version in pins.values())


def applies(requirement: Requirement, extras: Iterable[str] = ("",)) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)


# --- carrying it out, with real pip -------------------------------------------------------------


def test_setup_uses_the_users_torch_and_changes_nothing_of_it(sandbox: Sandbox) -> None:
    site = install_cuda_torch(sandbox)
    before = contents(site)
    done = sandbox.run()
    assert done.returncode == 0, done.stderr
    assert "torch 2.6.0+cu124" in done.stderr
    seen = sandbox.python(
        "import torch, nvidia.cublas, sympy, filelock, wants_torch, backend, tool;"
        "print(torch.__version__, sympy.__version__, filelock.__version__, torch.__file__)"
    )
    *versions, file = seen.split(maxsplit=3)
    assert versions == ["2.6.0+cu124", "1.13.1", "4.2.0"]
    assert Path(file).resolve() == site / "torch" / "__init__.py"
    assert not (sandbox.site(sandbox.venv) / "torch").exists()
    assert sandbox.python("import importlib.util as u; print(u.find_spec('numpy'))") == "None"
    assert (sandbox.venv / ".stamp").read_text() == f"{sandbox.venv}\n"

    pip = [str(sandbox.venv / "bin" / "python"), "-m", "pip", "uninstall", "-y", "torch"]
    subprocess.run(pip, capture_output=True, check=False)
    assert contents(site) == before


def test_without_any_torch_the_pinned_one_is_installed(sandbox: Sandbox) -> None:
    done = sandbox.run()
    assert done.returncode == 0, done.stderr
    assert sandbox.python("import torch; print(torch.__version__)") == "2.13.0+cpu"

    second = sandbox.plan()
    assert (second["action"], second["source"]) == ("update", "pin")
    from_inside = sandbox.plan(python=sandbox.venv / "bin" / "python")
    assert (from_inside["action"], from_inside["source"]) == ("update", "pin")

    # The user puts another build into .venv by hand: it stays.
    site = sandbox.site(sandbox.venv)
    for path in site.glob("torch-*.dist-info/*"):
        path.unlink()
    for path in site.glob("torch-*.dist-info"):
        path.rmdir()
    install_stub(site, distribution_files("torch", "2.9.1+rocm6.4", ["sympy>=1.13.3"]))
    assert sandbox.plan()["source"] == "own"
    again = sandbox.run()
    assert again.returncode == 0, again.stderr
    assert sandbox.python("import torch; print(torch.__version__)") == "2.9.1+rocm6.4"


def test_a_torch_that_appears_in_the_active_environment_replaces_the_pinned_one(
    sandbox: Sandbox,
) -> None:
    assert sandbox.run().returncode == 0
    install_cuda_torch(sandbox)
    assert sandbox.plan()["action"] == "recreate"
    done = sandbox.run()
    assert done.returncode == 0, done.stderr
    assert sandbox.python("import torch; print(torch.__version__)") == "2.6.0+cu124"

    # A later setup, from an environment without torch or from .venv itself, keeps it.
    for python in (Path(sys.executable), sandbox.venv / "bin" / "python"):
        base = python.resolve() if python == Path(sys.executable) else python
        plan = sandbox.plan(python=base)
        assert (plan["action"], plan["source"], plan["torch"]) == (
            "update",
            "active",
            "2.6.0+cu124",
        )


def test_a_failed_install_says_why_in_one_place_and_leaves_no_stamp(sandbox: Sandbox) -> None:
    next(sandbox.wheels.glob("wants_torch-*")).unlink()
    done = sandbox.run()
    assert done.returncode == 2
    assert "The user requested (constraint) wants-torch==1.0" in done.stderr
    assert f"The whole log: {sandbox.venv / 'setup.log'}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (sandbox.venv / ".stamp").exists()


# --- what it shows ------------------------------------------------------------------------------

PIP_LINES = """Collecting torch==2.13.0
  Downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (906.4 MB)
  Downloading tiny-1.0-py3-none-any.whl (12 kB)
Installing collected packages: torch, tiny
Successfully installed tiny-1.0 torch-2.13.0
"""


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_pips_output_is_kept_and_only_what_takes_time_is_shown() -> None:
    log, screen = StringIO(), StringIO()
    setup_env.follow(StringIO(PIP_LINES), log, screen)
    assert log.getvalue() == PIP_LINES
    assert screen.getvalue() == (
        "  downloading torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (906.4 MB)\n"
        "  installing 2 packages\n"
    )


def test_a_terminal_gets_one_line_that_is_gone_at_the_end() -> None:
    screen = Terminal()
    setup_env.follow(StringIO(PIP_LINES), StringIO(), screen)
    assert "downloading tiny" in screen.getvalue()
    assert "\n" not in screen.getvalue()
    assert screen.getvalue().endswith("\r\033[K")


# --- which Python -------------------------------------------------------------------------------


def fake_python(folder: Path, name: str, version: str) -> Path:
    """A program that answers like a Python of that version."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    too_old = int(tuple(map(int, version.split("."))) < (3, 11))
    path.write_text(
        f'#!/bin/sh\ncase "$2" in\n  *sys.exit*) exit {too_old} ;;\n  *) echo {version} ;;\nesac\n'
    )
    path.chmod(0o755)
    return path


def find_python(
    path: Path, settings: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command: Sequence[str] = ["/bin/sh", str(FIND_PYTHON)]
    environment = {"PATH": str(path), **(settings or {})}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_active_python_comes_first(tmp_path: Path) -> None:
    expected = fake_python(tmp_path, "python3", "3.11.0")
    fake_python(tmp_path, "python3.13", "3.13.0")
    done = find_python(tmp_path)
    assert (done.stdout.strip(), done.stderr) == (str(expected), "")


def test_a_newer_python_is_found_when_the_active_one_is_too_old(tmp_path: Path) -> None:
    fake_python(tmp_path, "python3", "3.10.13")
    expected = fake_python(tmp_path, "python3.12", "3.12.1")
    done = find_python(tmp_path)
    assert done.stdout.strip() == str(expected)
    assert done.stderr == (
        "Python 3.11 or newer is needed; found python3 (3.10.13); using python3.12.\n"
    )


def test_no_python_new_enough_is_one_clear_line(tmp_path: Path) -> None:
    fake_python(tmp_path, "python3", "3.9.2")
    done = find_python(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("prunescope needs Python 3.11 or newer; found python3 (3.9.2).")
    assert done.stderr.count("\n") == 1


def test_a_named_python_is_taken_or_refused_but_never_replaced(tmp_path: Path) -> None:
    fake_python(tmp_path, "python3", "3.12.0")
    old = fake_python(tmp_path, "old", "3.8.1")
    done = find_python(tmp_path, {"PYTHON": str(old)})
    assert done.returncode == 2
    assert done.stderr == f"prunescope needs Python 3.11 or newer; PYTHON={old}: 3.8.1.\n"
