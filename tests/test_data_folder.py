"""Data folders: what is written comes back exactly, and damage is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunescope.errors import DataError, OutputError, PrunescopeError
from prunescope.evaluate.data import load_corpus, verify
from prunescope.evaluate.data.folder import (
    MANIFEST,
    parse_rows,
    read_manifest,
    read_rows,
    task_dataset,
)
from prunescope.evaluate.data.writer import RowSet, staged_writer

ROWS = Path(__file__).parent / "data" / "tasks"


def row_set(rows: list[dict[str, Any]], task: str = "things", **changes: Any) -> RowSet:
    given = {"split": "test", "source": "here", "license": "none", **changes}
    return RowSet(task=task, rows=rows, **given)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the hand-written folder."""
    return Path(shutil.copytree(ROWS, tmp_path / "rows"))


def test_the_hand_written_folder_is_whole() -> None:
    manifest = verify(ROWS)
    assert set(manifest.splits("boolq")) == {"validation", "train"}
    assert {path.relative_to(ROWS).as_posix() for path in ROWS.rglob("*.jsonl")} == {
        file.path for file in manifest.files
    }


@pytest.mark.parametrize("check", [verify, read_manifest])
def test_a_missing_file_is_named(folder: Path, check: Any) -> None:
    (folder / "rte" / "validation.jsonl").unlink()
    with pytest.raises(DataError, match=r"rte/validation\.jsonl is missing"):
        check(folder)


def test_a_cut_file_is_named(folder: Path) -> None:
    path = folder / "rte" / "validation.jsonl"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"validation\.jsonl is damaged: expected \d+ bytes, found"):
        read_manifest(folder)


def test_one_changed_byte_is_found_by_the_hash(folder: Path) -> None:
    path = folder / "rte" / "validation.jsonl"
    path.write_bytes(path.read_bytes().replace(b"Tuesday", b"Thursda", 1))
    read_manifest(folder)
    with pytest.raises(DataError, match=r"rte/validation\.jsonl is damaged: expected sha256"):
        verify(folder)
    with pytest.raises(DataError, match="damaged"):
        read_rows(folder, read_manifest(folder).splits("rte")["validation"])


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("{", "cannot read .*manifest.json"),
        ('{"schema_version": 99, "rows": []}', "schema 99"),
        ('{"files": [{"path": "x"}]}', "cannot read .*manifest.json: files: 0: task"),
        ("[]", "cannot read .*manifest.json"),
        ('{"rows": 3}', "cannot read .*manifest.json: rows"),
    ],
)
def test_a_damaged_manifest_is_one_clear_line(tmp_path: Path, manifest: str, message: str) -> None:
    (tmp_path / MANIFEST).write_text(manifest)
    with pytest.raises(DataError, match=message) as caught:
        verify(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["../outside.jsonl", "/etc/hostname", "a/../../b"])
def test_a_manifest_cannot_name_files_outside_its_folder(folder: Path, path: str) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][0]["path"] = path
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="outside its folder"):
        verify(folder)


def test_no_folder_and_no_manifest_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found nothing\. Make one with `prunescope data pull"):
        verify(tmp_path / "absent")
    with pytest.raises(DataError, match=r"has no manifest\.json"):
        verify(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="found a file"):
        verify(tmp_path / "file")


# --- writing ------------------------------------------------------------------------------------


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.dictionaries(st.text(min_size=1, max_size=5), _values), max_size=5))
def test_rows_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    directory = tmp_path_factory.mktemp("rows") / "folder"
    with staged_writer(directory) as writer:
        file = writer.add(row_set(rows))
    assert read_rows(directory, file) == rows
    assert verify(directory).splits("things")["test"].rows == len(rows)


def test_line_separators_inside_a_text_do_not_cut_a_row(tmp_path: Path) -> None:
    rows = [{"text": "one\u2028two\x85three\x0bfour\r"}, {"text": "five"}]
    with staged_writer(tmp_path / "d") as writer:
        file = writer.add(row_set(rows))
    assert read_rows(tmp_path / "d", file) == rows


def test_a_failed_pull_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), staged_writer(tmp_path / "new") as writer:
        writer.add(row_set([{"a": 1}]))
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_failed_pull_leaves_the_folder_as_it_was(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ZeroDivisionError), staged_writer(folder) as writer:
        writer.add(row_set([{"a": 1}], task="boolq", split="validation"))
        raise ZeroDivisionError
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_second_pull_adds_and_replaces(folder: Path) -> None:
    with staged_writer(folder) as writer:
        writer.add(row_set([{"a": 1}], task="new"))
        writer.add(row_set([{"question": "?"}], task="boolq", split="validation"))
    manifest = verify(folder)
    assert manifest.splits("new")["test"].rows == 1
    assert manifest.splits("boolq")["validation"].rows == 1
    assert manifest.splits("boolq")["train"].rows == 5
    assert manifest.splits("rte")["validation"].rows == 9


def test_a_pull_mends_a_folder_whose_manifest_is_damaged(folder: Path) -> None:
    (folder / MANIFEST).write_text("{")
    with staged_writer(folder) as writer:
        writer.add(row_set([{"a": 1}]))
    assert verify(folder).names == ("things",)


def test_a_folder_of_other_things_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="is not a data folder"), staged_writer(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"), staged_writer(tmp_path / "file" / "d"):
        pass


@pytest.mark.parametrize("value", [b"bytes", float("nan"), {1, 2}, "\ud800"])
def test_values_that_json_cannot_hold_are_refused(tmp_path: Path, value: object) -> None:
    with (
        pytest.raises(DataError, match=r"rows of things \(test\) cannot be written as JSON"),
        staged_writer(tmp_path / "d") as writer,
    ):
        writer.add(row_set([{"value": value}]))
    assert not (tmp_path / "d").exists()


def test_names_that_are_no_file_names_stay_apart(tmp_path: Path) -> None:
    with staged_writer(tmp_path / "d") as writer:
        for number, task in enumerate(["a/b", "a_b", "../up", "a:b"]):
            writer.add(row_set([{"number": number}], task=task))
    manifest = verify(tmp_path / "d")
    found = [read_rows(tmp_path / "d", manifest.splits(n)["test"])[0] for n in manifest.names]
    assert [row["number"] for row in found] == [0, 1, 2, 3]
    assert list(tmp_path.iterdir()) == [tmp_path / "d"]


@pytest.mark.parametrize("text", ["[1]\n", "{}\nnull\n", '"text"\n', "{'a': 1}\n"])
def test_lines_that_are_no_objects_are_named(text: str) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl, line \d"):
        parse_rows(text, source="rows.jsonl")


# --- as a data set ------------------------------------------------------------------------------


def test_types_that_json_does_not_know_come_back(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "day": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "idx": datasets.Value("int32"),
            "nothing": datasets.Value("string"),
            "parts": {"text": datasets.List(datasets.Value("string"))},
            "share": datasets.Value("float32"),
        }
    )
    rows = [
        {"day": "2020-01-01", "label": 1, "idx": 7, "nothing": None, "share": 1.0,
         "parts": {"text": []}},
        {"day": "2020-01-02T03:04:05Z", "label": 0, "idx": 8, "nothing": None, "share": 0.5,
         "parts": {"text": ["é"]}},
    ]  # fmt: skip
    original = datasets.Dataset.from_list(rows, features=features)
    with staged_writer(tmp_path / "d") as writer:
        writer.add(row_set(list(original), features=original.features.to_dict()))
    found = task_dataset(
        prunescope_folder=str(tmp_path / "d"),
        prunescope_task="things",
        prunescope_splits=["test"],
        version=1.0,  # lm-eval hands over a task's metadata besides
    )["test"]
    assert found.features == original.features
    assert list(found) == list(original)


def test_rows_that_do_not_fit_their_features_are_refused(tmp_path: Path) -> None:
    features = {"a": {"dtype": "int32", "_type": "Value"}}
    with staged_writer(tmp_path / "d") as writer:
        writer.add(row_set([{"a": "text"}], features=features))
    with pytest.raises(DataError, match="do not fit their features"):
        task_dataset(
            prunescope_folder=str(tmp_path / "d"),
            prunescope_task="things",
            prunescope_splits=["test"],
        )


# --- corpora ------------------------------------------------------------------------------------


def test_wikitext2_is_its_rows_joined_by_two_newlines() -> None:
    lines = (ROWS / "wikitext2" / "test.jsonl").read_text("utf-8").split("\n")[:-1]
    corpus = load_corpus("wikitext2", data_dir=ROWS, cache_dir=None)
    assert corpus.text == "\n\n".join(json.loads(line)["text"] for line in lines)
    assert corpus.text.startswith("\n\n = The Elz Bridge = \n\n\n\n\n The Elz Bridge is a stone")
    assert (corpus.name, corpus.source) == ("wikitext2", "folder: written by hand for the tests")


def test_boolq_passages_are_distinct_and_in_order() -> None:
    corpus = load_corpus("boolq-passages", data_dir=ROWS, cache_dir=None)
    passages = corpus.text.split("\n\n")
    assert [passage.split(" -- ")[0] for passage in passages] == [
        "Old Stone Bridge", "Smoked tea", "Café Zürich", "Harbour seal", "Tomato", "Moon",
    ]  # fmt: skip


def test_c4_is_the_first_1100_documents_joined_by_a_blank(tmp_path: Path) -> None:
    with staged_writer(tmp_path / "d") as writer:
        rows = [{"text": f"document {number}"} for number in range(1200)]
        writer.add(row_set(rows, task="corpus-c4", split="validation"))
    corpus = load_corpus("c4", data_dir=tmp_path / "d", cache_dir=None)
    assert corpus.text == " ".join(f"document {number}" for number in range(1100))


def test_a_text_file_is_named_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "my notes.txt"
    path.write_bytes("\ufeffÜber allen\nGipfeln".encode())
    first = load_corpus(str(path), data_dir=None, cache_dir=None)
    assert first.text == "Über allen\nGipfeln"
    assert first.name.startswith("my_notes-")
    path.write_text("other words")
    assert load_corpus(str(path), data_dir=ROWS, cache_dir=None).name != first.name


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "found no file"), (b"\xff\xfe\x00", "UTF-8 .* byte 0xff"), (b" \n ", "holds no text")],
)
def test_an_unusable_text_file_is_one_line(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "corpus.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_corpus(str(path), data_dir=None, cache_dir=None)


@pytest.mark.parametrize("name", ["wikitext2", "c4", "boolq-passages"])
def test_a_corpus_that_the_folder_lacks_is_said_with_a_way_out(tmp_path: Path, name: str) -> None:
    with staged_writer(tmp_path / "d") as writer:
        writer.add(row_set([{"a": 1}]))
    with pytest.raises(PrunescopeError, match=f"no rows for the corpus {name}.*data pull"):
        load_corpus(name, data_dir=tmp_path / "d", cache_dir=None)
