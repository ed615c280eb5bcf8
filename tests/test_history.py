"""Older results: what each kind of file says, and what it does not."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.cli import ROWS, run_cli
from support.legacy import LEGACY_FILE
from support.server import fresh_store

from prunescope.compare.analysis import compare_directories
from prunescope.compare.comparability import comparable, unchecked
from prunescope.errors import PrunescopeError, RecordError
from prunescope.records import (
    DEFAULT_TASKS,
    SAMPLES_COLUMNS,
    EvalRecord,
    canonical_hash,
    read_record,
    samples_path,
)
from prunescope.tracking.history.importing import ImportedRun, read_results, write_imported
from prunescope.tracking.history.outside import count_documents

DATA = Path(__file__).parent / "data"
HARD = DATA / "legacy" / "comparison_20250402_181500.json"
HARNESS = DATA / "harness" / "results_2025-02-03T04-05-06.000007.json"
LOG = DATA / "harness" / "out" / "example_7b" / "2-4" / "wanda" / "log_wanda.txt"


def records(path: Path) -> list[EvalRecord]:
    return [run.record for run in read_results(path).runs]


def write(run: ImportedRun, folder: Path) -> Path:
    return write_imported(run, None, lambda _: folder)


# --- the older script ---------------------------------------------------------------------------


def test_the_older_script_gives_two_runs_with_their_figures() -> None:
    raw = json.loads(LEGACY_FILE.read_text())
    for record, side in zip(records(LEGACY_FILE), ("original", "pruned"), strict=True):
        old = raw[side]
        assert record.labels.role == side
        assert record.provenance.imported
        assert record.perplexity["wikitext2"].perplexity == old["wikitext_ppl"]
        assert record.sparsity is not None
        assert record.sparsity.linear.fraction == old["sparsity"]
        assert not record.sparsity.total.known
        assert list(record.tasks) == list(DEFAULT_TASKS)
        for name, task in record.tasks.items():
            full = old["tasks"][name]["full_results"]
            assert task.accuracy == full["acc,none"]
            assert task.stderr["acc"] == full["acc_stderr,none"]
            assert task.full_results == full


def test_the_pruned_run_of_a_file_follows_its_original_in_time_and_by_its_baseline() -> None:
    original, pruned = read_results(LEGACY_FILE).runs
    assert pruned.baseline_record_id == original.record.record_id
    assert original.baseline_record_id is None
    ended = datetime(2025, 3, 14, 9, 26, 53).astimezone()
    assert pruned.record.finished_at == ended
    assert pruned.record.started_at == original.record.finished_at
    seconds = (ended - original.record.started_at).total_seconds()
    assert seconds == pytest.approx(2241.5 + 1987.25)
    tags = original.record.labels.tags
    assert tags["prunescope.evaluated_at"] == original.record.started_at.isoformat()


def test_a_files_hard_cases_broken_perplexity_both_pruned_other_tasks() -> None:
    first, second = records(HARD)
    assert (first.labels.role, first.labels.method) == ("pruned", "sparsegpt")
    assert (second.labels.role, second.model.name) == ("pruned", "example-7b-tuned")
    assert math.isnan(first.perplexity["wikitext2"].perplexity)
    assert math.isnan(second.perplexity["wikitext2"].perplexity)
    assert first.broken[0].stage == second.broken[0].stage == "perplexity"
    gsm8k = first.tasks["gsm8k"]
    assert gsm8k.primary == "exact_match.strict-match"
    assert gsm8k.metrics == {
        "exact_match.strict-match": 0.125,
        "exact_match.flexible-extract": 0.25,
    }
    assert gsm8k.stderr["exact_match.flexible-extract"] == 0.0119
    assert second.tasks["gsm8k"].stderr == {}
    assert first.tasks["boolq"].accuracy == 0.61
    assert "rte" not in first.tasks
    assert any("no figures in the file for rte" in note for note in first.provenance.notes)


def test_documents_are_counted_from_a_standard_error_that_fits_and_only_then() -> None:
    p = 2423 / 3270
    error = math.sqrt(p * (1 - p) / 3269)
    assert count_documents({"acc": p}, {"acc": error}) == 3270
    assert count_documents({"acc": p}, {"acc": error * 1.001}) == 0
    assert count_documents({"acc": 1.0}, {"acc": 0.0}) == 0


def test_what_an_imported_run_does_not_know_is_taken_on_trust_and_said(tmp_path: Path) -> None:
    old = records(LEGACY_FILE)[0]
    task = old.tasks["boolq"].model_copy(
        update={"version": "2.0", "num_fewshot": 0, "documents_sha256": "a" * 64}
    )
    window = {"seqlen": 2048, "windows": 141, "corpus_sha256": "b" * 64, "corpus_tokens": 341469}
    fresh = old.model_copy(
        update={
            "tasks": {"boolq": task},
            "perplexity": {"wikitext2": old.perplexity["wikitext2"].model_copy(update=window)},
        }
    )
    assert comparable("task", "boolq", old, fresh) is None
    assert unchecked("task", "boolq", old, fresh) == (
        "task version",
        "few-shot examples",
        "documents",
    )
    assert comparable("perplexity", "wikitext2", old, fresh) is None
    assert "window length" in unchecked("perplexity", "wikitext2", old, fresh)


# --- lm-eval ------------------------------------------------------------------------------------


def test_a_harness_result_says_what_it_knows() -> None:
    (record,) = records(HARNESS)
    model = record.model
    assert (model.requested, model.name, model.hub_id) == ("example/toy-1b", "toy-1b", model.hub_id)
    assert (model.hub_id, model.revision, model.dtype) == ("example/toy-1b", "abc123", "bfloat16")
    assert model.trust_remote_code
    assert record.started_at == datetime.fromtimestamp(1738555200.5, UTC)
    assert record.finished_at is not None
    assert (record.finished_at - record.started_at).total_seconds() == 61.5
    assert record.labels.role is None
    assert record.protocol.limit == 2
    assert (record.protocol.batch_size, record.protocol.seed) == ("8", 1234)
    packages = {"lm_eval": "0.4.7", "transformers": "4.48.0", "torch": "2.5.1"}
    assert record.provenance.packages == packages
    toy, lab = record.tasks["toy"], record.tasks["lab"]
    assert (toy.version, toy.n, toy.num_fewshot) == ("1.0", 2, 2)
    assert toy.higher_is_better == {"acc": True}
    assert (lab.group, lab.subtasks, lab.n) == (True, ("toy", "math"), 3)


def test_harness_samples_become_documents(tmp_path: Path) -> None:
    (run,) = read_results(HARNESS).runs
    write(run, tmp_path)
    table = pq.read_table(samples_path(tmp_path, "toy"))
    assert table.column_names == list(SAMPLES_COLUMNS)
    first, second = table.to_pylist()
    expected = [["sky?", "sky?"], [" red", " blue"], 1]
    assert first["doc_sha256"] == canonical_hash(expected)
    assert (first["context"], first["choices"]) == ("sky?", [" red", " blue"])
    assert first["loglikelihoods"] == [-3.5, -1.25]
    assert (first["lengths"], first["greedy"]) == ([3, 4], [False, True])
    assert (first["gold"], first["predicted"], first["acc"]) == (1, 1, 1.0)
    assert (second["gold"], second["predicted"], second["acc"]) == (0, 1, 0.0)
    (math_row,) = pq.read_table(samples_path(tmp_path, "math")).to_pylist()
    assert math_row["response"] == "2"
    assert json.loads(math_row["metrics"]) == {"exact_match.strict": 1.0}
    settings_text = "{'until': ['\\n'], 'do_sample': False}"
    assert math_row["doc_sha256"] == canonical_hash([["1+1="], [settings_text], "2"])
    hashes = [first["doc_sha256"], second["doc_sha256"]]
    assert run.record.tasks["toy"].documents_sha256 == canonical_hash(hashes)


def test_a_harness_result_without_samples_has_unknown_documents(tmp_path: Path) -> None:
    (tmp_path / HARNESS.name).write_bytes(HARNESS.read_bytes())
    (run,) = read_results(tmp_path / HARNESS.name).runs
    assert run.record.tasks["toy"].documents_sha256 is None
    assert run.evaluation.samples == {}
    (whole,) = read_results(HARNESS).runs
    assert run.record.record_id != whole.record.record_id


@pytest.fixture(scope="module")
def lm_eval_output(
    tiny_llama: Path, empty_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A fresh record directory of a tiny model, and lm-eval's own files of the same tasks."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM

    from prunescope.evaluate.tasks import load_tasks

    folder = tmp_path_factory.mktemp("both")
    options = ["--data-dir", str(ROWS), "--skip", "perplexity,sparsity", "--device", "cpu"]
    fresh_store(empty_database, folder / "mlruns")
    done = run_cli(["eval", str(tiny_llama), *options], folder)
    assert done.exit_code == 0, done.stderr
    (fresh,) = [path.parent for path in folder.glob("mlruns/records/*/record.json")]
    tasks = load_tasks(DEFAULT_TASKS, data_dir=ROWS, num_fewshot=None, seed=0)
    backend = HFLM(pretrained=str(tiny_llama), device="cpu", dtype="float32", batch_size=4)
    tracker = EvaluationTracker(output_path=str(folder / "lm-eval"))
    results: Any = simple_evaluate(
        backend, tasks=list(tasks.leaves.values()), evaluation_tracker=tracker
    )
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for name, rows in samples.items():
        tracker.save_results_samples(task_name=name, samples=rows)
    (written,) = (folder / "lm-eval").rglob("results_*.json")
    return fresh, written


def test_lm_evals_own_files_pair_with_a_fresh_evaluation(
    lm_eval_output: tuple[Path, Path], tmp_path: Path
) -> None:
    fresh_dir, written = lm_eval_output
    (run,) = read_results(written).runs
    imported_dir = write(run, tmp_path / "imported")
    fresh, imported = read_record(fresh_dir), read_record(imported_dir)
    assert set(imported.tasks) == set(DEFAULT_TASKS)
    for name in DEFAULT_TASKS:
        ours, theirs = fresh.tasks[name], imported.tasks[name]
        assert theirs.documents_sha256 == ours.documents_sha256, name
        assert (theirs.version, theirs.n, theirs.num_fewshot) == (
            ours.version,
            ours.n,
            ours.num_fewshot,
        )
        assert theirs.metrics == pytest.approx(ours.metrics)
        assert unchecked("task", name, fresh, imported) == ()
        a = pq.read_table(samples_path(fresh_dir, name)).to_pylist()
        b = pq.read_table(samples_path(imported_dir, name)).to_pylist()
        same = ("doc_id", "doc_sha256", "context", "choices", "gold", "predicted", "lengths", "acc")
        for key in same:
            assert [row[key] for row in a] == [row[key] for row in b], (name, key)
    comparison = compare_directories(fresh_dir, imported_dir)
    assert comparison.analysis is not None
    suite = comparison.analysis.suite
    assert suite is not None
    assert len(suite.tasks) == len(DEFAULT_TASKS)
    for task in suite.tasks:
        assert task.method in ("paired", "clustered")
        assert task.flips is not None
        assert (task.flips.lost, task.flips.gained) == (0, 0)


# --- wanda --------------------------------------------------------------------------------------


def test_a_pruning_log_gives_method_sparsity_and_perplexity() -> None:
    (record,) = records(LOG)
    assert (record.labels.role, record.labels.method) == ("pruned", "wanda")
    assert record.labels.pattern == "2:4"
    assert record.model.name == "example_7b"
    assert record.sparsity is not None
    assert record.sparsity.linear.fraction == 0.5
    assert record.perplexity["wikitext2"].perplexity == 9.8765
    assert record.perplexity["wikitext2"].seqlen == 0


def test_a_kept_output_of_the_pruning_code_gives_its_zero_shot_results(tmp_path: Path) -> None:
    path = tmp_path / "stdout.txt"
    path.write_text(
        "loading llm model example/toy-7b\nsparsity sanity check 0.0000\n"
        "wikitext perplexity 6.125\nzero_shot evaluation results\n"
        "{'results': {'rte': {'acc': 0.5, 'acc_stderr': 0.125}, 'boolq': {'acc': nan}}, "
        "'versions': {'rte': 0}}\n"
    )
    (record,) = records(path)
    assert (record.labels.role, record.labels.method) == ("original", None)
    assert record.model.requested == "example/toy-7b"
    assert record.tasks["rte"].metrics == {"acc": 0.5}
    assert record.tasks["rte"].version == "0"
    assert math.isnan(record.tasks["boolq"].metrics["acc"])


# --- everything else ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.json", b""),
        ("list.json", b"[1, 2]"),
        ("half.json", b'{"original": {"tasks"'),
        ("binary.json", b"\xff\xfe\x00"),
        ("other.json", b'{"results": 3}'),
        ("notes.txt", b"nothing here"),
        ("deep.json", b"[" * 100_000),
        ("comparison.json", b'{"original": {"tasks": {}}, "pruned": {"tasks": {}}}'),
        ("report.json", b'{"schema_version": 1, "original": {}, "pruned": {}}'),
    ],
)
def test_a_file_that_is_something_else_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RecordError, match=name):
        read_results(path)


def test_the_same_content_is_the_same_record_wherever_it_lies(tmp_path: Path) -> None:
    copy = tmp_path / "comparison_20250314_092653.json"
    copy.write_bytes(LEGACY_FILE.read_bytes())
    assert [r.record_id for r in records(copy)] == [r.record_id for r in records(LEGACY_FILE)]
    copy.write_bytes(LEGACY_FILE.read_bytes() + b"\n")
    assert records(copy)[0].record_id != records(LEGACY_FILE)[0].record_id


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)


@st.composite
def damaged(draw: st.DrawFn, path: Path) -> str:
    """A good file with some of its values replaced by anything."""
    raw = json.loads(path.read_text())
    for _ in range(draw(st.integers(1, 3))):
        place: Any = raw
        while isinstance(place, dict) and place:
            key = draw(st.sampled_from(sorted(place)))
            if draw(st.booleans()) or not isinstance(place[key], dict):
                place[key] = draw(JSON)
                break
            place = place[key]
    return json.dumps(raw)


FUZZ = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(
    text=damaged(HARD) | damaged(HARNESS) | damaged(LEGACY_FILE) | JSON.map(json.dumps),
    sample=st.none() | JSON.map(json.dumps),
)
def test_only_our_errors_come_out_of_a_damaged_result(
    tmp_path: Path, text: str, sample: str | None
) -> None:
    path = tmp_path / HARNESS.name
    path.write_text(text)
    for name in ("toy", "math"):
        beside = tmp_path / f"samples_{name}_2025-02-03T04-05-06.000007.jsonl"
        beside.write_text(
            sample if sample is not None else (HARNESS.parent / beside.name).read_text()
        )
    try:
        for run in read_results(path).runs:
            write(run, tmp_path / "out")
            read_record(tmp_path / "out")
    except PrunescopeError:
        pass


@st.composite
def damaged_sample(draw: st.DrawFn) -> str:
    lines = (HARNESS.parent / f"samples_toy_{HARNESS.stem.partition('_')[2]}.jsonl").read_text()
    row = json.loads(lines.splitlines()[0])
    row[draw(st.sampled_from(sorted(row)))] = draw(JSON)
    return json.dumps(row)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**30])
def test_a_document_number_beyond_64_bits_is_damage(tmp_path: Path, number: int) -> None:
    path = tmp_path / HARNESS.name
    path.write_bytes(HARNESS.read_bytes())
    name = f"samples_toy_{HARNESS.stem.partition('_')[2]}.jsonl"
    row = json.loads((HARNESS.parent / name).read_text().splitlines()[0])
    (tmp_path / name).write_text(json.dumps({**row, "doc_id": number}))
    with pytest.raises(PrunescopeError, match="64 bits"):
        for run in read_results(path).runs:
            write(run, tmp_path / "out")


@FUZZ
@given(sample=damaged_sample())
def test_only_our_errors_come_out_of_damaged_samples(tmp_path: Path, sample: str) -> None:
    path = tmp_path / HARNESS.name
    path.write_bytes(HARNESS.read_bytes())
    beside = tmp_path / f"samples_toy_{HARNESS.stem.partition('_')[2]}.jsonl"
    beside.write_text(sample)
    try:
        (run,) = read_results(path).runs
        write(run, tmp_path / "out")
        read_record(tmp_path / "out")
    except PrunescopeError:
        pass


@FUZZ
@given(
    content=st.binary(max_size=200)
    | st.text(st.characters(codec="utf-8"), max_size=200).map(str.encode)
)
def test_only_our_errors_come_out_of_a_damaged_log(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log_wanda.txt"
    path.write_bytes(b"method\tactual_sparsity\tppl_test\nwanda\t0.5\t7.0\n{'results'" + content)
    if _is_text(content):
        assert len(records(path)) == 1
    path.write_bytes(content)
    with pytest.raises(PrunescopeError):
        read_results(path)


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
