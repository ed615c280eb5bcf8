"""The Python API: the same runs and numbers as the commands, as values, without printing."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support.cli import ROWS, run_cli

import prunescope
from prunescope import api
from prunescope.cli.evaluation import eval_command, pair_command
from prunescope.records import EvalConfig

SMALL: dict[str, Any] = {"data_dir": ROWS, "seqlen": 64, "limit": 4, "device": "cpu"}


@pytest.fixture(scope="module")
def root(
    tmp_path_factory: pytest.TempPathFactory,
    empty_database: Path,
    tiny_llama: Path,
    tiny_llama_pruned: Path,
) -> Path:
    """An embedded store in which the API evaluated an original and its pruned variant."""
    root = tmp_path_factory.mktemp("api") / "mlruns"
    root.mkdir()
    (root / "mlflow.db").write_bytes(empty_database.read_bytes())
    prunescope.evaluate_model(tiny_llama, role="original", root=root, **SMALL)
    prunescope.evaluate_model(
        tiny_llama_pruned,
        baseline=f"latest:{tiny_llama.name}",
        method="magnitude",
        target_sparsity=0.5,
        tags={"paper": "tiny"},
        root=root,
        **SMALL,
    )
    return root


def test_an_outcome_has_the_record_the_run_and_the_comparison(
    root: Path, tiny_llama: Path, tiny_llama_pruned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = prunescope.evaluate_model(
        tiny_llama_pruned,
        baseline=f"latest:{tiny_llama.name}",
        method="magnitude",
        target_sparsity=0.5,
        tags={"paper": "tiny"},
        root=root,
        **SMALL,
    )
    assert isinstance(outcome, prunescope.Outcome)
    assert outcome.reused  # the fixture evaluated it
    assert outcome.record.labels.role == "pruned"
    assert outcome.record.labels.tags == {"paper": "tiny"}
    assert set(outcome.record.tasks) == set(prunescope.records.DEFAULT_TASKS)
    assert outcome.run is not None
    assert outcome.comparison is not None
    assert outcome.comparison.original.model.name == tiny_llama.name
    assert outcome.problem is None
    assert capsys.readouterr().out == ""


def test_the_commands_see_the_same_runs_and_numbers(root: Path) -> None:
    folder = root.parent
    listed = json.loads(run_cli(["runs", "--json"], folder).stdout)
    found = prunescope.find_runs(root=root)
    assert [run.ref.run_id for run in found] == [run["run_id"] for run in listed]
    assert [run.ref.run_id for run in prunescope.find_runs(root=root, role="pruned")] == [
        listed[0]["run_id"]
    ]
    assert len(prunescope.find_runs(root=root, limit=1)) == 1
    done = run_cli(["compare", *(run["run_id"] for run in reversed(listed)), "-o", "out"], folder)
    assert done.exit_code == 0, done.stderr
    written = json.loads(next((folder / "out").glob("*.json")).read_text())
    comparison = prunescope.compare_runs(found[1].ref.run_id, found[0].ref.run_id, root=root)
    tasks = {row.label: (row.original, row.pruned) for row in comparison.tasks}
    assert tasks == {
        name: tuple(written[side]["tasks"][name]["accuracy"] for side in ("original", "pruned"))
        for name in tasks
    }
    assert comparison.analysis is not None
    assert comparison.analysis.suite is not None


def test_a_run_alone_is_compared_with_its_baseline(root: Path, tiny_llama_pruned: Path) -> None:
    comparison = prunescope.compare_runs(f"latest:{tiny_llama_pruned.name}", root=root)
    sparsity = comparison.sparsity[0]
    assert sparsity.original == 0
    assert sparsity.pruned == pytest.approx(0.5, abs=0.01)
    assert comparison.original_run is not None
    result = prunescope.check_gate(comparison, "sparsity>=45%")
    assert (result.status, result.exit_code) == ("pass", 0)
    assert prunescope.check_gate(comparison, "sparsity>=60%").exit_code == 1


def test_a_record_directory_is_read_and_compared_without_a_store(
    root: Path, tmp_path: Path
) -> None:
    folders = sorted((root / "records").iterdir())
    records = [prunescope.read_run(folder, root=tmp_path) for folder in folders]
    assert {record.labels.role for record in records} == {"original", "pruned"}
    comparison = prunescope.compare_runs(*folders, root=tmp_path)
    assert comparison.original == records[0]
    assert list(tmp_path.iterdir()) == []


def test_read_run_gives_the_whole_record(root: Path, tiny_llama: Path) -> None:
    record = prunescope.read_run(f"latest:{tiny_llama.name}", root=root)
    assert record.perplexity["wikitext2"].seqlen == 64
    assert record.protocol.limit == 4


def test_a_pair_is_evaluated_alike_and_reuses_what_was_evaluated(
    root: Path, tiny_llama: Path, tiny_llama_pruned: Path, tmp_path: Path
) -> None:
    pair = prunescope.evaluate_pair(
        tiny_llama, tiny_llama_pruned, method="magnitude", root=root, **SMALL
    )
    assert pair.original.reused
    assert pair.pruned.run is not None
    assert pair.comparison == pair.pruned.comparison
    files = prunescope.write_comparison(pair.comparison, tmp_path, ("json",))
    assert json.loads(files["json"].read_text())["pruned"]["model_name"] == tiny_llama_pruned.name


def test_without_a_server_the_record_and_the_comparison_are_still_there(
    tiny_llama: Path, tiny_llama_pruned: Path, tmp_path: Path
) -> None:
    pair = prunescope.evaluate_pair(
        tiny_llama,
        tiny_llama_pruned,
        root=tmp_path / "mlruns",
        tracking_uri="http://127.0.0.1:9",
        skip=("perplexity", "tasks"),
        device="cpu",
    )
    assert pair.original.run is pair.pruned.run is None
    assert isinstance(pair.pruned.problem, prunescope.PrunescopeError)
    assert pair.pruned.directory is not None
    assert (pair.pruned.directory / "record.json").is_file()
    assert pair.comparison.sparsity[0].pruned == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"limit": "four"}, "limit"),
        ({"seqlen": "long"}, "seqlen"),
        ({"skip": ["everything"]}, "skip"),
        ({"target_sparsity": 50}, "fraction"),
        ({"role": "old"}, "original or pruned"),
        ({"pattern": "2 of 4"}, "pattern"),
    ],
)
def test_a_wrong_value_is_a_mistake_that_names_it(
    arguments: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(prunescope.PrunescopeError, match=said) as caught:
        prunescope.evaluate_model("model", root=tmp_path / "mlruns", **arguments)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "mlruns").exists()


def test_a_name_that_is_no_setting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="fewshot"):
        prunescope.evaluate_model("model", root=tmp_path, fewshot=3)  # type: ignore[call-arg]


def test_a_margin_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(prunescope.PrunescopeError, match="margin"):
        prunescope.compare_runs("a", "b", margin=0, root=tmp_path)


def test_tasks_are_a_text_or_a_sequence() -> None:
    configs = [
        api._config("m", {"tasks": tasks})
        for tasks in ("boolq, rte,", ["boolq", "rte"], ("boolq", "rte", "boolq"))
    ]
    assert {config.tasks for config in configs} == {("boolq", "rte")}
    assert api._config("m", {}) == EvalConfig(model="m")
    assert api._config("m", {"skip": "tasks"}).skip == {"tasks"}


def test_values_are_frozen(root: Path) -> None:
    comparison = prunescope.compare_runs(*sorted((root / "records").iterdir())[:2])
    with pytest.raises(dataclasses.FrozenInstanceError):
        comparison.average = None  # type: ignore[misc]
    with pytest.raises(ValidationError):
        comparison.original.status = "failed"  # type: ignore[misc]
    for kind in (api.Outcome, api.Pair, api.Comparison, api.GateResult, api.StoredRun):
        assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]


OWN = {"root", "progress", "settings", "tags"}
"""What only the API has, or calls otherwise than the command does."""
COMMANDS_OWN = {"tag", "output_dir", "quiet", "as_json", "json"}


@pytest.mark.parametrize(
    ("function", "command"),
    [(api.evaluate_model, eval_command), (api.evaluate_pair, pair_command)],
    ids=["eval", "pair"],
)
def test_every_option_of_the_command_is_an_argument(function: Any, command: Any) -> None:
    takes = set(inspect.signature(function).parameters) | set(api.Settings.__annotations__)
    options = set(inspect.signature(command).parameters)
    missing = options - takes - COMMANDS_OWN
    extra = takes - options - OWN - ({"keep_topk"} if command is pair_command else set())
    assert (missing, extra) == (set(), set())


def test_every_setting_is_a_field_of_the_config() -> None:
    assert set(typing.get_type_hints(api.Settings)) <= set(EvalConfig.model_fields)


# --- the package's names ------------------------------------------------------------------------


def test_the_package_offers_the_names_of_the_api() -> None:
    offered = set(prunescope.__all__) - {"__version__"}
    assert offered == set(api.__all__) - {"Settings"}
    for name in offered:
        assert getattr(prunescope, name) is getattr(api, name)
    assert set(prunescope.__all__) <= set(dir(prunescope))
    with pytest.raises(AttributeError, match="evaluate_all"):
        prunescope.evaluate_all  # noqa: B018


PROGRAM = """
import sys
before = set(sys.modules)
import prunescope
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
print(" ".join(sorted(loaded & {"pydantic", "numpy", "typer", "email", "torch", "mlflow"})))
prunescope.compare_runs
print(" ".join(sorted({"torch", "mlflow", "transformers", "lm_eval"} & set(sys.modules))))
print(prunescope.__version__)
"""


def test_importing_the_package_loads_nothing_and_using_it_no_model_library() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    first, second, version = done.stdout.splitlines()
    assert first == ""
    assert second == ""
    assert version == prunescope.__version__
