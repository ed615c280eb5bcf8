"""``eval --kl-reference`` and ``--keep-topk`` end to end on tiny models and a real store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.cli import SMALL, Finished, run_cli
from support.models import save_tiny_model
from support.server import fresh_store

from prunescope.evaluate.data import load_corpus
from prunescope.records import EvalRecord, read_record, tokens_path, topk_path

OPTIONS = [*SMALL, "--skip", "tasks", "--nsamples", "6"]


def evaluate(folder: Path, model: Path, *arguments: str) -> Finished:
    done = run_cli(["eval", str(model), *OPTIONS, *arguments], folder)
    assert done.exit_code == 0, done.stderr
    return done


def newest(folder: Path) -> tuple[Path, EvalRecord]:
    found = [(f, read_record(f)) for f in (folder / "mlruns" / "records").iterdir()]
    return max(found, key=lambda pair: pair[1].started_at)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("kl-models")
    return save_tiny_model(folder / "dense"), save_tiny_model(folder / "half", sparsity=0.5)


@pytest.fixture(scope="module")
def workspace(
    tmp_path_factory: pytest.TempPathFactory, empty_database: Path, models: tuple[Path, Path]
) -> Path:
    """A folder in which the original was evaluated, with its top 16 kept in a second run."""
    folder = tmp_path_factory.mktemp("kl")
    fresh_store(empty_database, folder / "mlruns")
    evaluate(folder, models[0], "--role", "original", "--run-name", "plain")
    evaluate(folder, models[0], "--role", "original", "--run-name", "kept", "--keep-topk", "16")
    return folder


def by_hand(models: tuple[Path, Path], target: np.ndarray, text: str) -> tuple[float, float]:
    """Mean KL in float64 and share of equal top tokens, over the windows that were scored."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(models[0])(text)["input_ids"]
    windows = torch.tensor(tokens[: len(target) * 64]).view(-1, 64)
    assert windows[:, 1:].tolist() == target.tolist()
    p, q = (
        AutoModelForCausalLM.from_pretrained(path).double()(windows).logits[:, :-1].log_softmax(-1)
        for path in models
    )
    same = (p.argmax(-1) == q.argmax(-1)).double().mean()
    return float((p.exp() * (p - q)).sum(-1).mean()), float(same)


def test_divergence_from_a_run_is_that_of_its_model(
    workspace: Path, models: tuple[Path, Path]
) -> None:
    done = evaluate(workspace, models[1], "--kl-reference", "plain", "--baseline", "plain")
    folder, record = newest(workspace)
    result = record.divergence["wikitext2"]
    with np.load(tokens_path(folder, "wikitext2")) as arrays:
        target = arrays["target"]
    data = SMALL[SMALL.index("--data-dir") + 1]
    text = load_corpus("wikitext2", data_dir=Path(data), cache_dir=None).text
    with torch.no_grad():
        wanted, same = by_hand(models, target, text)
    assert result.mean == pytest.approx(wanted, rel=1e-5)
    assert result.same_top == pytest.approx(same, abs=2 / result.tokens)
    assert (result.kind, result.k, result.reference_name) == ("full", None, "dense")
    assert (result.windows, result.tokens) == (6, 6 * 63)
    assert result.percentiles["0"] <= result.percentiles["50"] <= result.percentiles["100"]
    assert "KL from dense" in done.stdout
    (run,) = json.loads(run_cli(["runs", "--json", "--model", "half"], workspace).stdout)
    assert run["metrics"]["kl/wikitext2"] == pytest.approx(result.mean)
    shown = run_cli(["compare", run["run_id"], "-o", "out"], workspace)
    assert shown.exit_code == 0, shown.stderr
    (report,) = (workspace / "out").glob("*.md")
    line = next(x for x in report.read_text().splitlines() if x.startswith("| pruned | WikiText2"))
    assert f"| the original | {result.mean:.4f} ±" in line
    assert "| Characters of the corpus |" in report.read_text()
    whole = json.loads(report.with_suffix(".json").read_text())
    window = whole["statistics"]["tokens"][0]["worst"][0]
    with np.load(tokens_path(folder, "wikitext2")) as arrays:
        places = arrays["window_start"], arrays["window_end"]
    assert window["first_character"] == places[0][window["window"]]
    assert window["last_character"] == places[1][window["window"]] - 1
    assert whole["runs"]["pruned"]["divergence"]["wikitext2"]["mean"] == result.mean


def test_kept_log_probabilities_give_a_lower_bound_without_the_model(
    workspace: Path, models: tuple[Path, Path], tmp_path: Path
) -> None:
    kept_folder, kept = next(
        (f, r) for f in (workspace / "mlruns" / "records").iterdir() if (r := read_record(f)).topk
    )
    info = kept.topk["wikitext2"]
    assert (info.k, info.bytes) == (16, topk_path(kept_folder, "wikitext2").stat().st_size)
    assert 16 / 384 < info.covered < 1
    assert any("MB before compression" in note for note in kept.provenance.notes)

    evaluate(workspace, models[1], "--kl-reference", str(models[0]), "--force")
    full = newest(workspace)[1].divergence["wikitext2"]
    gone = models[0].rename(models[0].with_name("moved"))
    try:
        evaluate(workspace, models[1], "--kl-reference", "kept", "--force")
    finally:
        gone.rename(models[0])
    bound = newest(workspace)[1].divergence["wikitext2"]
    assert (bound.kind, bound.k, bound.reference_record_id) == ("top-k", 16, kept.record_id)
    assert (full.kind, full.reference_record_id) == ("full", None)
    assert 0 < bound.mean <= full.mean
    assert bound.same_top == pytest.approx(full.same_top, abs=2 / full.tokens)
    assert bound.reference_sha256 == full.reference_sha256


def test_reference_and_topk_are_part_of_what_makes_an_evaluation_the_same(
    workspace: Path, models: tuple[Path, Path]
) -> None:
    def again(*arguments: str) -> bool:
        return "finished before" in evaluate(workspace, models[0], *arguments).stderr

    assert again()
    assert again("--keep-topk", "16")
    assert not again("--keep-topk", "17")
    assert not again("--kl-reference", "plain")
    assert again("--kl-reference", str(models[0]))
    assert newest(workspace)[1].divergence["wikitext2"].mean == pytest.approx(0, abs=1e-9)


def test_windows_say_where_they_are_in_the_text(workspace: Path, models: tuple[Path, Path]) -> None:
    folder, _ = newest(workspace)
    with np.load(tokens_path(folder, "wikitext2")) as arrays:
        start, end, target = arrays["window_start"], arrays["window_end"], arrays["target"]
    data = SMALL[SMALL.index("--data-dir") + 1]
    text = load_corpus("wikitext2", data_dir=Path(data), cache_dir=None).text
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models[0])
    assert start[0] == 0
    assert (start[1:] == end[:-1]).all()
    for index in range(len(start)):
        piece = tokenizer(text[start[index] : end[index]])["input_ids"]
        assert tokenizer.decode(piece[-20:]) == tokenizer.decode(target[index][-20:])


MISTAKES: list[tuple[list[str], str]] = [
    (["--kl-reference", "no-such-run"], "no-such-run"),
    (["--keep-topk", "0"], "--keep-topk"),
    (["--keep-topk", "385"], "385"),
    (["--kl-reference", "plain", "--skip", "perplexity"], "--kl-reference"),
]


@pytest.mark.parametrize(("arguments", "found"), MISTAKES, ids=lambda value: str(value))
def test_mistakes_are_one_line(
    workspace: Path, models: tuple[Path, Path], arguments: list[str], found: str
) -> None:
    refused(run_cli(["eval", str(models[1]), *OPTIONS, *arguments], workspace), found)


def refused(done: Finished, *found: Any) -> None:
    assert done.exit_code == 2, done.stdout
    (line,) = (line for line in done.error_lines if line.startswith("Error: "))
    for text in found:
        assert str(text) in line


def test_an_original_that_is_gone_or_changed_is_told(
    workspace: Path, models: tuple[Path, Path], tmp_path: Path
) -> None:
    command = ["eval", str(models[1]), *OPTIONS, "--kl-reference", "plain", "--force"]
    aside = models[0].rename(models[0].with_name("aside"))
    try:
        refused(run_cli(command, workspace), "no longer at", models[0], "--keep-topk")
        shutil.copytree(models[1], models[0])
        refused(run_cli(command, workspace), "other weights", models[0])
        shutil.rmtree(models[0])
    finally:
        aside.rename(models[0])


def test_an_original_with_another_vocabulary_is_refused(
    workspace: Path, models: tuple[Path, Path], tmp_path: Path
) -> None:
    other = save_tiny_model(tmp_path / "other", vocab_size=500)
    command = ["eval", str(models[1]), *OPTIONS, "--kl-reference", str(other)]
    refused(run_cli(command, workspace), "500 tokens", "384")
