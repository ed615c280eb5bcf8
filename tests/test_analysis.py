"""Two record directories compared down to their documents and tokens."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.golden import check_golden
from support.legacy import legacy_record
from support.records import write_example

from prunescope.compare.analysis import compare_directories
from prunescope.compare.delta import Comparison, compare_records
from prunescope.compare.divergence import Collapse
from prunescope.compare.highlights import comparison_highlights
from prunescope.compare.report import (
    headline,
    html_report,
    json_text,
    markdown_report,
    plain_report,
)
from prunescope.records import read_record, read_tensors, write_record

NOW = datetime(2026, 3, 14, 12, 0, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("records")
    for name in ("original", "pruned", "broken"):
        write_example(made / name, name)
    for side in ("original", "pruned"):
        write_record(made / f"imported-{side}", legacy_record(side))
    return made


def compared(folder: Path, original: str, pruned: str) -> Comparison:
    return compare_directories(folder / original, folder / pruned, now=NOW)


CASES = {
    "analysis-pair": ("original", "pruned"),
    "analysis-identical": ("original", "original"),
    "analysis-broken": ("original", "broken"),
    "analysis-imported": ("imported-original", "imported-pruned"),
}


@pytest.mark.parametrize("name", list(CASES))
def test_reports_equal_golden(folder: Path, name: str) -> None:
    comparison = compared(folder, *CASES[name])
    check_golden(f"{name}.plain.txt", plain_report(comparison))
    check_golden(f"{name}.md", markdown_report(comparison))


def test_the_page_of_a_whole_comparison_equals_golden(folder: Path) -> None:
    check_golden("analysis-pair.html", html_report(compared(folder, "original", "pruned")))


def test_the_page_says_before_its_verdict_that_a_task_collapsed(folder: Path) -> None:
    comparison = compared(folder, "original", "pruned")
    assert comparison.analysis is not None
    collapsed = (Collapse("boolq", "pruned", 0, 1.0, 0.225),)
    analysis = replace(comparison.analysis, collapses=collapsed)
    page = html_report(replace(comparison, analysis=analysis))
    above, _, below = page.partition('<p class="verdict')
    assert "Collapse: the pruned model gives answer 1 to 100.0 % of boolq&#39;s" in above
    assert "Collapse" not in below


def test_a_ruined_perplexity_is_told_in_round_figures(folder: Path) -> None:
    ruined = read_record(folder / "pruned")
    result = ruined.perplexity["wikitext2"].model_copy(update={"perplexity": 26850.1939})
    ruined = ruined.model_copy(update={"perplexity": {"wikitext2": result}})
    comparison = compare_records(read_record(folder / "original"), ruined)
    assert "perplexity \u00d71,688," in headline(comparison)
    tiles = comparison_highlights(comparison).tiles
    (tile,) = [tile for tile in tiles if tile.title.startswith("WikiText2")]
    assert (tile.value, tile.detail) == ("\u00d71,688", "15.9038 \u2192 26,850")


def test_the_json_holds_the_statistics(folder: Path) -> None:
    comparison = compared(folder, "original", "pruned")
    read = json.loads(json_text(comparison))["statistics"]
    assert comparison.analysis is not None and comparison.analysis.suite is not None
    first = comparison.analysis.suite.tasks[0]
    assert read["suite"]["tasks"][0]["estimate"]["low"] == first.estimate.low
    assert read["suite"]["tasks"][0]["flips"] == {"lost": 10, "gained": 6, "changed": 16, "n": 60}
    assert read["tokens"][0]["ratio"]["value"] == comparison.analysis.tokens[0].ratio.value
    assert len(read["worst"]) == 20


def test_the_rows_are_those_of_the_records_alone(folder: Path) -> None:
    whole = compared(folder, "original", "pruned")
    bare = compare_records(whole.original, whole.pruned, now=NOW)
    assert whole.tasks == bare.tasks and whole.average == bare.average
    assert bare.analysis is None


def test_tokens_of_a_broken_run_are_not_compared(folder: Path) -> None:
    comparison = compared(folder, "original", "broken")
    assert comparison.analysis is not None
    assert comparison.analysis.tokens == ()


def test_a_second_run_of_the_original_shows_the_noise(folder: Path) -> None:
    comparison = compare_directories(
        folder / "original", folder / "pruned", noise_dir=folder / "original", now=NOW
    )
    assert comparison.analysis is not None and comparison.analysis.noise is not None
    assert comparison.analysis.noise.lost == comparison.analysis.noise.gained == 0
    assert "## Noise Floor" in markdown_report(comparison)


def test_a_directory_whose_documents_are_gone_still_compares(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "pruned", tmp_path / "pruned")
    shutil.rmtree(tmp_path / "pruned" / "samples")
    shutil.rmtree(tmp_path / "pruned" / "tokens")
    comparison = compare_directories(folder / "original", tmp_path / "pruned", now=NOW)
    assert comparison.analysis is not None and comparison.analysis.suite is not None
    assert {task.method for task in comparison.analysis.suite.tasks} == {"unpaired"}
    assert comparison.analysis.tokens == () and comparison.analysis.worst == ()
    assert "taken as independent samples" in plain_report(comparison)


def test_weights_that_came_back_after_fine_tuning_are_told(folder: Path, tmp_path: Path) -> None:
    """The 2:4 model against one of whose layers lost 100 zeros."""
    record = write_example(tmp_path / "tuned", "pruned")
    result = read_tensors(tmp_path / "tuned")
    first = result.tensors[0]
    denser = first.model_copy(update={"zeros": first.zeros - 100, "mask_sha256": "f" * 64})
    changed = result.model_copy(update={"tensors": (denser, *result.tensors[1:])})
    write_record(tmp_path / "tuned", record.model_copy(update={"sparsity": changed}))
    comparison = compare_directories(folder / "pruned", tmp_path / "tuned", now=NOW)
    text = markdown_report(comparison)
    assert "Pruned weights came back: at least 100 zeros of the original" in text
    assert "| q | 50.00% | 45.12% | 1 of 2 | 100 |" in text
    masks = json.loads(json_text(comparison))["statistics"]["masks"]
    assert (masks["same_mask"], masks["kept"]) == (False, False)
    assert masks["groups"]["all"]["returned_at_least"] == 100
    same = compare_directories(folder / "pruned", folder / "pruned", now=NOW)
    assert "Both runs have the same mask in every linear layer" in markdown_report(same)


def test_a_dense_originals_mask_is_not_a_matter(folder: Path) -> None:
    comparison = compared(folder, "original", "pruned")
    assert comparison.analysis is not None and comparison.analysis.masks is None
