"""Real processes that run the command line and start at once.

Importing torch, transformers, lm-eval and MLflow takes ten seconds, an evaluation of a tiny model
one. So one process imports everything and forks a new one for each command: it can be killed as
any other.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from support.cli import Finished

__all__ = ["Command", "Forks", "forks"]

_HEAVY = (
    "lm_eval.api.task",
    "lm_eval.tasks",
    "matplotlib.pyplot",
    "mlflow.store.artifact.http_artifact_repo",
    "mlflow.store.tracking.rest_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.tracking",
    "pandas",
    "prunescope.cli.sending",
    "prunescope.cli.summary",
    "prunescope.cli.workflow",
    "prunescope.compare.analysis",
    "prunescope.compare.report",
    "prunescope.evaluate.runner",
    "prunescope.tracking.store",
    "scipy.stats",
    "transformers.models.llama.modeling_llama",
)


@dataclass
class Command:
    """A command that runs, or has run."""

    pid: int
    folder: Path
    name: str
    started: float = field(default_factory=time.monotonic)
    _done: threading.Event = field(default_factory=threading.Event)
    _code: int = 0
    seconds: float = 0.0

    def kill(self) -> None:
        """``kill -9``; nothing where it has ended."""
        if not self._done.is_set():
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, seconds: float = 120) -> Finished:
        """How it ended: the exit code, negative for a signal, and what it printed."""
        if not self._done.wait(seconds):
            self.kill()
            raise TimeoutError(f"{self.name} ran for {seconds} s:\n{self._read('err')}")
        return Finished(self._code, self._read("out"), self._read("err"))

    def _read(self, stream: str) -> str:
        path = self.folder / f".{self.name}.{stream}"
        return path.read_text(errors="replace") if path.is_file() else ""

    def ended(self, code: int) -> None:
        """Called once, with the exit code."""
        self._code, self.seconds = code, time.monotonic() - self.started
        self._done.set()


class Forks:
    """Starts commands."""

    def __init__(self, mother: subprocess.Popen[str]) -> None:
        self._mother = mother
        self._running: dict[str, Command] = {}
        self._begun: dict[str, threading.Event] = {}
        self._pids: dict[str, int] = {}
        self._count = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def start(
        self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
    ) -> Command:
        """Run ``prunescope`` with ``arguments`` in ``folder``, which holds what it prints."""
        self._count += 1
        name = f"command-{self._count}"
        begun = self._begun[name] = threading.Event()
        wanted = {
            "name": name,
            "arguments": list(arguments),
            "folder": str(folder),
            "environment": dict(environment or {}),
        }
        assert self._mother.stdin is not None
        command = self._running[name] = Command(0, folder, name)
        self._mother.stdin.write(json.dumps(wanted) + "\n")
        self._mother.stdin.flush()
        if not begun.wait(90):
            raise RuntimeError("no process could be started")
        command.pid = self._pids[name]
        return command

    def run(
        self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
    ) -> Finished:
        """Run a command to its end."""
        return self.start(arguments, folder, environment).wait()

    def _listen(self) -> None:
        assert self._mother.stdout is not None
        for line in self._mother.stdout:
            said = json.loads(line)
            if "pid" in said:
                self._pids[said["name"]] = said["pid"]
                self._begun[said["name"]].set()
            else:
                self._running[said["name"]].ended(said["code"])


@contextmanager
def forks() -> Iterator[Forks]:
    """The process that has imported everything; it ends with the context."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    mother = subprocess.Popen(
        [sys.executable, "-m", "support.forks"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        yield Forks(mother)
    finally:
        assert mother.stdin is not None
        mother.stdin.close()
        mother.wait(timeout=30)


# --- the process that forks -----------------------------------------------------------------------


def _serve() -> None:
    import importlib

    import torch

    for name in _HEAVY:
        importlib.import_module(name)
    torch.set_num_threads(1)
    out = sys.stdout
    for line in sys.stdin:
        wanted = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _run(wanted)
        _tell(out, name=wanted["name"], pid=pid)
        threading.Thread(target=_wait, args=(out, wanted["name"], pid), daemon=True).start()


def _tell(out: object, **said: object) -> None:
    print(json.dumps(said), file=out, flush=True)  # type: ignore[call-overload]


def _wait(out: object, name: str, pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    _tell(out, name=name, code=os.waitstatus_to_exitcode(status))


def _run(wanted: dict[str, object]) -> None:
    """In the new process: the command, to its end."""
    from prunescope.cli import app

    folder, name = Path(str(wanted["folder"])), wanted["name"]
    code = 1
    try:
        for number, stream in ((1, "out"), (2, "err")):
            target = os.open(folder / f".{name}.{stream}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(target, number)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        sys.stdout = os.fdopen(1, "w")
        sys.stderr = os.fdopen(2, "w")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(wanted["environment"])  # type: ignore[arg-type, call-overload]
        os.chdir(folder)
        sys.argv = ["prunescope", *wanted["arguments"]]  # type: ignore[misc]
        app()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
