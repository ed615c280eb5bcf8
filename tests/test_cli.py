"""The commands, end to end on tiny models and a real embedded store."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from support.cli import ROWS, SMALL, Finished, run_cli


@pytest.fixture(scope="module")
def workspace(
    tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, tiny_llama_pruned: Path
) -> Path:
    """A folder in which an original and its pruned variant were evaluated."""
    folder = tmp_path_factory.mktemp("workspace")
    first = run_cli(["eval", str(tiny_llama), *SMALL, "--role", "original"], folder)
    assert first.exit_code == 0, first.stderr
    second = run_cli(
        [
            *("eval", str(tiny_llama_pruned), *SMALL),
            *("--baseline", f"latest:{tiny_llama.name}"),
            *("--method", "magnitude", "--target-sparsity", "0.5", "--tag", "paper=tiny"),
        ],
        folder,
    )
    assert second.exit_code == 0, second.stderr
    return folder


def runs_of(folder: Path, *arguments: str) -> list[dict[str, object]]:
    return list(json.loads(run_cli(["runs", "--json", *arguments], folder).stdout))


def test_eval_tracks_both_runs_with_their_numbers(workspace: Path) -> None:
    pruned, original = runs_of(workspace)
    assert (original["role"], pruned["role"]) == ("original", "pruned")
    assert pruned["method"] == "magnitude"
    metrics = pruned["metrics"]
    assert isinstance(metrics, dict)
    assert metrics["sparsity/linear"] == pytest.approx(0.5, abs=0.001)
    assert metrics["ppl/wikitext2"] > 1
    assert 0 <= metrics["acc/mean"] <= 1
    assert "acc/boolq" in metrics
    assert "acc_norm/hellaswag" in metrics
    assert metrics["delta/ppl_ratio"] == pytest.approx(
        metrics["ppl/wikitext2"] / original["metrics"]["ppl/wikitext2"],  # type: ignore[index]
        abs=5e-5,  # rounded for the table of runs
    )


def test_eval_leaves_a_whole_record_directory(workspace: Path) -> None:
    folders = sorted((workspace / "mlruns" / "records").iterdir())
    assert len(folders) == 2
    for folder in folders:
        names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        expected = {"record.json", "sparsity.json", "report.md", "report.html"}
        assert expected | {"samples/boolq.parquet", "tokens/wikitext2.npz"} <= names
        assert not [name for name in names if name.endswith(".tmp")]


def test_eval_prints_a_summary_and_says_where_the_run_is(workspace: Path, tiny_llama: Path) -> None:
    again = run_cli(["eval", str(tiny_llama), *SMALL], workspace)
    for text in ("sparsity (linear layers)", "perplexity wikitext2 (64)", "boolq", "mean accuracy"):
        assert text in again.stdout
    assert "prunescope ui" in again.stderr


def test_an_evaluation_that_finished_before_is_not_run_again(
    workspace: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded again")

    monkeypatch.setattr("prunescope.evaluate.loading.load_model", refuse)
    before = runs_of(workspace)
    again = run_cli(["eval", str(tiny_llama), *SMALL], workspace)
    assert again.exit_code == 0
    assert "finished before" in again.stderr
    assert runs_of(workspace) == before


def test_batch_size_and_folder_name_do_not_make_it_another_evaluation(
    workspace: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tiny_llama, tmp_path / tiny_llama.name)
    again = run_cli(["eval", str(copy), *SMALL, "--batch-size", "2"], workspace)
    assert "finished before" in again.stderr


def test_other_labels_make_a_run_of_their_own_from_the_same_numbers(
    workspace: Path, tiny_llama_pruned: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(workspace, tmp_path / "copy")
    store = ["--tracking-uri", f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}"]
    again = run_cli(["eval", str(tiny_llama_pruned), *SMALL, "--method", "wanda", *store], folder)
    assert again.exit_code == 0, again.stderr
    assert "finished before" in again.stderr
    (newest,) = runs_of(folder, *store, "--method", "wanda")
    (older,) = runs_of(folder, *store, "--method", "magnitude")
    numbers = [
        {k: v for k, v in run["metrics"].items() if k.startswith(("acc", "ppl", "sparsity"))}  # type: ignore[attr-defined]
        for run in (newest, older)
    ]
    assert numbers[0] == numbers[1]


def test_force_evaluates_again(workspace: Path, tiny_llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(workspace, tmp_path / "copy")
    store = ["--tracking-uri", f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}"]
    options = [*SMALL, "--skip", "tasks", "--force", *store]
    assert run_cli(["eval", str(tiny_llama), *options], folder).exit_code == 0
    assert run_cli(["eval", str(tiny_llama), *options], folder).exit_code == 0
    assert len(runs_of(folder, *store)) == 4


def test_compare_prints_the_table_and_writes_json_and_markdown(
    workspace: Path, tiny_llama: Path, tiny_llama_pruned: Path
) -> None:
    done = run_cli(
        [
            *("compare", f"latest:{tiny_llama.name}", f"latest:{tiny_llama_pruned.name}"),
            *("--output-dir", "out"),
        ],
        workspace,
    )
    assert done.exit_code == 0, done.stderr
    assert re.search(r"Task\s+Original\s+Pruned\s+Difference\s+Relative", done.stdout)
    assert re.search(r"AVERAGE\s+0\.\d{4}\s+0\.\d{4}\s+[+-]0\.\d{4}\s+[+-]\d+\.\d\d%", done.stdout)
    (path,) = (workspace / "out").glob("comparison_????????_??????.json")
    assert path.with_suffix(".md").is_file()
    whole = json.loads(path.read_text())
    assert set(whole["original"]["tasks"]) == {
        *("boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
    }
    assert whole["pruned"]["sparsity"] == pytest.approx(0.5, abs=0.001)
    boolq = whole["pruned"]["tasks"]["boolq"]
    assert boolq["accuracy"] == boolq["full_results"]["acc,none"]


def test_every_way_to_name_a_run_gives_the_same_comparison(
    workspace: Path, tiny_llama: Path
) -> None:
    pruned, original = runs_of(workspace)
    directory = next(
        folder
        for folder in (workspace / "mlruns" / "records").iterdir()
        if json.loads((folder / "record.json").read_text())["labels"]["role"] == "original"
    )
    ways = (
        *(original["run_id"], str(original["run_id"])[:8], f"runs:/{original['run_id']}"),
        *(original["run_name"], f"latest:{tiny_llama.name}", str(directory)),
    )
    tables = {
        run_cli(["compare", str(way), str(pruned["run_id"]), "-o", "ways"], workspace).stdout
        for way in ways
    }
    alone = run_cli(["compare", str(pruned["run_id"]), "-o", "ways"], workspace).stdout
    assert tables == {alone}


def test_runs_lists_and_filters(workspace: Path, tiny_llama: Path) -> None:
    table = run_cli(["runs"], workspace)
    assert tiny_llama.name in table.stdout
    assert "50.00%" in table.stdout
    assert [run["role"] for run in runs_of(workspace, "--role", "pruned")] == ["pruned"]
    assert runs_of(workspace, "--model", "nothing-like-it") == []
    assert len(runs_of(workspace, "--limit", "1")) == 1


def test_pair_does_both_and_compares(
    workspace: Path, tiny_llama: Path, tiny_llama_pruned: Path
) -> None:
    done = run_cli(
        ["pair", str(tiny_llama), str(tiny_llama_pruned), *SMALL, "--output-dir", "pair"], workspace
    )
    assert done.exit_code == 0, done.stderr
    assert done.stderr.count("finished before") == 2
    assert "AVERAGE" in done.stdout
    assert len(list((workspace / "pair").glob("comparison_*.json"))) == 1


def test_not_comparable_rows_show_the_reason_and_no_number(
    workspace: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(workspace, tmp_path / "copy")
    store = ["--tracking-uri", f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}"]
    other = [*SMALL, "--limit", "3", "--seqlen", "32", *store, "--run-name", "other"]
    assert run_cli(["eval", str(tiny_llama), *other], folder).exit_code == 0
    pruned = runs_of(folder, *store, "--role", "pruned")[0]
    done = run_cli(["compare", "other", str(pruned["run_id"]), *store], folder)
    assert done.exit_code == 0
    (path,) = (folder / "eval_results").glob("*.md")
    row = next(line for line in path.read_text().splitlines() if line.startswith("| boolq"))
    assert "n/a" in row
    assert "window" in done.stdout


def test_a_broken_model_finishes_and_the_summary_says_where_it_broke(
    workspace: Path, tmp_path: Path
) -> None:
    import torch
    from support.models import tiny_model, tiny_tokenizer

    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    tiny_tokenizer().save_pretrained(tmp_path / "broken")
    done = run_cli(["eval", str(tmp_path / "broken"), *SMALL, "--tasks", "boolq"], tmp_path)
    assert done.exit_code == 0, done.stderr
    assert "BROKEN" in done.stderr
    assert "wikitext2 window 0" in done.stderr
    assert "boolq document 0" in done.stderr
    (run,) = runs_of(tmp_path)
    assert "ppl/wikitext2" not in run["metrics"]  # type: ignore[operator]
    assert "broken" in run_cli(["runs"], tmp_path).stdout


def test_without_a_server_the_record_is_kept_and_sync_sends_it(
    workspace: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    away = ["--tracking-uri", "http://127.0.0.1:9"]
    done = run_cli(["eval", str(tiny_llama), *SMALL, "--skip", "tasks", *away], tmp_path)
    assert done.exit_code == 0, done.stderr
    assert "not tracked" in done.stderr
    assert "prunescope sync" in done.stderr
    (record,) = (tmp_path / "mlruns" / "records").iterdir()
    assert record.name in done.stderr.replace("\n", "")
    shutil.copytree(workspace / "mlruns" / "artifacts", tmp_path / "mlruns" / "artifacts")
    shutil.copy(workspace / "mlruns" / "mlflow.db", tmp_path / "mlruns" / "mlflow.db")
    sent = run_cli(["sync"], tmp_path)
    assert sent.exit_code == 0, sent.stderr
    assert "sent" in sent.stdout
    assert "nothing to send" in run_cli(["sync"], tmp_path).stdout
    assert len(runs_of(tmp_path)) == 3


# --- what bad input gets ------------------------------------------------------------------------


def assert_one_clear_line(done: Finished, *texts: str) -> None:
    assert done.exit_code == 2, done.stdout + done.stderr
    errors = [line for line in done.error_lines if line.startswith("Error: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for text in texts:
        assert text in errors[0]


@pytest.fixture
def broken_copy(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def test_missing_model_folder_names_the_nearest(tiny_llama: Path, tmp_path: Path) -> None:
    wrong = tiny_llama.with_name("tiny-lama")
    done = run_cli(["eval", str(wrong), *SMALL], tmp_path)
    assert_one_clear_line(done, str(wrong), tiny_llama.name)
    assert not any((tmp_path / "mlruns" / "records").iterdir())


def test_folder_without_config(broken_copy: Path, tmp_path: Path) -> None:
    (broken_copy / "config.json").unlink()
    assert_one_clear_line(run_cli(["eval", str(broken_copy), *SMALL], tmp_path), "config.json")


def test_truncated_weights(broken_copy: Path, tmp_path: Path) -> None:
    weights = broken_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    done = run_cli(["eval", str(broken_copy), *SMALL], tmp_path)
    assert_one_clear_line(done, "model.safetensors")


def test_corrupt_weights(broken_copy: Path, tmp_path: Path) -> None:
    (broken_copy / "model.safetensors").write_bytes(b"\xff" * 4096)
    done = run_cli(["eval", str(broken_copy), *SMALL], tmp_path)
    assert_one_clear_line(done, "model.safetensors")


def test_missing_tokenizer(broken_copy: Path, tmp_path: Path) -> None:
    for path in broken_copy.glob("*token*"):
        path.unlink()
    done = run_cli(["eval", str(broken_copy), *SMALL], tmp_path)
    assert_one_clear_line(done, "tokenizer")


def test_unknown_task_names_the_nearest(tiny_llama: Path, tmp_path: Path) -> None:
    done = run_cli(["eval", str(tiny_llama), *SMALL, "--tasks", "bolq"], tmp_path)
    assert_one_clear_line(done, "bolq", "boolq")


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--limit", "0"], "--limit"),
        (["--nsamples", "0"], "--nsamples"),
        (["--num-fewshot", "-1"], "--num-fewshot"),
        (["--batch-size", "many"], "many"),
        (["--seqlen", "1"], "--seqlen"),
        (["--seqlen", "long"], "long"),
        (["--seqlen", "100000"], "256"),
        (["--dtype", "float7"], "float7"),
        (["--skip", "lunch"], "lunch"),
        (["--role", "hero"], "hero"),
        (["--target-sparsity", "50"], "0.5"),
        (["--tag", "novalue"], "novalue"),
        (["--device-map", "everywhere"], "everywhere"),
        (["--device", "cuda"], "cuda"),
        (["--ppl-corpus", "no-such-corpus"], "no-such-corpus"),
        (["--baseline", "no-such-run"], "no-such-run"),
    ],
)
def test_bad_settings(tiny_llama: Path, workspace: Path, options: list[str], found: str) -> None:
    before = sorted((workspace / "mlruns" / "records").iterdir())
    done = run_cli(["eval", str(tiny_llama), *SMALL, *options], workspace)
    assert_one_clear_line(done, found)
    assert sorted((workspace / "mlruns" / "records").iterdir()) == before


def test_unknown_run_lists_the_nearest(workspace: Path, tiny_llama: Path) -> None:
    done = run_cli(["compare", "latest:tiny-lama", "latest:tiny-llama-50"], workspace)
    assert_one_clear_line(done, "tiny-lama", tiny_llama.name)


def test_run_without_a_baseline(workspace: Path, tiny_llama: Path) -> None:
    done = run_cli(["compare", f"latest:{tiny_llama.name}"], workspace)
    assert_one_clear_line(done, "baseline")


@pytest.mark.parametrize("command", [["compare", "a", "b"], ["runs"]])
def test_unreachable_server(command: list[str], tmp_path: Path) -> None:
    done = run_cli([*command, "--tracking-uri", "http://127.0.0.1:9"], tmp_path)
    assert_one_clear_line(done, "127.0.0.1:9")


def test_unwritable_output_folder(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_cli(["compare", "a", "b", "-o", str(tmp_path / "file" / "out")], workspace)
    assert_one_clear_line(done, "file", "--output-dir")


def test_unwritable_working_folder(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "mlruns").write_text("")
    done = run_cli(["eval", str(tiny_llama), *SMALL], tmp_path)
    assert_one_clear_line(done, "mlruns")


@pytest.mark.parametrize("fault", ["missing", "changed", "no manifest"])
def test_damaged_data_folder(tiny_llama: Path, tmp_path: Path, fault: str) -> None:
    rows = Path(shutil.copytree(ROWS, tmp_path / "rows"))
    victim = rows / ("manifest.json" if fault == "no manifest" else "boolq/validation.jsonl")
    if fault == "changed":
        victim.write_text(victim.read_text().replace("a", "b"))
    else:
        victim.unlink()
    options = [*SMALL, "--data-dir", str(rows), "--tasks", "boolq"]
    done = run_cli(["eval", str(tiny_llama), *options], tmp_path)
    assert_one_clear_line(done, victim.name if fault != "no manifest" else "manifest")
