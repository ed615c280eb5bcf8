"""Divergence over the choices and where it hurts, against loops over single documents."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.special import log_softmax
from scipy.stats import entropy
from support.records import EXAMPLES, sample_rows, samples_table

from prunescope.compare.divergence import (
    choice_divergence,
    collapse,
    flips_by_field,
    flips_by_margin,
    worst_documents,
)
from prunescope.compare.pairing import PairedTask
from prunescope.compare.verdict import paired_task
from prunescope.records import samples_path

Rows = list[dict[str, Any]]


def rows_of(task: str) -> tuple[Rows, Rows]:
    return sample_rows(EXAMPLES["original"], task), sample_rows(EXAMPLES["pruned"], task)


def paired(folder: Path, a: Rows, b: Rows, task: str = "hellaswag") -> PairedTask:
    for side, rows in (("a", a), ("b", b)):
        path = samples_path(folder / side, task)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(samples_table(rows), path)
    found = paired_task(task, folder / "a", folder / "b")
    assert found is not None
    return found


def test_divergence_equals_scipys_over_single_documents(tmp_path: Path) -> None:
    a, b = rows_of("hellaswag")
    a[3] = {**a[3], "loglikelihoods": a[3]["loglikelihoods"][:3], "choices": a[3]["choices"][:3]}
    b[3] = {**b[3], "loglikelihoods": b[3]["loglikelihoods"][:3], "choices": b[3]["choices"][:3]}
    kl, variation = [], []
    for x, y in zip(a, b, strict=True):
        p = np.exp(log_softmax(x["loglikelihoods"]))
        q = np.exp(log_softmax(y["loglikelihoods"]))
        kl.append(entropy(p, q))
        variation.append(0.5 * np.abs(p - q).sum())
    found = choice_divergence(paired(tmp_path, a, b))
    assert found is not None and found.n == len(a)
    assert found.kl == pytest.approx(np.mean(kl), rel=1e-10)
    assert found.kl_stderr == pytest.approx(np.std(kl, ddof=1) / math.sqrt(len(kl)), rel=1e-10)
    assert found.total_variation == pytest.approx(np.mean(variation), rel=1e-10)


def test_a_model_does_not_diverge_from_itself(tmp_path: Path) -> None:
    a, _ = rows_of("hellaswag")
    found = choice_divergence(paired(tmp_path, a, a))
    assert found is not None
    assert (found.kl, found.total_variation) == (0.0, 0.0)


def test_documents_without_finite_choices_are_left_out(tmp_path: Path) -> None:
    a, b = rows_of("hellaswag")
    b[0]["loglikelihoods"] = [math.nan] * 4
    b[1]["loglikelihoods"] = [-math.inf] * 4
    a[2]["loglikelihoods"] = b[2]["loglikelihoods"] = [-1.0]
    found = choice_divergence(paired(tmp_path, a, b))
    assert found is not None and found.n == len(a) - 3
    for rows in (a, b):
        for row in rows:
            row["loglikelihoods"] = []
    assert choice_divergence(paired(tmp_path, a, b)) is None


def test_flips_by_margin_equal_a_sort_by_hand(tmp_path: Path) -> None:
    a, b = rows_of("hellaswag")

    def margin(row: dict[str, Any]) -> float:
        ordered = sorted(row["loglikelihoods"])
        return float(ordered[-1] - ordered[-2])

    order = sorted(range(len(a)), key=lambda i: margin(a[i]))
    groups = flips_by_margin(paired(tmp_path, a, b))
    assert sum(g.n for g in groups) == len(a)
    for number, group in enumerate(groups):
        part = order[number * 20 : number * 20 + 20]
        assert group.lost == sum(a[i]["acc"] > b[i]["acc"] for i in part)
        assert group.gained == sum(a[i]["acc"] < b[i]["acc"] for i in part)


def test_flips_by_activity_are_grouped_and_sorted_by_loss(tmp_path: Path) -> None:
    a, b = rows_of("hellaswag")
    for number, row in enumerate(a):
        label = "rare" if number < 5 else f"activity {number % 3}"
        row["document"] = json.dumps({"activity_label": label})
    found = flips_by_field(paired(tmp_path, a, b), least=10)
    assert found is not None and found[0] == "activity_label"
    assert {g.label for g in found[1]} == {f"activity {n}" for n in range(3)}
    assert [g.net for g in found[1]] == sorted(g.net for g in found[1])
    for group in found[1]:
        number = int(group.label[-1])
        part = [i for i in range(5, len(a)) if i % 3 == number]
        assert group.n == len(part)
        assert group.net == pytest.approx(np.mean([b[i]["acc"] - a[i]["acc"] for i in part]))


def test_documents_without_kinds_have_no_groups(tmp_path: Path) -> None:
    assert flips_by_field(paired(tmp_path, *rows_of("hellaswag"))) is None


def test_a_model_that_always_gives_one_answer_is_found(tmp_path: Path) -> None:
    a, b = rows_of("boolq")
    for row in b:
        row["predicted"] = 1
    (found,) = collapse(paired(tmp_path, a, b, "boolq"))
    assert (found.task, found.side, found.choice, found.share) == ("boolq", "pruned", 1, 1.0)
    assert found.gold_share == pytest.approx(np.mean([row["gold"] == 1 for row in b]))


def test_one_answer_that_is_nearly_always_right_is_no_collapse(tmp_path: Path) -> None:
    a, b = rows_of("boolq")
    for row in (*a, *b):
        row["predicted"] = row["gold"] = 0
    assert collapse(paired(tmp_path, a, b, "boolq")) == ()


def test_the_worst_documents_are_those_whose_right_answer_lost_most(tmp_path: Path) -> None:
    a, b = rows_of("hellaswag")
    changes = []
    for x, y in zip(a, b, strict=True):
        p = np.exp(log_softmax(x["loglikelihoods"]))[x["gold"]]
        q = np.exp(log_softmax(y["loglikelihoods"]))[y["gold"]]
        changes.append(q - p)
    order = sorted(range(len(a)), key=lambda i: changes[i])
    found = worst_documents([paired(tmp_path, a, b)])
    assert [d.doc_id for d in found] == order[:20]
    worst = a[order[0]]
    assert found[0].context == worst["context"]
    assert found[0].choices == tuple(worst["choices"])
    assert found[0].gold == worst["gold"]
    assert found[0].pruned_choice == b[order[0]]["predicted"]
    assert found[0].pruned_p - found[0].original_p == pytest.approx(changes[order[0]])
    assert worst_documents([]) == ()
