"""lm-eval's tasks, with their rows from the hub or from a folder.

Templates, versions, metrics and ``process_docs`` are always those of the installed lm-eval. For
rows from a folder each task gets a short YAML file that includes lm-eval's own and replaces
nothing but where the rows come from.
"""

from __future__ import annotations

import difflib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prunescope.errors import DataError, PrunescopeError, TaskError
from prunescope.evaluate.data.folder import Manifest, read_manifest
from prunescope.evaluate.data.hub import datasets_cache, first_line, hub_error, hub_or_cache
from prunescope.evaluate.task_files import (
    builtin_files,
    few_shot_split,
    read_task_file,
    scored_split,
    task_files,
    user_files,
    wrapper_text,
)
from prunescope.records import canonical_hash

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

__all__ = ["LoadedTasks", "TaskSplit", "document_sha256", "load_tasks", "task_splits"]

_LOCAL_BUILDERS = {"arrow", "csv", "json", "parquet", "text"}


@dataclass(frozen=True)
class LoadedTasks:
    """Tasks that are ready to be scored, their documents in memory."""

    leaves: dict[str, Task]
    """Every single task by name, in the order asked for (a group's in lm-eval's order)."""
    groups: dict[str, Group]
    """The groups among what was asked for, and their sub-groups."""
    source: Literal["hub", "folder"]
    group_map: dict[str, list[str]] = field(default_factory=dict)
    """Group -> names of its direct members."""

    @property
    def task_dict(self) -> dict[str, Any]:
        """What ``lm_eval.evaluator.evaluate`` takes as its ``task_dict``."""
        return {"tasks": self.leaves, "groups": self.groups, "group_map": self.group_map}


def document_sha256(contexts: Sequence[str], continuations: Sequence[str], gold: Any) -> str:
    """Hash of what is scored of one document, whatever the row around it looks like.

    Args:
        contexts: one a request, in lm-eval's order.
        continuations: what is scored behind each context.
        gold: index of the right choice, a list of such, or the expected text.

    Returns:
        64 hexadecimal digits. ARC's rows label their choices 1-4 or A-D depending on where they
        come from; the hash does not see the labels.
    """
    return canonical_hash([list(contexts), list(continuations), gold])


def load_tasks(
    names: Sequence[str],
    *,
    data_dir: Path | None,
    num_fewshot: int | None,
    seed: int,
    cache_dir: str | None = None,
) -> LoadedTasks:
    """Load lm-eval tasks with their documents.

    Args:
        names: lm-eval task, tag or group names, or paths of YAML files.
        data_dir: a folder made by ``data pull``; then no network is used. None: the hub.
        num_fewshot: examples in the prompt; None: each task's default. As in lm-eval, a task
            whose own setting is 0 keeps it.
        seed: of the draw of few-shot examples.
        cache_dir: where hub downloads go; Hugging Face's own cache when None.

    Raises:
        TaskError: a name that lm-eval does not know (with the nearest ones), a task that does
            not load, or a task asked for twice.
        DataError: neither hub nor folder, or rows that the folder lacks or that are damaged.
    """
    wanted = list(dict.fromkeys(names))
    _compile_templates_once()
    with _quiet_lm_eval():
        if data_dir is None:
            loaded = _from_hub(wanted, cache_dir)
        else:
            loaded = _from_folder(wanted, data_dir, num_fewshot)
        for task in loaded.leaves.values():
            _apply_few_shot(task, num_fewshot, seed)
    return loaded


@dataclass(frozen=True)
class TaskSplit:
    """One split that scoring a task reads, before the task's own ``process_docs``."""

    task: str
    split: str
    dataset: Any
    """A ``datasets.Dataset``."""
    path: str
    """Id of the data set on the hub."""
    config: str | None


def task_splits(names: Sequence[str]) -> Iterator[TaskSplit]:
    """From the hub: of each task the scored split and the one few-shot examples are drawn from.

    Raises:
        TaskError, DataError: as :func:`load_tasks`; DataError also for a task that is written
            in Python, whose rows a folder cannot give back.
    """
    loaded = load_tasks(names, data_dir=None, num_fewshot=None, seed=0)
    for name, task in loaded.leaves.items():
        settings = task.config
        if not _is_plain(task):
            raise _python_task(name, "Leave it out; it needs the hub")
        own = {"split": task.fewshot_cfg.split, "samples": task.fewshot_cfg.samples}
        whole = {**settings.to_dict(keep_callable=True), "fewshot_config": own}
        for split in dict.fromkeys([scored_split(whole), few_shot_split(whole)]):
            if split is not None:
                yield TaskSplit(
                    name, split, task.dataset[split], settings.dataset_path, settings.dataset_name
                )


def _is_plain(task: Task) -> bool:
    from lm_eval.api.task import ConfigurableTask

    return type(task) is ConfigurableTask


def _python_task(name: str, hint: str) -> DataError:
    return DataError(
        f"task {name} is written in Python, so its rows cannot come from a folder", hint=hint
    )


def _shots(default: int | None, asked: int | None) -> int:
    """How many examples lm-eval puts into a prompt; a task's own 0 is never overruled."""
    return (default if asked is None or default == 0 else asked) or 0


def _apply_few_shot(task: Task, num_fewshot: int | None, seed: int) -> None:
    """What ``lm_eval.evaluator.simple_evaluate`` does to every task."""
    task.set_config(key="num_fewshot", value=_shots(task.get_config("num_fewshot"), num_fewshot))
    task.set_fewshot_seed(seed=seed)


@contextmanager
def _quiet_lm_eval() -> Iterator[None]:
    """Keep lm-eval's warnings about what we do on purpose (own rows, few-shot settings) away."""
    import datasets

    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
        # lm-eval maps process_docs anew whenever it looks at a task's documents.
        datasets.disable_progress_bars()


def _compile_templates_once() -> None:
    """lm-eval compiles a task's templates anew for each document, most of its preparation."""
    from lm_eval import utils

    environment = getattr(utils, "env", None)
    compiler = getattr(environment, "from_string", None)
    if compiler is not None and not hasattr(compiler, "cache_info"):
        setattr(environment, "from_string", lru_cache(maxsize=4096)(compiler))  # noqa: B010


# --- where tasks are defined --------------------------------------------------------------------


@dataclass(frozen=True)
class _Catalogue:
    """What lm-eval knows, read only as far as the names need."""

    manager: TaskManager
    """Its index is empty where every name is a single task whose file was found by its text."""
    files: dict[str, Path]
    """Name -> the YAML file of a single task, or of a group of the user's own."""
    groups: dict[str, str]
    """Name -> what a group of the user's own calls itself."""


def _catalogue(names: Sequence[str]) -> _Catalogue:
    mine = user_files(names)
    files = mine | builtin_files(set(names) - set(mine))
    named = {name: read_task_file(path).get("group") for name, path in files.items()}
    groups = {name: str(named[name]) for name in mine if named[name]}
    single = {name: path for name, path in files.items() if not named[name]}
    manager = _manager(include_defaults=len(single) < len(names))
    for name in names:
        if name not in files and name not in manager.task_index:
            raise _unknown(name, manager.all_tasks)
    return _Catalogue(manager, {**mine, **single}, groups)


@lru_cache(maxsize=2)
def _manager(*, include_defaults: bool) -> TaskManager:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=include_defaults)


def _unknown(name: str, known: Sequence[str]) -> TaskError:
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.6)
    return TaskError(
        f"lm-eval has no task, tag or group {name!r}",
        hint=f"The nearest are {', '.join(near)}" if near else "`lm-eval ls tasks` lists them",
    )


# --- loading ------------------------------------------------------------------------------------


def _from_hub(names: Sequence[str], cache_dir: str | None) -> LoadedTasks:
    catalogue = _catalogue(names)
    specs = {name: str(catalogue.files.get(name, name)) for name in names} | catalogue.groups
    local = all(name in catalogue.files and _is_local(catalogue.files[name]) for name in names)
    hub = nullcontext() if local else hub_or_cache()
    with hub, datasets_cache(cache_dir), _own_groups(catalogue):
        return _load(catalogue.manager, specs, source="hub")


def _is_local(path: Path) -> bool:
    """Whether a task's data set is files of the user's own."""
    return read_task_file(path).get("dataset_path") in _LOCAL_BUILDERS


def _from_folder(names: Sequence[str], data_dir: Path, num_fewshot: int | None) -> LoadedTasks:
    manifest = read_manifest(data_dir)
    catalogue = _catalogue(names)
    index = catalogue.manager.task_index
    files = _check_rows(names, catalogue, manifest, data_dir)
    with (
        tempfile.TemporaryDirectory(prefix="prunescope-tasks-") as directory,
        _own_groups(catalogue),
    ):
        wrappers = {}
        for number, (task, path) in enumerate(files.items()):
            # A group may overrule how its tasks draw examples: then every split is offered.
            examples = bool(index) or bool(
                _shots(read_task_file(path).get("num_fewshot"), num_fewshot)
            )
            splits = manifest.splits(task)
            if examples and not index:
                _check_examples(task, few_shot_split(read_task_file(path)), splits, data_dir)
            wrappers[task] = Path(directory, f"{number}.yaml")
            wrappers[task].write_text(
                wrapper_text(task, path, folder=data_dir, splits=splits, examples=examples),
                encoding="utf-8",
            )
            if task in index:
                index[task] = replace(index[task], yaml_path=wrappers[task])
        wrapped = {path: str(wrappers[task]) for task, path in files.items()}
        specs = {name: name for name in names} | catalogue.groups
        specs |= {n: wrapped[path] for n, path in catalogue.files.items() if path in wrapped}
        loaded = _load(catalogue.manager, specs, source="folder")
    for name, task in loaded.leaves.items() if index else ():
        if _shots(task.get_config("num_fewshot"), num_fewshot) and task.fewshot_cfg.split is None:
            drawn = few_shot_split(read_task_file(files[name]))
            _check_examples(name, drawn, manifest.splits(name), data_dir)
    return loaded


@contextmanager
def _own_groups(catalogue: _Catalogue) -> Iterator[None]:
    """Put the user's groups into lm-eval's index, which takes their files for tasks otherwise.

    The index is kept for the next call: afterwards it has its entries back.
    """
    index = catalogue.manager.task_index
    before = dict(index)
    builtin = (entry for entry in before.values() if entry.kind.name == "GROUP")
    for name, group in catalogue.groups.items():
        path = catalogue.files[name]
        index[group] = replace(next(builtin), name=group, yaml_path=path, cfg=None, tags=set())
    try:
        yield
    finally:
        index.clear()
        index.update(before)


def _check_examples(
    task: str, drawn: str | None, splits: Mapping[str, Any], data_dir: Path
) -> None:
    if drawn is not None and drawn not in splits:
        raise DataError(
            f"{task} draws its few-shot examples from the split {drawn!r}, "
            f"which {data_dir} does not have",
            hint="Pull it from a hub, or use --num-fewshot 0",
        )


def _check_rows(
    names: Sequence[str], catalogue: _Catalogue, manifest: Manifest, data_dir: Path
) -> dict[str, Path]:
    """Every single task behind the names and its file, if the folder can give its rows."""
    found: dict[str, Path] = {}
    lacking: dict[str, str] = {}
    for name in names:
        for task, path in task_files([name], catalogue.files, catalogue.manager.task_index).items():
            settings = read_task_file(path)
            if "class" in settings:
                raise _python_task(task, "Leave it out, or run without --data-dir")
            if scored_split(settings) not in manifest.splits(task):
                lacking[task] = name
            found[task] = path
    if lacking:
        shown = ", ".join(list(lacking)[:5])
        wanted = ",".join(dict.fromkeys(lacking.values()))
        shown += f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
        raise DataError(
            f"{data_dir} has no rows for {shown}; it has {', '.join(manifest.names) or 'nothing'}",
            hint="Add them on a machine that reaches a hub: "
            f"`prunescope data pull {data_dir} --tasks {wanted}`",
        )
    return found


def _load(
    manager: TaskManager, specs: Mapping[str, str], *, source: Literal["hub", "folder"]
) -> LoadedTasks:
    """Load name by name, so that an error can say which task it is about."""
    built: list[Any] = []
    for name, spec in specs.items():
        try:
            loaded = manager.load([spec])
        except PrunescopeError:
            raise
        except Exception as error:  # tasks are others' code: anything may come
            raise hub_error(error, f"task {name}") or TaskError(
                f"task {name} does not load: {first_line(error)}"
            ) from error
        built.append(loaded)
    leaves: dict[str, Task] = {}
    groups: dict[str, Group] = {}
    group_map: dict[str, list[str]] = {}
    owners: dict[str, str] = {}
    for name, loaded in zip(specs, built, strict=True):
        for leaf, task in loaded["tasks"].items():
            # As in lm-eval: a tag may name a task again, a group may not.
            owner = name if loaded["groups"] else leaf
            if owners.setdefault(leaf, owner) != owner:
                raise TaskError(
                    f"task {leaf} is asked for twice: by {owners[leaf]} and by {owner}",
                    hint="Name the task or its group, not both",
                )
            leaves.setdefault(leaf, task)
        groups |= loaded["groups"]
        group_map |= loaded["group_map"]
    return LoadedTasks(leaves, groups, source, group_map)
