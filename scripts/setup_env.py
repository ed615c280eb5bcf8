"""Create or update `.venv`: the project in editable form, its dependencies, the tools of `make`.

Run by `make setup`, with the standard library alone. A torch that the user installed stays the
one in use, whatever its build (CUDA, ROCm, a nightly): one in the active environment is linked
into `.venv`, one that was put into `.venv` by hand is left there, and in both cases pip is held to
that exact version. Without either, torch comes from the pin in constraints.txt.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any, TextIO

from setup_plan import (
    LINKS,
    Plan,
    SetupError,
    ask_interpreter,
    make_plan,
    minimum_torch,
    read_pins,
    release,
    this_interpreter,
)

PROJECT = Path(__file__).resolve().parent.parent
RECORD = "setup.json"
STAMP = ".stamp"


def site_packages(venv: Path) -> Path:
    """The folder that pip installs into."""
    found = sorted((venv / "lib").glob("python3.*/site-packages"))
    if len(found) != 1:
        raise SetupError(f"expected one site-packages in {venv}/lib, found {len(found)}")
    return found[0]


def create(venv: Path, python: str) -> None:
    """Make an empty environment, in place of one that is there."""
    command = [python, "-m", "venv", "--clear", str(venv)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        raise SetupError(
            f"{python} -m venv failed: {said[-1] if said else done.returncode}. "
            "On Debian and Ubuntu: apt install python3-venv"
        )


def link(venv: Path, links: Mapping[str, str]) -> None:
    """Let `.venv` see the paths in ``links`` and no others of where they lie."""
    folder = venv / LINKS
    path_file = site_packages(venv) / f"{LINKS}.pth"
    if folder.exists():
        shutil.rmtree(folder)
    path_file.unlink(missing_ok=True)
    if not links:
        return
    folder.mkdir()
    for name, target in links.items():
        (folder / name).symlink_to(target)
    path_file.write_text(f"{folder}\n", encoding="utf-8")


def install(venv: Path, project: Path, requirements: Iterable[str]) -> None:
    """Have pip install the project in editable form and ``requirements``."""
    python = str(venv / "bin" / "python")
    command = [python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar", "off", "--prefer-binary", "--no-compile"]
    command += ["-c", str(venv / "constraints.txt"), "-e", str(project), *requirements]
    environment = {**os.environ, "PIP_USER": "0", "PYTHONUNBUFFERED": "1"}
    log = venv / "setup.log"
    with log.open("w", encoding="utf-8") as kept:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
        )
        assert process.stdout is not None
        follow(process.stdout, kept)
        code = process.wait()
    if code:
        said = "\n  ".join(reasons(log.read_text(encoding="utf-8").splitlines()))
        ending = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
        raise SetupError(f"pip failed ({ending}):\n  {said}\nThe whole log: {log}")


def reasons(lines: Sequence[str]) -> list[str]:
    """The lines of pip's that say why it failed, at most eight; its last ones where none does."""
    error = r"\s*(ERROR: (?!ResolutionImpossible)|\w*Error\b.*:)"
    conflict = r"\s*(.* depends on |The user requested )"
    found = [line.strip() for line in lines if re.match(f"{error}|{conflict}", line)]
    return (found or [line.strip() for line in lines])[-8:]


def describe(line: str) -> tuple[str, bool] | None:
    """What a line of pip's says to a person, and whether it is worth a line of its own."""
    text = line.strip()
    if match := re.match(r"Downloading (\S+) \((\d+(?:\.\d+)?) ?([kMG])B\)", text):
        name = match[1].rsplit("/", 1)[-1]
        big = match[3] == "G" or (match[3] == "M" and float(match[2]) >= 10)
        return f"downloading {name} ({match[2]} {match[3]}B)", big
    if match := re.match(r"(?:Collecting|Processing|Obtaining) (\S+)", text):
        return f"looking at {match[1].rsplit('/', 1)[-1]}", False
    if match := re.match(r"Building wheels? for collected packages: (.*)", text):
        return f"building {match[1]}", True
    if text.startswith("Installing collected packages:"):
        count = text.count(",") + 1
        return f"installing {count} packages", True
    return None


def follow(lines: Iterable[str], log: TextIO, screen: TextIO | None = None) -> None:
    """Keep pip's output in ``log`` and show what it is at, on a terminal in one changing line."""
    out = screen or sys.stderr
    queue: Queue[str | None] = Queue()

    def read() -> None:
        for line in lines:
            queue.put(line)
        queue.put(None)

    Thread(target=read, daemon=True).start()
    started = time.monotonic()
    status = "starting pip"
    terminal = out.isatty()
    for line in _with_ticks(queue):
        if line:
            log.write(line)
            if said := describe(line):
                status = said[0]
                if said[1] and not terminal:
                    print(f"  {status}", file=out, flush=True)
        if terminal:
            elapsed = int(time.monotonic() - started)
            width = shutil.get_terminal_size().columns - 12
            print(
                f"\r\033[K  {elapsed // 60}:{elapsed % 60:02d}  {status[:width]}",
                end="",
                file=out,
                flush=True,
            )
    if terminal:
        print("\r\033[K", end="", file=out, flush=True)


def _with_ticks(queue: Queue[str | None]) -> Iterator[str]:
    """The lines of ``queue``, and an empty one for each second without any."""
    while True:
        try:
            line = queue.get(timeout=1)
        except Empty:
            yield ""
            continue
        if line is None:
            return
        yield line


def check_torch(venv: Path, plan: Plan) -> str:
    """Import torch in `.venv` and return its version.

    Raises:
        SetupError: it cannot be imported, or is not the one that was to be kept.
    """
    command = [str(venv / "bin" / "python"), "-c", "import torch; print(torch.__version__)"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    version = done.stdout.strip()
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise SetupError(f"torch {plan.torch} cannot be imported: {said[-1] if said else '?'}")
    if plan.source != "pin" and release(version) != release(plan.torch):
        raise SetupError(f"expected torch {plan.torch} in {venv}, found {version}")
    return version


def carry_out(plan: Plan, venv: Path, project: Path, requirements: Sequence[str]) -> None:
    """Do what ``plan`` says and leave the stamp that `make` looks at."""
    (venv / STAMP).unlink(missing_ok=True)
    if plan.action != "update":
        create(venv, plan.python)
    link(venv, plan.links)
    paths = sorted({str(Path(target).parent) for target in plan.links.values()})
    record = {"source": plan.source, "torch": plan.torch, "paths": paths}
    (venv / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text = "\n".join(plan.constraints) + "\n"
    (venv / "constraints.txt").write_text(text, encoding="utf-8")
    install(venv, project, requirements)


def main() -> int:
    """Set up, or with ``--plan`` say what would be done."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--venv", type=Path, default=PROJECT / ".venv")
    parser.add_argument("--project", type=Path, default=PROJECT)
    parser.add_argument("--plan", action="store_true", help="print the plan as JSON and stop")
    options = parser.parse_args()
    try:
        return set_up(options.venv.absolute(), options.project.absolute(), options.plan)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 2


def set_up(venv: Path, project: Path, only_plan: bool) -> int:
    """Plan, and unless ``only_plan`` carry it out."""
    pyproject = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    pins = read_pins((project / "constraints.txt").read_text(encoding="utf-8"))
    record: Mapping[str, Any] = {}
    if (venv / RECORD).is_file():
        record = json.loads((venv / RECORD).read_text(encoding="utf-8"))
    active = this_interpreter()
    existing = ask_interpreter(venv / "bin" / "python")
    plan = make_plan(venv, active, existing, record, pins, minimum_torch(pyproject))
    if only_plan:
        print(json.dumps(asdict(plan), indent=1))
        return 0
    started = time.monotonic()
    used = existing if existing is not None and plan.action == "update" else active
    version = ".".join(map(str, used.version))
    print(f"setup: {plan.action} {venv.name} with Python {version}; {plan.why}", file=sys.stderr)
    groups = pyproject.get("dependency-groups", {})
    carry_out(plan, venv, project, [*groups.get("dev", []), *groups.get("docs", [])])
    torch = check_torch(venv, plan)
    (venv / STAMP).write_text(f"{venv}\n", encoding="utf-8")
    seconds = time.monotonic() - started
    print(f"setup: done in {seconds:.0f} s, torch {torch}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
