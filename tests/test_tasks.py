"""lm-eval's tasks from a folder: the same requests as lm-eval makes of the same rows."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prunescope.errors import DataError, TaskError
from prunescope.evaluate.data.writer import RowSet, staged_writer
from prunescope.evaluate.task_files import (
    builtin_files,
    few_shot_split,
    read_task_file,
    scored_split,
)
from prunescope.evaluate.tasks import LoadedTasks, _manager, document_sha256, load_tasks
from prunescope.records import DEFAULT_TASKS

ROWS = Path(__file__).parent / "data" / "tasks"
COUNTS = dict(zip(DEFAULT_TASKS, (10, 9, 9, 10, 10, 9, 10), strict=True))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With a folder not even the loopback interface is used."""

    def refuse(self: socket.socket, address: Any) -> None:
        raise AssertionError(f"connects to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield


def load(*names: str, **changes: Any) -> LoadedTasks:
    settings: dict[str, Any] = {"data_dir": ROWS, "num_fewshot": None, "seed": 0}
    return load_tasks(names, **{**settings, **changes})


def requests(task: Any) -> list[tuple[Any, ...]]:
    task.build_all_requests(limit=None)
    return [instance.args for instance in task.instances]


def lm_eval_alone(name: str, cache: Path) -> Any:
    """The task as lm-eval loads it by itself from the same files, through ``datasets``' json."""
    from lm_eval.tasks import TaskManager

    path = builtin_files([name])[name]
    wrapper = cache / f"{name}.yaml"
    files = {file.stem: str(file) for file in (ROWS / name).glob("*.jsonl")}
    wrapper.write_text(
        f"include: {path}\ntask: {name}\ndataset_path: json\ndataset_name: null\n"
        f"dataset_kwargs: {json.dumps({'data_files': files, 'cache_dir': str(cache)})}\n"
    )
    return TaskManager(include_defaults=False).load([str(wrapper)])["tasks"][name]


@pytest.mark.parametrize("name", DEFAULT_TASKS)
def test_requests_are_those_that_lm_eval_makes(name: str, tmp_path: Path) -> None:
    reference = lm_eval_alone(name, tmp_path)
    for shots, seed in ((0, 0), (2, 0), (2, 1234)):
        ours = load(name, num_fewshot=shots, seed=seed).leaves[name]
        reference.set_config(key="num_fewshot", value=shots)
        reference.set_fewshot_seed(seed=seed)
        assert requests(ours) == requests(reference)
        assert len(ours.eval_docs) == COUNTS[name]
    assert ours.VERSION == reference.VERSION
    assert ours.config.metric_list == reference.config.metric_list
    for one, other in zip(ours.eval_docs, reference.eval_docs, strict=True):
        assert ours.doc_to_target(one) == reference.doc_to_target(other)
        assert ours.doc_to_choice(one) == reference.doc_to_choice(other)


@pytest.mark.parametrize("asked", [None, 0, 2])
@pytest.mark.parametrize("own", ["", "num_fewshot: 0\n", "num_fewshot: 1\n"])
def test_few_shot_settings_are_simple_evaluates(
    tmp_path: Path, asked: int | None, own: str
) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    path = tmp_path / "rte_own.yaml"
    path.write_text(f"include: {builtin_files(['rte'])['rte']}\ntask: rte_own\n{own}")
    rows = [json.loads(line) for line in (ROWS / "rte/train.jsonl").read_text("utf-8").splitlines()]
    with staged_writer(tmp_path / "d") as writer:
        for split in ("train", "validation"):
            writer.add(RowSet(task="rte_own", split=split, rows=rows, source="-", license="-"))
    loaded = load(str(path), data_dir=tmp_path / "d", num_fewshot=asked, seed=5)
    other = load(str(path), data_dir=tmp_path / "d", num_fewshot=2, seed=5).leaves["rte_own"]
    other.set_config(key="num_fewshot", value=json.loads(own.split(":")[1]) if own else None)
    result = simple_evaluate(
        model="dummy",
        tasks=[other],
        num_fewshot=asked,
        fewshot_random_seed=5,
        bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),
    )
    ours = loaded.leaves["rte_own"]
    assert result["n-shot"]["rte_own"] == ours.get_config("num_fewshot")
    expected = [pair for sample in result["samples"]["rte_own"] for pair in sample["arguments"]]
    assert requests(ours) == expected


def test_nothing_is_cached_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for task in load(*DEFAULT_TASKS, num_fewshot=1).leaves.values():
        requests(task)
    assert not (tmp_path / "cache").exists()


def test_task_dict_is_what_lm_eval_evaluates() -> None:
    from lm_eval.evaluator import evaluate
    from lm_eval.models.dummy import DummyLM

    loaded = load("arc_easy", "boolq")
    assert loaded.source == "folder"
    results = evaluate(lm=DummyLM(), task_dict=loaded.task_dict, bootstrap_iters=0)
    assert list(results["results"]) == ["arc_easy", "boolq"]
    assert results["n-samples"]["arc_easy"]["effective"] == 10


# --- names --------------------------------------------------------------------------------------


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(TaskError, match=r"no task, tag or group 'boolqq'\. The nearest are boolq,"):
        load("rte", "boolqq")


def test_a_tag_opens_into_its_tasks() -> None:
    loaded = load("ai2_arc", "boolq", "arc_easy")
    assert list(loaded.leaves) == ["arc_challenge", "arc_easy", "boolq"]
    assert loaded.groups == {}
    assert requests(loaded.leaves["arc_easy"]) == requests(load("arc_easy").leaves["arc_easy"])


def group_file(folder: Path, body: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(f"group: mine\n{body}")
    return str(path)


def test_a_group_keeps_its_aggregation_and_overrides(tmp_path: Path) -> None:
    path = group_file(
        tmp_path,
        "task:\n  - ai2_arc\n  - task: rte\n    num_fewshot: 2\n"
        "aggregate_metric_list:\n  - metric: acc\n    weight_by_size: false\n",
    )
    loaded = load(path)
    assert list(loaded.leaves) == ["arc_challenge", "arc_easy", "rte"]
    assert loaded.group_map == {"mine": ["arc_challenge", "arc_easy", "rte"]}
    assert loaded.groups["mine"].has_aggregation
    assert requests(loaded.leaves["rte"]) == requests(load("rte", num_fewshot=2).leaves["rte"])


def test_a_group_does_not_change_what_its_tasks_are_alone(tmp_path: Path) -> None:
    before = requests(load("rte").leaves["rte"])
    load(group_file(tmp_path, "task: [rte]\n"))
    assert requests(load("rte").leaves["rte"]) == before


def test_a_task_and_its_group_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="rte is asked for twice: by rte and by "):
        load("rte", group_file(tmp_path, "task: [rte]\n"))


def test_a_name_twice_is_taken_once() -> None:
    assert list(load("rte", "rte").leaves) == ["rte"]


def test_files_are_found_where_lm_evals_index_has_them() -> None:
    index = _manager(include_defaults=True).task_index
    found = builtin_files(index)
    assert set(DEFAULT_TASKS) <= set(found)
    assert len(found) > 10_000
    wrong = {name for name, path in found.items() if index[name].yaml_path != path}
    assert wrong == set()


def test_settings_are_read_as_lm_eval_reads_them() -> None:
    from lm_eval.tasks._yaml_loader import load_yaml

    for name, path in builtin_files([*DEFAULT_TASKS, "gsm8k", "mmlu_anatomy", "triviaqa"]).items():
        reference = load_yaml(path, resolve_func=False)
        ours = read_task_file(path)
        assert set(ours) == set(reference), name
        for key in ("task", "dataset_path", "validation_split", "test_split", "fewshot_config"):
            assert ours.get(key) == reference.get(key)


@pytest.mark.parametrize(
    ("settings", "scored", "drawn"),
    [
        ({"training_split": "train", "validation_split": "dev"}, "dev", "train"),
        ({"validation_split": "dev", "test_split": "test"}, "test", "dev"),
        ({"test_split": "test"}, "test", "test"),
        ({"test_split": "test", "training_split": "a", "fewshot_split": "b"}, "test", "b"),
        ({"test_split": "t", "fewshot_split": "b", "fewshot_config": {"split": "c"}}, "t", "c"),
        ({"test_split": "t", "fewshot_config": {"samples": [{}]}}, "t", None),
    ],
)
def test_splits_follow_lm_evals_rule(
    settings: dict[str, Any], scored: str, drawn: str | None
) -> None:
    assert (scored_split(settings), few_shot_split(settings)) == (scored, drawn)


# --- rows that cannot be had --------------------------------------------------------------------


def test_rows_that_the_folder_lacks_are_named() -> None:
    with pytest.raises(DataError, match=r"has no rows for gsm8k; it has boolq, .*--tasks gsm8k`"):
        load("boolq", "gsm8k")


def test_a_group_that_the_folder_lacks_is_pulled_by_its_own_name() -> None:
    with pytest.raises(DataError, match=r"mmlu_abstract_algebra.* 52 more.*--tasks mmlu`"):
        load("mmlu")


def test_examples_are_never_drawn_from_another_split(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (ROWS / "rte/train.jsonl").read_text("utf-8").splitlines()]
    with staged_writer(tmp_path / "d") as writer:
        writer.add(RowSet(task="rte", split="validation", rows=rows, source="-", license="-"))
    folder = tmp_path / "d"
    assert len(requests(load("rte", data_dir=folder).leaves["rte"])) == 8
    with pytest.raises(DataError, match=r"rte draws its few-shot examples from the split 'train'"):
        load("rte", data_dir=folder, num_fewshot=1)
    group = group_file(tmp_path, "task:\n  - task: rte\n    num_fewshot: 1\n")
    with pytest.raises(DataError, match=r"rte draws its few-shot examples from the split 'train'"):
        load(group, data_dir=folder)


def test_a_damaged_file_is_named_whatever_lm_eval_makes_of_it(tmp_path: Path) -> None:
    with staged_writer(tmp_path / "d") as writer:
        writer.add(RowSet(task="rte", split="validation", rows=[{}], source="-", license="-"))
    path = tmp_path / "d" / "rte" / "validation.jsonl"
    path.write_text("[]\n")
    with pytest.raises(DataError, match=r"rte/validation\.jsonl is damaged"):
        load("rte", data_dir=tmp_path / "d")


def test_a_task_written_in_python_is_refused() -> None:
    with pytest.raises(DataError, match="squadv2 is written in Python"):
        load("squadv2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: [", "cannot read the task file"),
        ("- a\n", "does not define a task"),
        ("include: absent.yaml\n", "cannot read the task file"),
        ("include: bad.yaml\n", "does not define a task"),
    ],
)
def test_a_bad_yaml_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(TaskError, match=message) as caught:
        load(str(path))
    assert "\n" not in str(caught.value)
    with pytest.raises(TaskError, match=r"expected a task's YAML file at .*absent\.yaml"):
        load(str(tmp_path / "absent.yaml"))


def test_a_task_over_files_of_the_users_own_needs_no_hub(tmp_path: Path) -> None:
    rows = [{"q": "Is water wet", "a": 0}, {"q": "Is fire cold", "a": 1}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "wet.yaml"
    path.write_text(
        "task: wet\ndataset_path: json\ndataset_kwargs:\n"
        f"  data_files: {{test: {tmp_path / 'rows.jsonl'}}}\n  cache_dir: {tmp_path / 'cache'}\n"
        'test_split: test\noutput_type: multiple_choice\ndoc_to_text: "{{q}}?"\n'
        'doc_to_target: a\ndoc_to_choice: ["yes", "no"]\nmetric_list:\n  - metric: acc\n'
    )
    loaded = load(str(path), data_dir=None)
    assert requests(loaded.leaves["wet"])[:2] == [
        ("Is water wet?", " yes"),
        ("Is water wet?", " no"),
    ]


def test_a_task_that_does_not_load_says_why(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"q": "?"}\n')
    path = tmp_path / "broken.yaml"
    path.write_text(
        "task: broken\ndataset_path: json\ndataset_kwargs:\n"
        f"  data_files: {{test: {tmp_path / 'rows.jsonl'}}}\n  cache_dir: {tmp_path / 'cache'}\n"
        "test_split: test\noutput_type: no_such_type\ndoc_to_text: q\ndoc_to_target: q\n"
    )
    with pytest.raises(TaskError, match=r"broken\.yaml does not load") as caught:
        load(str(path), data_dir=None)
    assert "\n" not in str(caught.value)


# --- document hashes ----------------------------------------------------------------------------


def document_hashes(task: Any) -> list[str]:
    task.build_all_requests(limit=None)
    found: dict[int, list[Any]] = {}
    for instance in task.instances:
        found.setdefault(instance.doc_id, []).append(instance)
    return [
        document_sha256(
            [instance.args[0] for instance in group],
            [instance.args[1] for instance in group],
            task.doc_to_target(group[0].doc),
        )
        for group in found.values()
    ]


@pytest.mark.parametrize("name", ["arc_easy", "arc_challenge"])
def test_choice_labels_do_not_change_a_documents_hash(name: str, tmp_path: Path) -> None:
    lines = (ROWS / name / "test.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert any(row["choices"]["label"][0] == "1" for row in rows)
    letters = dict(zip("12345ABCDE", "ABCDEABCDE", strict=True))
    for row in rows:
        row["choices"]["label"] = [letters[label] for label in row["choices"]["label"]]
        row["answerKey"] = letters[row["answerKey"]]
    with staged_writer(tmp_path / "d") as writer:
        writer.add(RowSet(task=name, split="test", rows=rows, source="-", license="-"))
    lettered = load(name, data_dir=tmp_path / "d").leaves[name]
    hashes = document_hashes(load(name).leaves[name])
    assert document_hashes(lettered) == hashes
    assert len(set(hashes)) == len(hashes)


def test_everything_that_is_scored_changes_a_documents_hash() -> None:
    base = document_sha256(["c", "c"], [" a", " b"], 0)
    assert len(base) == 64
    others = [
        document_sha256(["c", "d"], [" a", " b"], 0),
        document_sha256(["c", "c"], [" b", " a"], 0),
        document_sha256(["c", "c"], [" a", " b"], 1),
        document_sha256(["c", "c"], [" a", " b"], [0]),
        document_sha256(["c", "c a"], ["", " b"], 0),
    ]
    assert len({base, *others}) == 6
    assert document_sha256(["c", "c"], [" a", " b"], 0) == base
