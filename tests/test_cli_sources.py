"""What ``eval`` takes as a model and as data, and where the runs can go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.cli import ROWS, SMALL, run_cli
from support.loading import write_gguf
from support.models import tiny_model, tiny_tokenizer

from prunescope.records import EvalRecord, read_record

QUICK = [*SMALL, "--tasks", "arc_easy", "--nsamples", "2"]


def record_in(folder: Path) -> EvalRecord:
    (directory,) = (folder / "mlruns" / "records").iterdir()
    return read_record(directory)


@pytest.fixture
def workspace(empty_store: Path, tmp_path: Path) -> Path:
    """A folder with an empty embedded store, which takes seconds to make."""
    folder = tmp_path / "work"
    (folder / "mlruns").mkdir(parents=True)
    (folder / "mlruns" / "mlflow.db").write_bytes((empty_store / "mlflow.db").read_bytes())
    return folder


def test_a_gguf_file_is_evaluated_and_recognised_again(workspace: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    command = ["eval", str(tmp_path / "tiny.gguf"), *QUICK]
    command += ["--tokenizer", str(tmp_path / "tokenizer")]
    done = run_cli(command, workspace)
    assert done.exit_code == 0, done.stderr
    record = record_in(workspace)
    assert record.model.kind == "gguf"
    assert record.sparsity is not None
    assert record.sparsity.linear.parameters > 10_000
    assert record.model.weights_sha256 != record.model.source_sha256
    assert record.tasks["arc_easy"].n == 4
    again = run_cli(command, workspace)
    assert "finished before" in again.stderr


def test_an_adapter_is_merged_and_the_record_says_so(
    workspace: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(tiny_model(), settings)
    adapted.peft_config["default"].base_model_name_or_path = str(tiny_llama)
    adapted.save_pretrained(tmp_path / "adapter")
    done = run_cli(["eval", str(tmp_path / "adapter"), *QUICK], workspace)
    assert done.exit_code == 0, done.stderr
    adapter = record_in(workspace)
    assert adapter.model.kind == "peft"
    assert adapter.model.adapter_of == str(tiny_llama)
    assert any("merged" in note for note in adapter.provenance.notes)
    base = run_cli(["eval", str(tiny_llama), *QUICK, "--experiment", "base"], workspace)
    assert "finished before" not in base.stderr
    runs = json.loads(run_cli(["runs", "--json"], workspace).stdout)
    assert runs[0]["metrics"]["ppl/wikitext2"] != runs[1]["metrics"]["ppl/wikitext2"]


def test_perplexity_over_a_text_file_names_the_file(
    workspace: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    text = "The river runs through the old town. " * 40
    (tmp_path / "notes.txt").write_text(text)
    options = [*SMALL, "--skip", "tasks", "--ppl-corpus", str(tmp_path / "notes.txt")]
    done = run_cli(["eval", str(tiny_llama), *options], workspace)
    assert done.exit_code == 0, done.stderr
    (corpus,) = record_in(workspace).perplexity
    assert corpus.startswith("notes")


def test_any_other_task_and_a_yaml_of_the_users_own(
    workspace: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    rows = [{"q": f"{a} and {b} make", "c": ["two", "many"], "a": 0} for a, b in ("xy", "zw")]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    task = tmp_path / "sums.yaml"
    task.write_text(
        f"task: sums\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: '{{q}}'\n"
        "doc_to_choice: '{{c}}'\ndoc_to_target: '{{a}}'\n"
        "metric_list:\n  - metric: acc\nmetadata:\n  version: 7\n"
    )
    command = ["eval", str(tiny_llama), "--tasks", str(task), "--skip", "perplexity"]
    done = run_cli([*command, "--device", "cpu"], workspace)
    assert done.exit_code == 0, done.stderr
    result = record_in(workspace).tasks["sums"]
    assert (result.n, result.version) == (2, "7")
    assert "acc" in result.metrics


def test_without_hub_and_folder_the_error_is_clear_and_comes_at_once(
    workspace: Path, tiny_llama: Path
) -> None:
    began = time.monotonic()
    done = run_cli(["eval", str(tiny_llama), "--device", "cpu", "--tasks", "boolq"], workspace)
    assert done.exit_code == 2
    assert time.monotonic() - began < 20
    assert "--data-dir" in done.stderr
    assert "Traceback" not in done.stderr


def test_runs_on_a_real_server_are_tracked_recognised_and_compared(
    mlflow_server: str, tmp_path: Path, tiny_llama: Path, tiny_llama_pruned: Path
) -> None:
    server = ["--tracking-uri", mlflow_server]
    labels = ["--experiment", "sources", "--run-name"]
    first = run_cli(["eval", str(tiny_llama), *QUICK, *server, *labels, "the original"], tmp_path)
    assert first.exit_code == 0, first.stderr
    assert f"{mlflow_server}/#/experiments/" in first.stderr
    assert "workflowType=machine_learning" in first.stderr
    options = [*QUICK, *server, *labels, "the pruned", "--baseline", "the original"]
    assert run_cli(["eval", str(tiny_llama_pruned), *options], tmp_path).exit_code == 0
    # Elsewhere, with nothing on disk: the server alone knows.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    again = run_cli(["eval", str(tiny_llama), *QUICK, *server], elsewhere)
    assert "finished before" in again.stderr
    done = run_cli(["compare", "the pruned", *server], elsewhere)
    assert done.exit_code == 0, done.stderr
    assert "arc_easy" in done.stdout
    assert "Verdict" in done.stdout
    assert list((elsewhere / "eval_results").glob("comparison_*.md"))


def test_a_store_and_a_server_can_be_compared_through_record_folders(
    workspace: Path, tiny_llama: Path, tiny_llama_pruned: Path
) -> None:
    folders: list[str] = []
    for model in (tiny_llama, tiny_llama_pruned):
        assert run_cli(["eval", str(model), *QUICK], workspace).exit_code == 0
        known = {str(path) for path in (workspace / "mlruns" / "records").iterdir()}
        folders += sorted(known - set(folders))
    done = run_cli(["compare", *folders], workspace)
    assert done.exit_code == 0, done.stderr
    assert "50.00%" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_knows_the_commands(shell: str) -> None:
    environment: dict[str, Any] = {**os.environ, "_PRUNESCOPE_COMPLETE": f"source_{shell}"}
    program = "from prunescope.cli import app; app(prog_name='prunescope')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "_PRUNESCOPE_COMPLETE" in done.stdout, done.stderr


def test_the_rows_of_the_tests_are_a_data_folder_that_verifies(tmp_path: Path) -> None:
    done = run_cli(["data", "verify", str(ROWS)], tmp_path)
    assert done.exit_code == 0, done.stderr
    assert "boolq/validation.jsonl" in done.stdout
