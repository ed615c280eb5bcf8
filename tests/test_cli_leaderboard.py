"""``prunescope leaderboard`` over a real SQLite store with example evaluations."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from support.cli import Finished, run_cli
from support.records import EXAMPLES, example, write_example
from support.server import fresh_store

from prunescope.compare.run_filter import parse_filters
from prunescope.errors import SettingError
from prunescope.records import write_record


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A folder whose store has an original, three variants of it, and a failed evaluation."""
    folder = tmp_path_factory.mktemp("leaderboard")
    store = fresh_store(empty_database, folder / "mlruns")
    original = folder / "original"
    write_example(original, "original")
    dense = store.upload(original, experiment="first")
    for name in ("pruned", "broken", "other-window"):
        record = write_example(folder / name, name)
        labels = record.labels.model_copy(
            update={"baseline_run_id": dense.run_id, "tags": {"paper": "tiny"}}
        )
        if name == "broken":
            labels = labels.model_copy(update={"tags": {}})
        write_record(folder / name, record.model_copy(update={"labels": labels}))
        store.upload(folder / name, experiment="second" if name == "broken" else "first")
    return folder


def board(folder: Path, *arguments: str) -> Finished:
    done = run_cli(["leaderboard", *arguments], folder)
    assert done.exit_code == 0, done.stderr
    return done


def rows(folder: Path, *arguments: str) -> list[dict[str, str]]:
    text = board(folder, "--format", "csv", *arguments).stdout
    return list(csv.DictReader(io.StringIO(text)))


def names(folder: Path, *arguments: str) -> list[str]:
    return [row["model"] for row in rows(folder, *arguments)]


DENSE, PRUNED, BROKEN, OTHER = (
    EXAMPLES[name].name for name in ("original", "pruned", "broken", "other-window")
)


def test_every_finished_run_is_a_row_with_the_figures_of_its_record(workspace: Path) -> None:
    found = {row["model"]: row for row in rows(workspace)}
    assert set(found) == {DENSE, PRUNED, BROKEN, OTHER}
    record, dense = example(EXAMPLES["pruned"]), example(EXAMPLES["original"])
    row = found[PRUNED]
    assert float(row["mean"]) == record.mean_accuracy
    assert float(row["acc/rte"]) == record.tasks["rte"].accuracy
    assert float(row["ppl/wikitext2/32"]) == record.perplexity["wikitext2"].perplexity
    assert record.mean_accuracy is not None
    assert dense.mean_accuracy is not None
    assert float(row["delta_mean"]) == pytest.approx(record.mean_accuracy - dense.mean_accuracy)
    assert found[DENSE]["delta_mean"] == ""
    assert found[OTHER]["ppl_ratio"] == ""
    assert "seqlen: original 32, pruned 64" in found[OTHER]["reason"]


def test_the_table_is_never_cut_however_narrow_the_terminal(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = board(workspace).stdout
    assert f"{example(EXAMPLES['pruned']).mean_accuracy:.4f}" in text
    assert re.search(r"[+-]\d+\.\d\d\*\s+[+-]\d+\.\d\d%$", text, re.MULTILINE)
    assert "beyond chance" in text
    # The tasks' columns are left out, and said to be; a wide terminal has them all.
    assert "Left out, as the terminal is narrow: Method, boolq, rte" in " ".join(text.split())
    monkeypatch.setenv("COLUMNS", "300")
    line = next(line for line in board(workspace).stdout.splitlines() if PRUNED in line)
    for task in example(EXAMPLES["pruned"]).tasks.values():
        assert f"{task.accuracy:.4f}" in line


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["method=wanda"], {BROKEN}),
        (["method=*a*"], {PRUNED, BROKEN, OTHER}),
        (["role!=original", "sparsity<60%"], {PRUNED, OTHER}),
        (["sparsity>=0.5"], {PRUNED, BROKEN, OTHER}),
        (["paper=tiny"], {PRUNED, OTHER}),
        (["seqlen=64"], {OTHER}),
        (["ppl>0", "seqlen<=32"], {DENSE, PRUNED}),
        ([f"model={PRUNED}"], {PRUNED}),
        (["acc.nothing>0"], set()),
        (["mean>0", "method!=wanda", "acc.rte>=0"], {DENSE, PRUNED, OTHER}),
    ],
    ids=lambda names: " ".join(sorted(names)),
)
def test_filters_choose_runs(workspace: Path, filters: list[str], expected: set[str]) -> None:
    arguments = [part for one in filters for part in ("--filter", one)]
    assert set(names(workspace, *arguments)) == expected


def test_an_experiment_alone_may_be_ranked_against_baselines_elsewhere(workspace: Path) -> None:
    (row,) = rows(workspace, "--experiment", "second")
    assert row["model"] == BROKEN
    assert row["delta_mean"] != ""


def test_one_baseline_for_all(workspace: Path) -> None:
    found = {row["model"]: row for row in rows(workspace, "--baseline", f"latest:{PRUNED}")}
    assert found[PRUNED]["delta_mean"] == ""
    assert float(found[DENSE]["delta_mean"]) > 0


def test_order_and_number_of_rows(workspace: Path) -> None:
    by_sparsity = names(workspace, "--sort", "sparsity")
    assert by_sparsity[0] == BROKEN
    assert by_sparsity[-1] == DENSE
    assert names(workspace, "--sort", "age", "--limit", "1") == [OTHER]
    assert names(workspace, "--sort", "ppl")[-1] == BROKEN


def test_files_in_every_format(workspace: Path, tmp_path: Path) -> None:
    for form, begin in (("csv", "run_id"), ("md", "| Run"), ("tex", r"\begin"), ("table", "Run")):
        path = tmp_path / f"board.{form}"
        done = board(workspace, "--format", form, "--output", str(path))
        assert path.read_text(encoding="utf-8").startswith(begin)
        assert done.stdout == ""
    assert r"$\Delta$ mean" in (tmp_path / "board.tex").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_curves_are_drawn(workspace: Path, tmp_path: Path, kind: str, magic: bytes) -> None:
    path = tmp_path / f"curves.{kind}"
    board(workspace, "--curves", str(path), "--sort", "ppl")
    assert path.read_bytes().startswith(magic)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--sort", "luck"], "luck"),
        (["--format", "xlsx"], "xlsx"),
        (["--limit", "0"], "--limit"),
        (["--curves", "curves.gif"], "curves.gif"),
        (["--filter", "wanda"], "wanda"),
        (["--filter", "sparsity>high"], "high"),
        (["--baseline", "no-such-run"], "no-such-run"),
    ],
    ids=" ".join,
)
def test_mistakes_are_one_line(workspace: Path, arguments: list[str], found: str) -> None:
    done = run_cli(["leaderboard", *arguments], workspace)
    assert done.exit_code == 2
    (line,) = done.error_lines
    assert line.startswith("Error: ")
    assert found in line


def test_no_run_is_no_error(empty_store: Path) -> None:
    done = board(empty_store.parent)
    assert done.stdout == ""
    assert "prunescope runs" in done.stderr


def test_percentages_are_fractions_and_texts_stay_texts() -> None:
    half, text = parse_filters(["sparsity >= 50%", "method = 2:4 wanda"])
    assert (half.number, half.op, half.name) == (0.5, ">=", "sparsity")
    assert (text.number, text.value) == (None, "2:4 wanda")
    with pytest.raises(SettingError):
        parse_filters(["=x"])


def test_json_has_the_same_figures_as_csv(workspace: Path) -> None:
    found = json.loads(board(workspace, "--json").stdout)
    wanted = rows(workspace)
    assert [row["run_id"] for row in found] == [row["run_id"] for row in wanted]
    for one, other in zip(found, wanted, strict=True):
        for name in ("mean", "sparsity", "delta_mean", "delta_stderr", "ppl_ratio"):
            assert one[name] == (float(other[name]) if other[name] else None)
        assert one["reason"] == (other["reason"] or None)


def test_quiet_prints_run_ids_alone(workspace: Path) -> None:
    done = board(workspace, "--quiet", "--limit", "2")
    assert done.stdout.split() == [row["run_id"] for row in rows(workspace)[:2]]
    assert done.stderr == ""


def test_json_and_another_format_exclude_each_other(workspace: Path) -> None:
    done = run_cli(["leaderboard", "--json", "--format", "csv"], workspace)
    assert done.exit_code == 2
    assert "exclude each other" in done.stderr
