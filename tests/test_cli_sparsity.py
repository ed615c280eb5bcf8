"""``prunescope sparsity``, and the alarms that an evaluation raises."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.cli import SMALL, run_cli
from support.models import prune_magnitude, tiny_model, tiny_tokenizer

FAST = [*SMALL, "--skip", "perplexity,tasks"]


def two_four(folder: Path) -> Path:
    """A tiny Llama whose linear layers are 2:4 sparse."""
    import torch

    model = tiny_model()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "layers." in name:
                groups = weight.view(-1, 4)
                smallest = groups.abs().argsort(dim=1)[:, :2]
                groups.scatter_(1, smallest, 0.0)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sparse")
    made = {"2:4": two_four(folder / "two-four")}
    finetuned = tiny_model()
    prune_magnitude(finetuned, 0.1)
    finetuned.save_pretrained(folder / "finetuned")
    tiny_tokenizer().save_pretrained(folder / "finetuned")
    made["finetuned"] = folder / "finetuned"
    return made


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A working folder whose store holds the dense original."""
    folder = tmp_path_factory.mktemp("alarms")
    done = run_cli(["eval", str(tiny_llama), *FAST, "--role", "original"], folder)
    assert done.exit_code == 0, done.stderr
    return folder


def test_sparsity_prints_the_picture_and_logs_nothing(
    models: dict[str, Path], tmp_path: Path
) -> None:
    done = run_cli(["sparsity", str(models["2:4"])], tmp_path)
    assert done.exit_code == 0, done.stderr
    assert "50.00%" in done.stdout
    assert "2:4" in done.stdout
    assert not (tmp_path / "mlruns").exists()


def test_sparsity_as_json_counts_what_numpy_counts(models: dict[str, Path], tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import load_file

    done = run_cli(["sparsity", str(models["2:4"]), "--json"], tmp_path)
    found = json.loads(done.stdout)
    weights = load_file(models["2:4"] / "model.safetensors")
    linear = [w for name, w in weights.items() if "layers." in name and w.ndim == 2]
    assert found["linear"]["zeros"] == sum(int(np.sum(w == 0)) for w in linear)
    assert found["linear"]["parameters"] == sum(w.size for w in linear)
    assert found["pattern"] == "2:4"


def test_block_and_topk_decide_the_tiers(models: dict[str, Path], tmp_path: Path) -> None:
    options = ["sparsity", str(models["2:4"]), "--json"]
    whole = json.loads(run_cli(options, tmp_path).stdout)["tensors"]
    small = json.loads(run_cli([*options, "--block", "4", "--topk", "8"], tmp_path).stdout)
    tier = next(t["blocks"] for t in small["tensors"] if t["linear"])
    assert tier["block"] == [4, 4]
    assert tier["at_most_topk"] == sum(
        tier[k] for k in ("empty", "at_most_topk", "two_four", "dense", "other")
    )
    before = next(t["blocks"] for t in whole if t["linear"])
    assert before["two_four"] > 0
    assert before["at_most_topk"] == 0


def test_against_tells_whether_the_mask_was_kept(models: dict[str, Path], tmp_path: Path) -> None:
    sparse, finetuned = str(models["2:4"]), str(models["finetuned"])
    kept = run_cli(["sparsity", sparse, "--against", sparse, "--require-mask-kept"], tmp_path)
    assert kept.exit_code == 0, kept.stderr
    lost = run_cli(["sparsity", sparse, "--against", finetuned, "--require-mask-kept"], tmp_path)
    assert lost.exit_code == 1
    told = json.loads(
        run_cli(["sparsity", sparse, "--against", finetuned, "--json"], tmp_path).stdout
    )
    assert told["mask_kept"] is False
    assert told["total"]["returned"] > 0
    assert run_cli(["sparsity", sparse, "--against", finetuned], tmp_path).exit_code == 0


def test_require_mask_kept_needs_a_second_checkpoint(
    models: dict[str, Path], tmp_path: Path
) -> None:
    done = run_cli(["sparsity", str(models["2:4"]), "--require-mask-kept"], tmp_path)
    assert done.exit_code == 2
    assert "--against" in done.stderr


def test_log_keeps_the_picture_as_a_run(models: dict[str, Path], store: Path) -> None:
    done = run_cli(["sparsity", str(models["2:4"]), "--log", "--experiment", "masks"], store)
    assert done.exit_code == 0, done.stderr
    (run,) = json.loads(run_cli(["runs", "--json", "--experiment", "masks"], store).stdout)
    assert run["metrics"]["sparsity/linear"] == pytest.approx(0.5)
    assert not [name for name in run["metrics"] if name.startswith(("ppl", "acc"))]


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--target-sparsity", "0.6"], "target-missed", "60.00%"),
        (["--pattern", "4:8"], None, ""),
        (["--pattern", "1:4"], "pattern", "layers.0"),
        ([], None, ""),
    ],
)
def test_alarms_of_a_pruned_run(
    models: dict[str, Path],
    store: Path,
    tiny_llama: Path,
    options: list[str],
    code: str | None,
    text: str,
) -> None:
    name = f"run-{'-'.join(options) or 'plain'}"
    done = run_cli(
        [
            *("eval", str(models["2:4"]), *FAST, *options, "--run-name", name),
            *("--baseline", f"latest:{tiny_llama.name}"),
        ],
        store,
    )
    assert done.exit_code == 0, done.stderr
    alarms = [line for line in done.stderr.splitlines() if line.startswith("ALARM")]
    if code is None:
        assert alarms == []
    else:
        assert len(alarms) == 1
        assert text in alarms[0]


def test_identical_weights_under_the_name_of_a_pruned_model_sound_the_alarm(
    store: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_llama, tmp_path / "pruned-they-say")
    options = ["--baseline", f"latest:{tiny_llama.name}", "--method", "nothing"]
    done = run_cli(["eval", str(copy), *FAST, *options], store)
    alarms = [line for line in done.stderr.splitlines() if line.startswith("ALARM")]
    assert any("identical" in line for line in alarms), done.stderr
    assert any("only" in line and "zero" in line for line in alarms)


def test_pictures_and_the_stepped_metric_are_in_the_run(
    models: dict[str, Path], store: Path
) -> None:
    done = run_cli(["eval", str(models["2:4"]), *FAST, "--run-name", "with pictures"], store)
    assert done.exit_code == 0, done.stderr
    from prunescope.tracking.query import resolve_run
    from prunescope.tracking.store import open_store

    opened = open_store(f"sqlite:///{store / 'mlruns' / 'mlflow.db'}", root=store / "mlruns")
    run = resolve_run(opened, "with pictures")
    folder = opened.fetch(run, store / "fetched", everything=True)
    names = {path.name for path in folder.rglob("*")}
    assert {"sparsity-heatmap.png", "sparsity-heatmap.svg", "block-tiers.png"} <= names
    assert "layers/sparsity" in run.metrics


def test_compare_exits_with_1_where_a_pruned_weight_came_back(
    models: dict[str, Path], store: Path
) -> None:
    for name, model in (("masked", "2:4"), ("tuned", "finetuned")):
        done = run_cli(["eval", str(models[model]), *FAST, "--run-name", name], store)
        assert done.exit_code == 0, done.stderr
    options = ["--require-mask-kept", "--output-dir", "masks"]
    lost = run_cli(["compare", "masked", "tuned", *options], store)
    assert lost.exit_code == 1, lost.stderr
    assert "came back" in lost.stderr
    kept = run_cli(["compare", "masked", "masked", *options], store)
    assert kept.exit_code == 0, kept.stderr
