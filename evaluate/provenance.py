"""Where and with what an evaluation ran."""

from __future__ import annotations

import getpass
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from prunescope.records import Provenance
from prunescope.redaction import redact_command

__all__ = ["collect_provenance"]

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
        command=redact_command(sys.argv if arguments is None else arguments),
    )


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
