"""Which figures may be subtracted, and what is said of those that may not."""

from __future__ import annotations

import pytest
from support.records import original_record, other_window_record, pruned_record

from prunescope.compare.comparability import comparable, protocol_differences, unchecked
from prunescope.records import EvalRecord, Protocol, TaskResult


def task(record: EvalRecord, **changes: object) -> EvalRecord:
    changed = record.tasks["boolq"].model_copy(update=changes)
    return record.model_copy(update={"tasks": {**record.tasks, "boolq": changed}})


def protocol(record: EvalRecord, **changes: object) -> EvalRecord:
    return record.model_copy(update={"protocol": record.protocol.model_copy(update=changes)})


def perplexity(record: EvalRecord, **changes: object) -> EvalRecord:
    changed = record.perplexity["wikitext2"].model_copy(update=changes)
    return record.model_copy(update={"perplexity": {"wikitext2": changed}})


def tokenizer(record: EvalRecord, sha256: str | None) -> EvalRecord:
    model = record.model.model_copy(update={"tokenizer_sha256": sha256})
    return record.model_copy(update={"model": model})


def test_the_same_protocol_is_comparable() -> None:
    for name in original_record().tasks:
        assert comparable("task", name, original_record(), pruned_record()) is None
    assert comparable("perplexity", "wikitext2", original_record(), pruned_record()) is None
    assert unchecked("task", "boolq", original_record(), pruned_record()) == ()
    assert unchecked("perplexity", "wikitext2", original_record(), pruned_record()) == ()
    assert protocol_differences(original_record(), pruned_record()) == ()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (task(pruned_record(), version="2.0"), "task version: original 1.0, pruned 2.0"),
        (task(pruned_record(), num_fewshot=5), "few-shot examples: original 0, pruned 5"),
        (task(pruned_record(), primary="f1"), "primary metric: original acc, pruned f1"),
        (
            task(pruned_record(), documents_sha256="f" * 64, n=59),
            "documents: original 60, pruned 59",
        ),
        (
            protocol(task(pruned_record(), documents_sha256="f" * 64, n=10), limit=10),
            "limit: original none, pruned 10",
        ),
        (
            task(pruned_record(), version="2.0", num_fewshot=5, documents_sha256="f" * 64),
            "task version: original 1.0, pruned 2.0; few-shot examples: original 0, pruned 5",
        ),
    ],
    ids=["version", "few-shot", "metric", "documents", "limit", "causes alone"],
)
def test_a_task_is_refused_with_both_sides_values(changed: EvalRecord, reason: str) -> None:
    assert comparable("task", "boolq", original_record(), changed) == reason
    swapped = comparable("task", "boolq", changed, original_record())
    assert swapped is not None and swapped != reason


def test_other_documents_of_the_same_number_are_told_apart_by_hash() -> None:
    changed = task(pruned_record(), documents_sha256="f" * 64)
    own = (original_record().tasks["boolq"].documents_sha256 or "")[:8]
    assert comparable("task", "boolq", original_record(), changed) == (
        f"documents: original 60 ({own}), pruned 60 (ffffffff)"
    )


def test_limits_that_cover_the_same_documents_do_not_refuse() -> None:
    changed = protocol(pruned_record(), limit=10_000)
    assert comparable("task", "boolq", original_record(), changed) is None
    assert [d.what for d in protocol_differences(original_record(), changed)] == ["limit"]


def test_what_one_side_lacks_is_named() -> None:
    changed = pruned_record().model_copy(update={"tasks": {}, "perplexity": {}})
    assert comparable("task", "boolq", original_record(), changed) == (
        "not evaluated in the pruned run"
    )
    assert comparable("task", "boolq", changed, original_record()) == (
        "not evaluated in the original run"
    )
    assert comparable("perplexity", "wikitext2", original_record(), changed) == (
        "not evaluated in the pruned run"
    )


def test_a_perplexity_of_another_corpus_is_named() -> None:
    other = original_record().perplexity["wikitext2"].model_copy(update={"corpus": "c4"})
    changed = pruned_record().model_copy(update={"perplexity": {"c4": other}})
    assert comparable("perplexity", "wikitext2", original_record(), changed) == (
        "not evaluated in the pruned run (it has c4)"
    )


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (other_window_record(), "window length: original 32, pruned 64"),
        (perplexity(pruned_record(), windows=3), "windows: original 6, pruned 3"),
        (
            tokenizer(perplexity(pruned_record(), corpus_tokens=180), "f" * 64),
            "tokenizer: original 197 tokens of the corpus, pruned 180 tokens of the corpus",
        ),
    ],
    ids=["window length", "windows", "tokenizer"],
)
def test_a_perplexity_is_refused_with_both_sides_values(changed: EvalRecord, reason: str) -> None:
    assert comparable("perplexity", "wikitext2", original_record(), changed) == reason


def test_a_perplexity_over_another_text_is_refused() -> None:
    changed = perplexity(pruned_record(), corpus_sha256="f" * 64, corpus_tokens=12)
    own = original_record().perplexity["wikitext2"].corpus_sha256[:8]
    assert comparable("perplexity", "wikitext2", original_record(), changed) == (
        f"corpus text: original {own}, pruned ffffffff"
    )


def test_a_tokenizer_written_anew_that_cuts_the_text_alike_does_not_refuse() -> None:
    changed = tokenizer(pruned_record(), "f" * 64)
    assert comparable("perplexity", "wikitext2", original_record(), changed) is None
    assert [d.what for d in protocol_differences(original_record(), changed)] == ["tokenizer"]


def test_what_one_side_does_not_know_is_taken_on_trust_and_named() -> None:
    changed = task(pruned_record(), version="", documents_sha256=None, n=0, num_fewshot=None)
    changed = changed.model_copy(update={"protocol": Protocol()})
    assert comparable("task", "boolq", original_record(), changed) is None
    assert unchecked("task", "boolq", original_record(), changed) == (
        "task version",
        "few-shot examples",
        "documents",
    )


def test_a_group_is_refused_when_a_member_is() -> None:
    group = TaskResult(
        task="suite", version="1", n=60, primary="acc", metrics={"acc": 0.5}, group=True,
        subtasks=("boolq", "rte"),
    )  # fmt: skip

    def add(record: EvalRecord) -> EvalRecord:
        return record.model_copy(update={"tasks": {**record.tasks, "suite": group}})

    assert comparable("task", "suite", add(original_record()), add(pruned_record())) is None
    changed = add(task(pruned_record(), version="2.0"))
    assert comparable("task", "suite", add(original_record()), changed) == (
        "boolq: task version: original 1.0, pruned 2.0"
    )


def test_settings_that_refuse_nothing_are_still_told() -> None:
    changed = protocol(pruned_record(), dtype="bfloat16", batch_size="32", scorer="lm-eval-hf")
    assert comparable("task", "boolq", original_record(), changed) is None
    assert [str(d) for d in protocol_differences(original_record(), changed)] == [
        "dtype: original float32, pruned bfloat16",
        "scorer: original prefix-tree, pruned lm-eval-hf",
        "batch size: original 8, pruned 32",
    ]
