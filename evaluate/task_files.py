"""The YAML files that define lm-eval's tasks, read without importing lm-eval.

lm-eval's own index of its 14,000 files takes ten seconds to build; the file of one task is found
in one second by its text.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from prunescope.errors import DataError, TaskError

__all__ = [
    "builtin_files",
    "few_shot_split",
    "open_file",
    "read_task_file",
    "scored_split",
    "task_files",
    "user_files",
    "wrapper_text",
]

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

    Loader.add_multi_constructor("!", _as_text)
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


def _as_text(_loader: Any, _suffix: str, node: Any) -> str:
    return str(node.value)


def scored_split(settings: Mapping[str, Any]) -> str | None:
    """The split whose documents lm-eval scores."""
    return settings.get("test_split") or settings.get("validation_split")


def few_shot_split(settings: Mapping[str, Any]) -> str | None:
    """The split that lm-eval draws few-shot examples from; None where the task brings its own."""
    own = settings.get("fewshot_config") or {}
    split = own.get("split") or settings.get("fewshot_split")
    if split is None and own.get("samples") is None:
        order = ("training_split", "validation_split", "test_split")
        split = next((settings[key] for key in order if settings.get(key)), None)
    return split


# --- opening groups and tags --------------------------------------------------------------------


def task_files(
    names: Iterable[str], files: Mapping[str, Path], index: Mapping[str, Any]
) -> dict[str, Path]:
    """Every single task behind the names, groups and tags opened, and its YAML file.

    Args:
        names: what was asked for.
        files: the names whose file is known.
        index: lm-eval's index of the others, ``TaskManager.task_index``.

    Raises:
        DataError: a task that a group defines inline, which has no file.
    """
    found: dict[str, Path] = {}
    for name in names:
        found |= open_file(files[name], index) if name in files else _open_name(name, index)
    return found


def open_file(path: Path, index: Mapping[str, Any]) -> dict[str, Path]:
    """The task that a YAML file defines, or those of its group, and their files."""
    settings = read_task_file(path)
    if "group" in settings:
        return _open_group(settings, index)
    return {str(settings.get("task") or path.stem): path}


def _open_name(name: str, index: Mapping[str, Any]) -> dict[str, Path]:
    entry = index.get(name)
    if entry is None:
        raise DataError(
            f"task {name} is defined inside its group, so its rows cannot come from a folder",
            hint="Leave it out, or run without --data-dir",
        )
    if entry.yaml_path is not None:
        return open_file(entry.yaml_path, index)
    found: dict[str, Path] = {}
    for member in sorted(entry.tags):
        found |= _open_name(member, index)
    return found


def _open_group(settings: Mapping[str, Any], index: Mapping[str, Any]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for member in settings.get("task") or []:
        if isinstance(member, dict) and isinstance(member.get("task"), list):
            found |= _open_group(member, index)
        elif isinstance(member, dict):
            found |= _open_name(str(member.get("group") or member.get("task")), index)
        else:
            found |= _open_name(str(member), index)
    return found


# --- rows from elsewhere ------------------------------------------------------------------------


def wrapper_text(
    task: str, path: Path, *, folder: Path, splits: Collection[str], examples: bool
) -> str:
    """A YAML file that is a task's own but for where its rows come from.

    Args:
        task: lm-eval's name.
        path: the task's own file, which is included.
        folder: the data folder.
        splits: what the folder has of the task. Others are unset: lm-eval would look for them.
        examples: whether few-shot examples may be drawn. Without, no split is read for them.
    """
    settings = read_task_file(path)
    own = settings.get("fewshot_config") or {}
    scored = scored_split(settings)
    kept = set(splits) if examples else {scored}
    changes: dict[str, Any] = {
        key: None
        for key in ("training_split", "validation_split", "test_split", "fewshot_split")
        if settings.get(key) and settings[key] not in kept
    }
    if not examples:
        changes |= {"fewshot_split": None, "fewshot_config": {"samples": []}}
    elif own.get("split") and own["split"] not in kept:
        changes["fewshot_config"] = {key: own[key] for key in own if key != "split"}
    changes["dataset_kwargs"] = {
        "prunescope_folder": str(folder.resolve()),
        "prunescope_task": task,
        "prunescope_splits": sorted(kept),
    }
    lines = {"include": str(path), "task": task, **changes}
    text = "".join(f"{key}: {json.dumps(lines[key], ensure_ascii=False)}\n" for key in lines)
    return text + "custom_dataset: !function prunescope.evaluate.data.folder.task_dataset\n"
