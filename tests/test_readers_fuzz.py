"""Whatever lies in a file, a reader gives a result or an error of ours, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.legacy import LEGACY_FILE
from support.records import CORPUS, write_example

from prunescope.compare.paired_perplexity import read_tokens
from prunescope.compare.pairing import read_samples
from prunescope.errors import PrunescopeError, RecordError
from prunescope.records import (
    parse_record,
    read_record,
    read_tensors,
    samples_path,
    tokens_path,
    write_record,
)
from prunescope.tracking.history.bundle import read_manifest
from prunescope.tracking.history.importing import read_results

DATA = Path(__file__).parent / "data"
HARNESS = DATA / "harness" / "results_2025-02-03T04-05-06.000007.json"
LOG = DATA / "harness" / "out" / "example_7b" / "2-4" / "wanda" / "log_wanda.txt"

FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ODD: list[Any] = [
    None, True, -1, 0, 2**63, 10**400, 1e308, float("nan"), float("inf"), "", "NaN", "-Infinity",
    "../../etc/passwd", "\x00", "=1+1", [], {}, [[]], {"": None},
]  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    write_example(folder, "original")
    return folder


def bent(content: bytes, data: st.DataObject) -> bytes:
    """A file cut short, or with some of its bytes changed."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(0, 5))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    return bytes(changed[: data.draw(st.integers(0, len(changed)))])


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container with each of its keys or indices."""
    found: list[tuple[Any, Any]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        found.append((value, key))
        if isinstance(inner, dict | list):
            found += places(inner)
    return found


def replaced(text: str, data: st.DataObject) -> str:
    """JSON with some of its values replaced by odd ones, or taken out."""
    whole = json.loads(text)
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(places(whole) or [({"": 0}, "")]))
        if isinstance(container, dict) and data.draw(st.booleans()):
            container.pop(key, None)
        else:
            container[key] = data.draw(st.sampled_from(ODD))
    return json.dumps(whole)


def only_ours(read: Callable[[], object]) -> None:
    try:
        read()
    except PrunescopeError as error:
        assert "\n" not in error.message or len(error.message) < 4000


@FUZZ
@given(st.data())
def test_a_record_with_odd_values_is_read_or_refused(
    good: Path, tmp_path: Path, data: st.DataObject
) -> None:
    text = replaced((good / "record.json").read_text(encoding="utf-8"), data)
    try:
        record = parse_record(text, source="it")
    except RecordError:
        return
    write_record(tmp_path, record)
    assert read_record(tmp_path).model_dump_json() == record.model_dump_json()


@FUZZ
@given(st.binary(max_size=200))
@example(b"")
@example(b"[" * 100_000)
@example(b'{"schema_version":99}')
@example(b'{"schema_version":1e999}')
@example(b'"\\ud800"')
def test_any_bytes_as_any_file(tmp_path: Path, content: bytes) -> None:
    for name in ("record.json", "sparsity.json", "results_2025.json", "log_wanda.txt", "b.tar"):
        (tmp_path / name).write_bytes(content)
    for path in (samples_path(tmp_path, "boolq"), tokens_path(tmp_path, CORPUS)):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    with pytest.raises(RecordError):
        read_record(tmp_path)
    with pytest.raises(RecordError):
        read_tensors(tmp_path)
    only_ours(lambda: read_results(tmp_path / "results_2025.json"))
    only_ours(lambda: read_results(tmp_path / "log_wanda.txt"))
    only_ours(lambda: read_manifest(tmp_path / "b.tar"))
    only_ours(lambda: read_samples(tmp_path, "boolq"))
    only_ours(lambda: read_tokens(tmp_path, CORPUS))


@FUZZ
@given(st.data())
def test_damaged_documents_tokens_and_tensors(
    good: Path, tmp_path: Path, data: st.DataObject
) -> None:
    for path in (samples_path(good, "boolq"), tokens_path(good, CORPUS), good / "sparsity.json"):
        target = tmp_path / path.relative_to(good)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(bent(path.read_bytes(), data))
    only_ours(lambda: read_samples(tmp_path, "boolq"))
    only_ours(lambda: read_tokens(tmp_path, CORPUS))
    only_ours(lambda: read_tensors(tmp_path))


@pytest.mark.parametrize("path", [LEGACY_FILE, HARNESS, LOG], ids=lambda path: path.suffix)
@FUZZ
@given(data=st.data())
def test_older_results_with_odd_values_or_damage(
    path: Path, tmp_path: Path, data: st.DataObject
) -> None:
    target = tmp_path / path.name
    if path.suffix == ".json" and data.draw(st.booleans()):
        target.write_text(replaced(path.read_text(encoding="utf-8"), data), encoding="utf-8")
    else:
        target.write_bytes(bent(path.read_bytes(), data))
    only_ours(lambda: read_results(target))
