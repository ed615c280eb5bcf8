"""Documents of two runs matched by what was scored, and the verdict over them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats
from support.records import (
    DOCUMENTS,
    EXAMPLES,
    original_record,
    pruned_record,
    sample_rows,
    samples_table,
    write_example,
)

from prunescope.compare.delta import compare_records
from prunescope.compare.pairing import choice_rows, pair_samples, read_samples
from prunescope.compare.verdict import paired_task, suite_statistics
from prunescope.errors import RecordError
from prunescope.records import DEFAULT_TASKS, samples_path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    write_example(folder / "a", "original")
    write_example(folder / "b", "pruned")
    return folder / "a", folder / "b"


def write_samples(directory: Path, task: str, rows: list[dict[str, Any]]) -> None:
    path = samples_path(directory, task)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(samples_table(rows), path, compression="zstd")


def test_what_was_written_is_read(runs: tuple[Path, Path]) -> None:
    rows = sample_rows(EXAMPLES["original"], "hellaswag")
    found = read_samples(runs[0], "hellaswag")
    assert found is not None
    assert list(found.sha256) == [row["doc_sha256"] for row in rows]
    assert list(found.gold) == [row["gold"] for row in rows]
    assert list(found.predicted) == [row["predicted"] for row in rows]
    acc_norm = found.score("acc_norm")
    assert acc_norm is not None
    assert list(acc_norm) == [row["acc_norm"] for row in rows]
    read = [list(values) for values in choice_rows(found, range(len(rows)))]
    assert read == [row["loglikelihoods"] for row in rows]
    assert found.documents[3] == json.loads(rows[3]["document"])


def test_a_metric_that_has_no_column_comes_from_the_documents_metrics(tmp_path: Path) -> None:
    rows = sample_rows(EXAMPLES["original"], "rte")
    for number, row in enumerate(rows):
        row["metrics"] = json.dumps({"f1": number / 100})
    write_samples(tmp_path, "rte", rows)
    found = read_samples(tmp_path, "rte")
    assert found is not None
    f1 = found.score("f1")
    assert f1 is not None
    np.testing.assert_array_equal(f1, np.arange(len(rows)) / 100)
    assert found.score("bleu") is None


def test_documents_in_another_order_are_matched_by_hash(tmp_path: Path) -> None:
    a = sample_rows(EXAMPLES["original"], "boolq")
    b = sample_rows(EXAMPLES["pruned"], "boolq")
    write_samples(tmp_path / "a", "boolq", a)
    shuffled = random.Random(4).sample(b, len(b))
    write_samples(tmp_path / "b", "boolq", shuffled)
    pair = paired_task("boolq", tmp_path / "a", tmp_path / "b")
    assert pair is not None and pair.complete
    scores = pair.scores("acc")
    assert scores is not None
    assert list(scores[0]) == [row["acc"] for row in a]
    assert list(scores[1]) == [row["acc"] for row in b]


def test_only_shared_documents_are_paired(tmp_path: Path) -> None:
    a = sample_rows(EXAMPLES["original"], "boolq")
    write_samples(tmp_path / "a", "boolq", a[:40])
    write_samples(tmp_path / "b", "boolq", a[25:])
    pair = paired_task("boolq", tmp_path / "a", tmp_path / "b")
    assert pair is not None and not pair.complete
    assert len(pair) == 15
    assert list(pair.original_rows) == list(range(25, 40))
    assert list(pair.pruned_rows) == list(range(15))


def test_equal_documents_are_matched_one_to_one(tmp_path: Path) -> None:
    row = sample_rows(EXAMPLES["original"], "boolq")[0]
    other = sample_rows(EXAMPLES["original"], "boolq")[1]
    write_samples(tmp_path / "a", "boolq", [row, row, other])
    write_samples(tmp_path / "b", "boolq", [other, row, row, row])
    pair = paired_task("boolq", tmp_path / "a", tmp_path / "b")
    assert pair is not None
    assert list(pair.original_rows) == [0, 1, 2]
    assert list(pair.pruned_rows) == [1, 2, 0]


def test_documents_that_share_a_passage_are_one_cluster(tmp_path: Path) -> None:
    rows = sample_rows(EXAMPLES["original"], "boolq")
    for number, row in enumerate(rows):
        row["document"] = json.dumps({"question": str(number), "passage": f"text {number // 3}"})
    write_samples(tmp_path, "boolq", rows)
    found = read_samples(tmp_path, "boolq")
    assert found is not None and found.clusters is not None
    expected = np.arange(len(rows)) // 3
    same = found.clusters[:, None] == found.clusters[None, :]
    np.testing.assert_array_equal(same, expected[:, None] == expected[None, :])
    plain = read_samples_of(tmp_path, "rte")
    assert plain.clusters is None


def read_samples_of(folder: Path, task: str) -> Any:
    write_samples(folder, task, sample_rows(EXAMPLES["original"], task))
    found = read_samples(folder, task)
    assert found is not None
    return found


def test_a_damaged_file_is_one_clear_error(tmp_path: Path) -> None:
    path = samples_path(tmp_path, "rte")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PAR1 no parquet PAR1")
    with pytest.raises(RecordError, match=r"documents of rte at .*rte\.parquet cannot be read"):
        read_samples(tmp_path, "rte")


def test_a_record_without_documents_has_none(tmp_path: Path) -> None:
    assert read_samples(tmp_path, "rte") is None
    assert paired_task("rte", None, tmp_path) is None


# --- the verdict over real documents ------------------------------------------------------------


def test_each_task_is_judged_by_its_documents(runs: tuple[Path, Path]) -> None:
    comparison = compare_records(original_record(), pruned_record())
    suite = suite_statistics(comparison, *runs)
    assert suite is not None
    assert [task.task for task in suite.tasks] == list(DEFAULT_TASKS)
    for row, task in zip(comparison.tasks, suite.tasks, strict=True):
        a = np.array([r["acc"] for r in sample_rows(EXAMPLES["original"], task.task)])
        b = np.array([r["acc"] for r in sample_rows(EXAMPLES["pruned"], task.task)])
        assert task.method == "paired"
        assert task.estimate.n == DOCUMENTS[task.task]
        assert task.estimate.value == pytest.approx(row.difference, abs=1e-12)
        interval = stats.ttest_rel(b, a).confidence_interval()
        assert (task.estimate.low, task.estimate.high) == pytest.approx(tuple(interval))
        assert task.flips is not None
        assert task.flips.lost == int(((a == 1) & (b == 0)).sum())
        assert task.p_mcnemar == task.p_value <= task.p_holm
    assert suite.mean.value == pytest.approx(comparison.average.difference, abs=1e-12)
    assert suite.lost - suite.gained == pytest.approx(
        -sum(t.estimate.value * t.estimate.n for t in suite.tasks)
    )
    assert suite.verdict == "worse"


def test_shared_passages_take_the_verdict_from_the_clustered_error(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    for name in ("original", "pruned"):
        rows = sample_rows(EXAMPLES[name], "boolq")
        for number, row in enumerate(rows):
            row["document"] = json.dumps({"passage": f"text {number // 6}"})
        write_samples(tmp_path / name, "boolq", rows)
    comparison = compare_records(original_record(), pruned_record())
    suite = suite_statistics(comparison, tmp_path / "original", tmp_path / "pruned")
    assert suite is not None
    boolq, rte = suite.tasks[0], suite.tasks[1]
    assert (boolq.method, boolq.estimate.clusters) == ("clustered", 10)
    assert boolq.p_value == boolq.estimate.p_value != boolq.p_mcnemar
    assert rte.method == "unpaired"  # no documents of it in these folders


def test_without_documents_the_standard_errors_are_used_and_told() -> None:
    comparison = compare_records(original_record(), pruned_record())
    suite = suite_statistics(comparison, None, None)
    assert suite is not None
    for row, task in zip(comparison.tasks, suite.tasks, strict=True):
        assert task.method == "unpaired"
        assert task.flips is None and task.p_mcnemar is None
        assert task.estimate.stderr == pytest.approx(
            np.hypot(row.original_stderr, row.pruned_stderr)
        )
    assert suite.p_pooled is None


def test_equal_answers_are_never_better_or_worse(runs: tuple[Path, Path]) -> None:
    comparison = compare_records(original_record(), original_record())
    suite = suite_statistics(comparison, runs[0], runs[0])
    assert suite is not None
    assert {task.p_holm for task in suite.tasks} == {1.0}
    # Forty documents cannot show that two models are the same to within a point.
    assert {task.verdict for task in suite.tasks} == {"unclear"}
    wide = suite_statistics(comparison, runs[0], runs[0], margin=0.08)
    assert wide is not None
    assert {task.verdict for task in wide.tasks} == {"same"}


def test_pairs_are_taken_in_the_originals_order(runs: tuple[Path, Path]) -> None:
    a, b = (read_samples(run, "rte") for run in runs)
    assert a is not None and b is not None
    pair = pair_samples(a, b)
    assert list(pair.gold()) == list(a.gold)
    assert pair.task == "rte"
