"""The published schema holds for every report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from support.legacy import legacy_record
from support.records import broken_record, original_record, write_example

from prunescope.compare.analysis import analyse, compare_directories
from prunescope.compare.delta import Comparison, compare_records
from prunescope.compare.export import json_report
from prunescope.compare.schema import comparison_schema, comparison_schema_text

PUBLISHED = Path(__file__).parents[1] / "docs" / "comparison.schema.json"


def errors(report: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft202012Validator(comparison_schema())
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(report)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder = tmp_path_factory.mktemp("records")
    for name in ("original", "pruned"):
        write_example(folder / name, name)
    return compare_directories(folder / "original", folder / "pruned", noise_dir=folder / "pruned")


def test_masks_are_valid(tmp_path: Path) -> None:
    write_example(tmp_path / "pruned", "pruned")
    report = json_report(compare_directories(tmp_path / "pruned", tmp_path / "pruned"))
    assert report["statistics"]["masks"]["same_mask"] is True
    assert errors(report) == []


def test_the_schema_is_one_itself() -> None:
    jsonschema.Draft202012Validator.check_schema(comparison_schema())


def test_the_published_file_is_fresh() -> None:
    from support.golden import check_golden

    check_golden(str(PUBLISHED), comparison_schema_text())


def test_a_whole_comparison_is_valid(whole: Comparison) -> None:
    assert errors(json_report(whole)) == []


def test_nan_and_missing_parts_are_valid() -> None:
    broken = compare_records(original_record(), broken_record())
    assert errors(json_report(broken)) == []
    old, new = legacy_record("original"), legacy_record("pruned")
    imported = compare_records(old, new)
    assert errors(json_report(imported)) == []
    from dataclasses import replace

    judged = replace(imported, analysis=analyse(imported, None, None))
    assert errors(json_report(judged)) == []


@pytest.mark.parametrize("field", ["original", "tasks", "average", "timestamp", "statistics"])
def test_what_is_missing_is_found(whole: Comparison, field: str) -> None:
    report = json_report(whole)
    del report[field]
    assert errors(report) != []


def test_what_is_wrong_or_unknown_is_found(whole: Comparison) -> None:
    report = json.loads(json.dumps(json_report(whole)))
    report["tasks"][0]["difference"] = "much"
    report["original"]["unknown"] = 1
    report["statistics"]["suite"]["mean"]["low"] = None
    assert len(errors(report)) == 3
