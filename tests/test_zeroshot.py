"""Accuracy of the seven tasks equals what lm-eval's own backend gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunescope.evaluate.loading import load_model, resolve_model
from prunescope.evaluate.progress import SilentProgress
from prunescope.evaluate.scoring import build_scorer
from prunescope.evaluate.tasks import load_tasks
from prunescope.evaluate.zeroshot import TaskOutcome, aggregate_groups, plan_tasks, run_task
from prunescope.records import DEFAULT_TASKS, SAMPLES_COLUMNS, EvalConfig

ROWS = Path(__file__).parent / "data" / "tasks"


def evaluate_all(folder: Path, *, limit: int | None = None, num_fewshot: int | None = None) -> Any:
    config = EvalConfig(model=str(folder), device="cpu")
    loaded = load_model(resolve_model(config), config, SilentProgress())
    tasks = load_tasks(DEFAULT_TASKS, data_dir=ROWS, num_fewshot=num_fewshot, seed=0)
    planned = plan_tasks(tasks, limit=limit, seed=0)
    lm = build_scorer(loaded, batch_size="auto", progress=SilentProgress())
    outcomes = {
        name: run_task(
            name,
            tasks,
            lm,
            limit=limit,
            seed=0,
            planned=planned[name],
            progress=SilentProgress(),
        )
        for name in planned
    }
    return loaded, outcomes


def reference(loaded: Any, *, num_fewshot: int | None = None) -> dict[str, Any]:
    """The same tasks through lm-eval's own HF backend and simple_evaluate."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    tasks = load_tasks(DEFAULT_TASKS, data_dir=ROWS, num_fewshot=num_fewshot, seed=0)
    lm = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=4)
    result = simple_evaluate(
        lm, tasks=list(tasks.leaves.values()), num_fewshot=num_fewshot, fewshot_random_seed=0
    )
    assert result is not None
    return dict(result)


@pytest.fixture(scope="module")
def both(tiny_llama: Path) -> tuple[dict[str, TaskOutcome], dict[str, Any]]:
    loaded, outcomes = evaluate_all(tiny_llama)
    return outcomes, reference(loaded)


@pytest.mark.parametrize("task", DEFAULT_TASKS)
def test_metrics_equal_those_of_lm_evals_own_backend(both: Any, task: str) -> None:
    outcomes, expected = both
    theirs = expected["results"][task]
    ours = outcomes[task].result
    assert ours.primary == "acc"
    assert ours.metrics["acc"] == theirs["acc,none"]
    assert ours.stderr["acc"] == theirs["acc_stderr,none"]
    assert ours.metrics.get("acc_norm") == theirs.get("acc_norm,none")
    assert ours.version == str(expected["versions"][task])
    assert ours.n == expected["n-samples"][task]["effective"]
    assert ours.full_results["acc,none"] == theirs["acc,none"]


@pytest.mark.parametrize("task", DEFAULT_TASKS)
def test_loglikelihoods_equal_those_of_lm_evals_own_backend(both: Any, task: str) -> None:
    outcomes, expected = both
    frame = outcomes[task].samples
    theirs = expected["samples"][task]
    assert len(frame) == len(theirs)
    for (_, row), sample in zip(frame.iterrows(), theirs, strict=True):
        scores = [response[0][0] for response in sample["resps"]]
        np.testing.assert_allclose(row["loglikelihoods"], scores, atol=2e-4)
        assert list(row["greedy"]) == [response[0][1] for response in sample["resps"]]


@pytest.mark.parametrize("task", DEFAULT_TASKS)
def test_samples_tell_the_accuracy_on_their_own(both: Any, task: str) -> None:
    outcomes, _ = both
    frame = outcomes[task].samples
    assert list(frame.columns) == list(SAMPLES_COLUMNS)
    answers = [int(np.argmax(scores)) for scores in frame["loglikelihoods"]]
    assert answers == list(frame["predicted"])
    right = (frame["predicted"] == frame["gold"]).astype(float)
    assert list(right) == list(frame["acc"])
    assert outcomes[task].result.metrics["acc"] == pytest.approx(right.mean(), abs=1e-12)
    if frame["acc_norm"].notna().all():
        normed = [
            int(np.argmax(np.array(scores) / np.array(lengths)))
            for scores, lengths in zip(frame["loglikelihoods"], frame["lengths"], strict=True)
        ]
        assert list((np.array(normed) == frame["gold"]).astype(float)) == list(frame["acc_norm"])
    assert all(json.loads(text) for text in frame["document"])


def test_context_and_choice_put_together_are_the_whole_prompt(both: Any) -> None:
    outcomes, expected = both
    for task in ("winogrande", "boolq", "arc_easy"):
        for (_, row), sample in zip(
            outcomes[task].samples.iterrows(), expected["samples"][task], strict=True
        ):
            whole = [context + continuation for context, continuation in sample["arguments"]]
            assert [row["context"] + choice for choice in row["choices"]] == whole


def test_few_shot_prompts_are_those_that_simple_evaluate_draws(tiny_llama: Path) -> None:
    loaded, outcomes = evaluate_all(tiny_llama, num_fewshot=2)
    expected = reference(loaded, num_fewshot=2)
    for task in DEFAULT_TASKS:
        assert outcomes[task].result.num_fewshot == 2
        assert outcomes[task].result.metrics["acc"] == expected["results"][task]["acc,none"]


def test_limit_takes_the_first_documents(tiny_llama: Path, both: Any) -> None:
    whole, _ = both
    _, outcomes = evaluate_all(tiny_llama, limit=3)
    for task in DEFAULT_TASKS:
        assert outcomes[task].result.n == 3
        first = list(whole[task].samples["doc_sha256"])[:3]
        assert list(outcomes[task].samples["doc_sha256"]) == first


def test_nan_loglikelihoods_mark_the_task_and_give_no_accuracy(tiny_llama: Path) -> None:
    import torch

    config = EvalConfig(model=str(tiny_llama), device="cpu")
    loaded = load_model(resolve_model(config), config, SilentProgress())
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight[5] = float("nan")
    tasks = load_tasks(["rte"], data_dir=ROWS, num_fewshot=None, seed=0)
    planned = plan_tasks(tasks, limit=2, seed=0)
    lm = build_scorer(loaded, batch_size=1, progress=SilentProgress())
    outcome = run_task(
        "rte", tasks, lm, limit=2, seed=0, planned=planned["rte"], progress=SilentProgress()
    )
    assert outcome.broken is not None
    assert outcome.broken.stage == "tasks"
    assert outcome.broken.where == "rte document 0"
    assert "NaN" in outcome.broken.what
    assert np.isnan(outcome.result.metrics["acc"])


def test_other_documents_than_planned_are_refused(tiny_llama: Path) -> None:
    config = EvalConfig(model=str(tiny_llama), device="cpu")
    loaded = load_model(resolve_model(config), config, SilentProgress())
    tasks = load_tasks(["rte"], data_dir=ROWS, num_fewshot=None, seed=0)
    planned = plan_tasks(tasks, limit=2, seed=0)["rte"]
    lm = build_scorer(loaded, batch_size=1, progress=SilentProgress())
    with pytest.raises(RuntimeError, match="other documents"):
        run_task("rte", tasks, lm, limit=3, seed=0, planned=planned, progress=SilentProgress())


def test_a_group_is_aggregated_as_lm_eval_does_it(both: Any) -> None:
    from lm_eval.api.group import Group
    from lm_eval.config.group import AggMetricConfig

    outcomes, _ = both
    tasks = load_tasks(["arc_easy", "arc_challenge"], data_dir=ROWS, num_fewshot=None, seed=0)
    group = Group(
        name="arc",
        aggregate_metric_list=[AggMetricConfig(metric="acc", weight_by_size=True)],
        metadata={"version": 1},
    )
    for task in tasks.leaves.values():
        group.add(task)
    tasks.groups["arc"] = group
    results = {name: outcomes[name].result for name in tasks.leaves}
    (found,) = aggregate_groups(tasks, results)
    total = sum(result.n for result in results.values())
    mean = sum(result.metrics["acc"] * result.n for result in results.values()) / total
    assert found.group
    assert found.subtasks == ("arc_easy", "arc_challenge")
    assert found.accuracy == pytest.approx(mean, abs=1e-12)
