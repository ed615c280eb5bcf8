"""A record as the fields of an MLflow run."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.legacy import legacy_record
from support.records import (
    broken_record,
    failed_record,
    original_record,
    other_window_record,
    pruned_record,
)

from prunescope.records import Alarm, EvalRecord, Labels, TaskResult
from prunescope.tracking import codec
from prunescope.tracking.codec import encode, headline, metric_points, params, run_color, run_name
from prunescope.tracking.links import redact, redact_uri, run_path
from prunescope.tracking.notes import compose_note, plain_line
from prunescope.tracking.runs import filter_string
from prunescope.tracking.samples import share_rows
from prunescope.tracking.view import View, read_view, view_value


def with_labels(record: EvalRecord, **labels: Any) -> EvalRecord:
    known = {**record.labels.model_dump(), **labels}
    return record.model_copy(update={"labels": Labels.model_validate(known)})


def with_task(name: str, **fields: Any) -> EvalRecord:
    """A record whose only task is this one."""
    given = {"task": name, "version": "1", "n": 10, "primary": "acc", "metrics": {"acc": 0.5}}
    task = TaskResult.model_validate({**given, **fields})
    return original_record().model_copy(update={"tasks": {name: task}, "perplexity": {}})


def values(record: EvalRecord, **extra: float) -> dict[str, float]:
    points, _ = metric_points(record, extra)
    return {point.name: point.value for point in points if point.name != "layers/sparsity"}


# --- metrics ------------------------------------------------------------------------------------


def test_metrics_are_named_and_valued_as_the_design_says() -> None:
    record = pruned_record()
    found = values(record, **{"delta/mean_points": -10.6, "delta/ppl_ratio": 1.6})
    hellaswag = record.tasks["hellaswag"]
    assert found["ppl/wikitext2"] == record.perplexity["wikitext2"].perplexity
    assert found["sparsity/linear"] == 0.5
    assert 0 < found["sparsity/total"] < 0.5
    assert found["acc/hellaswag"] == hellaswag.metrics["acc"]
    assert found["acc_norm/hellaswag"] == hellaswag.metrics["acc_norm"]
    assert found["stderr/acc/hellaswag"] == hellaswag.stderr["acc"]
    assert found["stderr/acc_norm/hellaswag"] == hellaswag.stderr["acc_norm"]
    assert found["pct/boolq"] == 68.333  # 41 of 60
    assert found["acc/mean"] == record.mean_accuracy
    assert found["pct/mean"] == 45.476
    assert found["delta/mean_points"] == -10.6
    assert found["delta/ppl_ratio"] == 1.6
    assert found["time/tasks_s"] == 125.5
    assert found["tokens_per_s"] == 812.5
    assert "acc_norm/boolq" not in found


def test_all_steps_are_zero_but_those_of_the_layers() -> None:
    points, _ = metric_points(pruned_record())
    assert {p.step for p in points if p.name != "layers/sparsity"} == {0}
    assert [(p.step, p.value) for p in points if p.name == "layers/sparsity"] == [
        (0, 0.5),
        (1, 0.5),
    ]


def test_a_value_that_is_not_finite_is_left_out_and_told() -> None:
    points, broken = metric_points(broken_record(), {"delta/ppl_ratio": math.inf})
    assert all(math.isfinite(point.value) for point in points)
    assert broken == ("ppl/wikitext2", "delta/ppl_ratio")
    tag = encode(broken_record()).tags["prunescope.broken"]
    assert "wikitext2 window 3 (NaN logits)" in tag
    assert "ppl/wikitext2" in tag


def test_the_filter_of_a_metric_stands_behind_the_task() -> None:
    record = with_task(
        "gsm8k", primary="exact_match.strict-match", metrics={"exact_match.strict-match": 0.25}
    )
    found = values(record)
    assert found["exact_match/gsm8k.strict-match"] == 0.25
    assert found["pct/gsm8k"] == 25.0


def test_a_perplexity_task_has_no_percentage_and_spoils_the_mean_one() -> None:
    record = with_task(
        "wikitext",
        primary="word_perplexity",
        metrics={"word_perplexity": 11.5},
        higher_is_better={"word_perplexity": False},
    )
    found = values(record)
    assert found["word_perplexity/wikitext"] == 11.5
    assert not [name for name in found if name.startswith("pct/")]


def test_names_that_mlflow_cannot_tell_apart_keep_both_values() -> None:
    one, other = with_task("a@b"), with_task("a,b", metrics={"acc": 0.75})
    both = one.model_copy(update={"tasks": {**one.tasks, **other.tasks}})
    found = values(both)
    assert sorted(v for k, v in found.items() if k.startswith("acc/a")) == [0.5, 0.75]


def test_a_corpus_that_is_a_path_stays_one_section() -> None:
    record = original_record()
    result = record.perplexity["wikitext2"]
    path = "/data/my corpus.txt"
    found = values(record.model_copy(update={"perplexity": {path: result}}))
    assert found["ppl/_data_my corpus.txt"] == result.perplexity


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=400), st.text(max_size=60))
def test_mlflow_accepts_every_name(task: str, tag: str) -> None:
    from mlflow.utils.validation import _validate_metric_name, _validate_tag_name

    record = with_labels(with_task(task or "t"), tags={tag or "k": "v"})
    fields = encode(record)
    for point in fields.metrics:
        _validate_metric_name(point.name)
        assert len(point.name) <= codec.MAX_KEY
    for name in fields.tags:
        _validate_tag_name(name)
    assert sum(point.name.startswith("acc/") for point in fields.metrics) == 2  # task and mean


def test_different_letters_that_mlflow_has_not_give_different_names() -> None:
    one, other = values(with_task("中文")), values(with_task("英文"))
    assert {n for n in one if n.startswith("pct/")} != {n for n in other if n.startswith("pct/")}


# --- params and tags ----------------------------------------------------------------------------


def test_params_are_the_settings_that_matter() -> None:
    assert params(pruned_record()) == {
        "tasks": "boolq,rte,hellaswag,winogrande,arc_easy,arc_challenge,openbookqa",
        "limit": "all",
        "num_fewshot": "task default",
        "dtype": "float32",
        "batch_size": "8",
        "scorer": "prefix-tree",
        "ppl_corpus": "wikitext2",
        "seqlen": "32",
        "windows": "6",
        "lm_eval": "0.4.13",
        "transformers": "5.23.0",
        "torch": "2.13.0+cpu",
        "method": "magnitude",
        "target_sparsity": "0.5",
    }


def test_params_tell_another_window_length() -> None:
    assert params(other_window_record())["seqlen"] == "64"


def test_tags_are_what_runs_are_searched_by() -> None:
    record = with_labels(pruned_record(), baseline_run_id="f" * 32, tags={"team": "sparse"})
    found = encode(record).tags
    assert found["prunescope.role"] == "pruned"
    assert found["prunescope.model"] == "SmolLM2-135M-2of4"
    assert found["prunescope.method"] == "magnitude"
    assert found["prunescope.baseline_run_id"] == "f" * 32
    assert found["prunescope.record_key"] == record.record_key
    assert found["prunescope.record_id"] == record.record_id
    assert found["prunescope.weights_sha256"] == record.model.weights_sha256
    assert found["prunescope.mask_sha256"] == record.model.mask_sha256
    assert found["prunescope.schema"] == "1"
    assert found["mlflow.user"] == "ada"
    assert found["mlflow.source.git.commit"] == record.provenance.git_commit
    assert found["team"] == "sparse"
    assert "prunescope.broken" not in found


def test_a_tag_of_the_users_cannot_replace_ours() -> None:
    record = with_labels(original_record(), tags={"prunescope.record_id": "forged"})
    assert encode(record).tags["prunescope.record_id"] == record.record_id


def test_values_are_cut_at_what_mlflow_stores() -> None:
    record = with_labels(original_record(), tags={"long": "x" * 9000}, method="m" * 7000)
    fields = encode(record)
    assert len(fields.tags["long"]) == 8000
    assert fields.tags["long"].endswith("…")
    assert len(fields.params["method"]) == 6000


def test_secrets_do_not_reach_tags_params_or_the_headline() -> None:
    record = with_labels(
        original_record(),
        tags={"note": "token hf_abcdefghijklmnopqrst", "from": "https://ada:hunter2@mlflow.lab/x"},
        method="https://bob:hunter2@x",
        run_name="run of postgresql://ada:hunter2@db/x",
    )
    fields = encode(record)
    written = json.dumps([fields.tags, fields.params, headline(record)])
    assert "hunter2" not in written
    assert "abcdefghijklmnopqrst" not in written
    assert "mlflow.lab/x" in written


def test_a_failed_evaluation_is_a_failed_run_that_says_why() -> None:
    fields = encode(failed_record())
    assert fields.status == "FAILED"
    assert fields.tags["prunescope.error"] == "MemoryError in tasks: out of memory"
    assert "prunescope.record_key" not in fields.tags


def test_alarms_are_tagged_and_told() -> None:
    alarm = Alarm(code="not-pruned", message="no weight of the linear layers is zero")
    record = original_record().model_copy(update={"alarms": (alarm,)})
    assert encode(record).tags["prunescope.alarms"] == "not-pruned"
    assert "no weight of the linear layers is zero" in headline(record)


def test_times_are_the_records_own() -> None:
    fields = encode(original_record())
    assert fields.start_ms == 1773480413590
    assert fields.end_ms == fields.start_ms + 187250


def test_data_sets_carry_short_digests_of_what_was_scored() -> None:
    record = original_record()
    found = {dataset.name: dataset for dataset in encode(record).datasets}
    assert set(found) == {*record.tasks, "wikitext2"}
    assert all(len(dataset.digest) == 36 for dataset in found.values())
    assert found["boolq"].digest == (record.tasks["boolq"].documents_sha256 or "")[:36]
    assert json.loads(found["boolq"].profile)["num_rows"] == 60


def test_a_corpus_whose_content_is_not_known_is_no_data_set() -> None:
    assert encode(legacy_record("original")).datasets == ()


# --- names, colours, notes ----------------------------------------------------------------------


def test_run_names_say_model_pattern_and_method() -> None:
    assert run_name(original_record()) == "SmolLM2-135M"
    assert run_name(pruned_record()) == "SmolLM2-135M-2of4 · 2:4 magnitude"
    assert run_name(other_window_record()) == "SmolLM2-135M-50 · 50% sparsegpt"
    assert run_name(with_labels(pruned_record(), run_name="mine")) == "mine"


def test_originals_are_grey_and_each_method_has_one_colour() -> None:
    grey = run_color(original_record())
    wanda = run_color(with_labels(pruned_record(), method="wanda"))
    assert run_color(with_labels(other_window_record(), method="Wanda++")) == wanda
    other = run_color(with_labels(pruned_record(), method="flap"))
    assert other == run_color(with_labels(broken_record(), method="flap"))
    assert len({grey, wanda, other, run_color(pruned_record())}) == 4


def test_the_headline_says_how_the_perplexity_was_taken() -> None:
    assert headline(pruned_record()) == (
        "SmolLM2-135M-2of4 · 2:4 magnitude · sparsity 50.00% · perplexity 25.54 (wikitext2, 32 "
        "tokens a window) · mean accuracy 45.48% over 7 tasks"
    )
    assert "BROKEN" in headline(broken_record())


def test_a_note_begins_with_a_plain_line_followed_by_the_links() -> None:
    links = {"baseline": run_path("1", "a" * 32)}
    note = compose_note("<b>Lost</b> 3 points\n\n| Task | Δ |", links, first_line="unused")
    first, _, second, _, rest = note.split("\n", 4)
    assert first == "(b)Lost(/b) 3 points"
    assert second == (f"[baseline](#/experiments/1/runs/{'a' * 32}?workflowType=machine_learning)")
    assert rest == "| Task | Δ |"


def test_a_long_note_is_cut_at_a_line() -> None:
    note = compose_note("head\n" + "row of a table\n" * 2000, {}, first_line="x")
    assert 7900 < len(note) <= 8000
    assert note.endswith("row of a table\n…")


@given(st.text())
def test_a_plain_line_is_one_line_without_markup(text: str) -> None:
    line = plain_line(text)
    assert len(line.splitlines()) <= 1
    assert not set(line) & set("<>[]`*|")


# --- searching, showing -------------------------------------------------------------------------


@given(st.text(min_size=1, max_size=30))
def test_a_filter_never_lets_a_value_out_of_its_quotes(value: str) -> None:
    wanted = filter_string(tags={"prunescope.model": value}, only_prunescope=False)
    if "'" in value and '"' in value:
        assert wanted is None
    else:
        assert wanted is not None
        quote = wanted.removeprefix("tags.`prunescope.model` = ")[0]
        assert wanted == f"tags.`prunescope.model` = {quote}{value}{quote}"
        assert quote not in value


@given(st.dictionaries(st.text(max_size=5), st.integers(0, 5000), max_size=12), st.integers(0, 99))
def test_rows_are_shared_among_all_tasks(counts: dict[str, int], limit: int) -> None:
    shares = share_rows(counts, limit)
    assert list(shares) == list(counts)
    assert sum(shares.values()) == min(limit, sum(counts.values()))
    assert all(shares[task] <= count for task, count in counts.items())
    cut = [shares[task] for task, count in counts.items() if shares[task] < count]
    if cut:  # nobody who was cut has less than another was given, but for what cannot be divided
        assert min(cut) >= max(shares.values()) - 1


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://ada:hunter2@mlflow.lab:443/base/", "https://mlflow.lab:443/base"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("sqlite:////data/mlruns/mlflow.db", "sqlite:////data/mlruns/mlflow.db"),
        ("postgresql://ada:p%40ss@db:5432/mlflow?sslpassword=x", "postgresql://db:5432/mlflow"),
        ("databricks", "databricks"),
        ("databricks://profile", "databricks://profile"),
    ],
)
def test_a_shown_uri_has_no_credentials(uri: str, shown: str) -> None:
    assert redact_uri(uri) == shown


def test_text_is_redacted_inside_sentences() -> None:
    text = "POST https://ada:hunter2@mlflow.lab/api failed with hf_ABCDEFGHIJKLMNOPQRSTUV"
    assert redact(text) == "POST https://mlflow.lab/api failed with hf_***"


def test_the_preset_view_fits_a_tag_and_can_be_read_back() -> None:
    names = [f"pct/task_{number}" for number in range(60)] + ["ppl/c4", "acc/x", "pct/mean"]
    view = View().extended(names, "a" * 32)
    value = view_value(view)
    assert value is not None
    assert len(value) < 8_000
    assert read_view(value) == view
    assert view.baseline_run_id == "a" * 32
    assert view.perplexities == ("ppl/c4",)
    assert view.percentages[:7] == View().percentages
    assert len(view.percentages) == 20


def test_a_view_keeps_its_baseline_until_there_is_another() -> None:
    view = read_view(view_value(View("a" * 32)))
    assert view.extended([], None).baseline_run_id == "a" * 32
    assert view.extended([], "b" * 32).baseline_run_id == "b" * 32


@pytest.mark.parametrize("value", [None, "", "not ours", "{}", '{"state": 1}', '{"state": "x"}'])
def test_a_view_that_cannot_be_read_is_the_default_one(value: str | None) -> None:
    assert read_view(value) == View()
