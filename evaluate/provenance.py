"""Where and with what an evaluation ran. Secrets never leave this module."""

from __future__ import annotations

import getpass
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from prunescope.records import Provenance

__all__ = ["collect_provenance", "remove_secrets"]

_PACKAGES = (
    "accelerate",
    "datasets",
    "gguf",
    "lm-eval",
    "mlflow",
    "numpy",
    "peft",
    "prunescope",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)
_SECRET_NAME = re.compile(
    r"token(?!iz)|password|passwd|secret|api[_-]?key|credential", re.IGNORECASE
)
_SECRET_VALUE = re.compile(r"\b(hf_|sk-|ghp_|github_pat_|glpat-|xox[bp]-)[\w\-]{8,}")
_USER_INFO = re.compile(r"(?<=://)[^/@\s]+@")
_REMOVED = "***"


def collect_provenance(arguments: Sequence[str] | None = None) -> Provenance:
    """Packages, hardware, user, git commit and command line (secrets removed) of this process.

    Args:
        arguments: the command line; ``sys.argv`` when None.
    """
    return Provenance(
        packages={name: found for name in _PACKAGES if (found := _version(name)) is not None},
        python=platform.python_version(),
        hardware=_hardware(),
        host=socket.gethostname(),
        user=_user(),
        git_commit=_git_commit(),
        command=remove_secrets(sys.argv if arguments is None else arguments),
    )


def remove_secrets(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """A command line as one string, with whatever looks like a secret replaced by ``***``.

    That is: the value of an option whose name speaks of a token, password, secret or key; tokens
    by their known beginnings (``hf_``, ``sk-``, ...); user and password in an address; and the
    value of any environment variable with such a name.
    """
    environment = os.environ if environment is None else environment
    known = [
        value
        for name, value in environment.items()
        if _SECRET_NAME.search(name) and len(value) >= 6
    ]
    cleaned: list[str] = []
    hide_next = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if hide_next:
            cleaned.append(_REMOVED)
            hide_next = False
        elif equals and _SECRET_NAME.search(name):
            cleaned.append(f"{name}={_REMOVED}")
        else:
            hide_next = argument.startswith("--") and bool(_SECRET_NAME.search(argument))
            cleaned.append(_hide(argument, known))
    return shlex.join(cleaned)


def _hide(text: str, known: Sequence[str]) -> str:
    for value in known:
        text = text.replace(value, _REMOVED)
    return _USER_INFO.sub(f"{_REMOVED}@", _SECRET_VALUE.sub(_REMOVED, text))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"


def _hardware() -> dict[str, str]:
    found = {"platform": platform.platform(), "cpu": _cpu_name(), "cores": str(os.cpu_count())}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        found["memory"] = f"{size / 2**30:.1f} GiB"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        count = torch.cuda.device_count()
        found["gpu"] = ", ".join(torch.cuda.get_device_name(index) for index in range(count))
        found["cuda"] = str(torch.version.cuda)
    return found


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else platform.machine()


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
