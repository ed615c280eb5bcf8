"""The YAML files that define lm-eval's tasks, read without importing lm-eval.

lm-eval's own index of its 14,000 files takes ten seconds to build; the file of one task is found
in one second by its text.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prunescope.errors import TaskError

__all__ = ["builtin_files", "few_shot_split", "read_task_file", "scored_split", "user_files"]

_DEFINES = re.compile(
    rb"""^(?:task|group):[ \t]*["']?([^\s"'#]+)["']?[ \t]*(?:\#.*)?\r?$""", re.MULTILINE
)
_MAX_INCLUDES = 20


def user_files(names: Iterable[str]) -> dict[str, Path]:
    """The names that are paths of YAML files.

    Raises:
        TaskError: there is no such file.
    """
    found = {}
    for name in names:
        if name.endswith((".yaml", ".yml")):
            path = Path(name).expanduser()
            if not path.is_file():
                raise TaskError(f"expected a task's YAML file at {path}, found nothing")
            found[name] = path.resolve()
    return found


def builtin_files(names: Iterable[str]) -> dict[str, Path]:
    """The files among lm-eval's own that define these tasks and groups, where exactly one does.

    Raises:
        TaskError: lm-eval is not installed.
    """
    wanted = {name.encode(): name for name in names}
    found: dict[str, list[Path]] = {}
    for directory, _, files in os.walk(_builtin_directory()) if wanted else ():
        for file in files:
            if not file.endswith(".yaml"):
                continue
            path = Path(directory, file)
            for match in _DEFINES.finditer(path.read_bytes()):
                name = wanted.get(match.group(1))
                if name is not None:
                    found.setdefault(name, []).append(path)
    return {name: paths[0] for name, paths in found.items() if len(paths) == 1}


def _builtin_directory() -> Path:
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise TaskError("lm-eval is not installed", hint="Run `pip install lm-eval`")
    return Path(spec.submodule_search_locations[0]) / "tasks"


def read_task_file(path: Path, _depth: int = 0) -> dict[str, Any]:
    """A task's settings with those of the files it includes; functions are left as their names.

    Raises:
        TaskError: the file cannot be read or is not YAML of a task.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Takes lm-eval's ``!function`` for text."""

    Loader.add_multi_constructor("!", lambda loader, suffix, node: str(node.value))  # type: ignore[no-untyped-call]
    try:
        settings = yaml.load(path.read_bytes(), Loader=Loader)  # noqa: S506 (it is a SafeLoader)
    except (OSError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise TaskError(f"cannot read the task file {path}: {reason}") from error
    if not isinstance(settings, dict) or _depth > _MAX_INCLUDES:
        raise TaskError(f"{path} does not define a task of lm-eval's")
    merged: dict[str, Any] = {}
    includes = settings.pop("include", [])
    for include in includes if isinstance(includes, list) else [includes]:
        merged |= read_task_file(path.parent / include, _depth + 1)
    return merged | settings


def scored_split(settings: dict[str, Any]) -> str | None:
    """The split whose documents lm-eval scores."""
    return settings.get("test_split") or settings.get("validation_split")


def few_shot_split(settings: dict[str, Any]) -> str | None:
    """The split that lm-eval draws few-shot examples from; None where the task brings its own."""
    own = settings.get("fewshot_config") or {}
    split = own.get("split") or settings.get("fewshot_split")
    if split is None and own.get("samples") is None:
        order = ("training_split", "validation_split", "test_split")
        split = next((settings[key] for key in order if settings.get(key)), None)
    return split
