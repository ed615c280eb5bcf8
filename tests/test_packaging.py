"""The layout: our folder ``evaluate`` must never stand in for Hugging Face's package of that name.

The three layers lie at the top level without an ``__init__.py`` and are reached through links as
``prunescope.evaluate``, ``.tracking`` and ``.compare``; the wheel holds them as real folders.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("evaluate", "tracking", "compare")

# Where an import would look, without the seconds that the import itself takes.
WHERE = "import importlib.util; print(importlib.util.find_spec('evaluate').origin)"

POOL = f"""
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

if __name__ == "__main__":
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(exec, {WHERE!r}).result()
"""


def run(*arguments: str, cwd: Path = ROOT, **settings: str) -> str:
    """What a Python process prints; it must succeed."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **settings}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def is_hugging_faces(path: str) -> bool:
    return Path(path).parts[-3:] == ("site-packages", "evaluate", "__init__.py")


def tracked(folder: Path) -> set[str]:
    """The files that the package is made of, below ``folder``."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


# --- in the repository --------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_is_no_regular_package_at_the_top_level(layer: str) -> None:
    assert (ROOT / layer).is_dir()
    assert not (ROOT / layer / "__init__.py").exists()


@pytest.mark.parametrize("layer", LAYERS)
def test_the_link_to_a_layer_is_relative_and_resolves(layer: str) -> None:
    link = ROOT / "src" / "prunescope" / layer
    assert link.is_symlink()
    assert str(link.readlink()) == f"../../{layer}"
    assert link.resolve() == ROOT / layer


def test_code_at_the_root_finds_hugging_faces_evaluate() -> None:
    assert is_hugging_faces(run("-c", "import evaluate; print(evaluate.__file__)"))


def test_a_module_run_at_the_root_finds_hugging_faces_evaluate() -> None:
    # `python -m` puts the working folder first on sys.path.
    found = run("-m", "timeit", "-n1", "-r1", f"{WHERE}").splitlines()[0]
    assert is_hugging_faces(found)


@pytest.mark.parametrize("style", ["python -m pytest", "pytest"])
def test_a_test_at_the_root_finds_hugging_faces_evaluate(style: str, tmp_path: Path) -> None:
    test = tmp_path / "test_where.py"
    test.write_text(f"def test_where(capsys):\n    with capsys.disabled():\n        {WHERE}\n")
    options = ["-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), str(test)]
    if style == "pytest":
        program = "import sys; sys.path.pop(0); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
        printed = run("-c", program, *options)
    else:
        printed = run("-m", "pytest", *options)
    assert any(is_hugging_faces(line.strip()) for line in printed.splitlines()), printed


def test_a_spawned_worker_finds_hugging_faces_evaluate(tmp_path: Path) -> None:
    program = tmp_path / "pool.py"
    program.write_text(POOL)
    assert is_hugging_faces(run(str(program), PYTHONPATH=str(ROOT)))


def test_a_layers_module_is_one_module_under_one_name() -> None:
    program = (
        "import prunescope.evaluate.progress as ours, sys;"
        "print(ours.__name__, [name for name in sys.modules if name.startswith('evaluate')])"
    )
    assert run("-c", program) == "prunescope.evaluate.progress []"


# --- what is built ------------------------------------------------------------------------------


def build(target: str, out: Path, source: Path = ROOT) -> Path:
    """Build a wheel or sdist of ``source`` without a network."""
    run("-m", "hatchling", "build", "-t", target, "-d", str(out), cwd=source)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", tmp_path_factory.mktemp("sdist"))


def wheel_names(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_the_layers_inside_the_package_alone(wheel: Path) -> None:
    names = wheel_names(wheel)
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"prunescope"}
    for layer in LAYERS:
        expected = {f"prunescope/{layer}/{name}" for name in tracked(ROOT / layer)}
        assert expected <= names
    own = {name for name in tracked(ROOT / "src" / "prunescope") if not name.startswith(LAYERS)}
    assert {f"prunescope/{name}" for name in own} <= names


def test_the_wheel_carries_the_type_marker_the_templates_and_the_licence(wheel: Path) -> None:
    names = wheel_names(wheel)
    assert "prunescope/py.typed" in names
    assert any(name.startswith("prunescope/compare/templates/") for name in names)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_wheel_installed_elsewhere_imports_and_leaves_evaluate_alone(
    wheel: Path, tmp_path: Path
) -> None:
    target = tmp_path / "installed"
    pip = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    run(*pip, "--target", str(target), str(wheel), cwd=tmp_path)
    assert not (target / "evaluate").exists()
    program = f"import prunescope.evaluate.progress as ours; print(ours.__file__); {WHERE}"
    ours, theirs = run("-c", program, cwd=tmp_path, PYTHONPATH=str(target)).splitlines()
    assert ours == str(target / "prunescope" / "evaluate" / "progress.py")
    assert is_hugging_faces(theirs)


def test_the_sdist_builds_the_same_wheel(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    assert not (source / "src" / "prunescope" / "evaluate").exists()
    rebuilt = build("wheel", tmp_path / "wheel", source)
    assert wheel_names(rebuilt) == wheel_names(wheel)


def test_the_sdist_holds_what_its_readers_need(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml", "constraints.txt"} <= names
    assert "tests/conftest.py" in names
