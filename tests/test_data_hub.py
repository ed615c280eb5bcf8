"""Task rows and corpora from the hub: the real datasets library against a loopback server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hub import Hub, running_hub, save_dataset

from prunescope.errors import DataError
from prunescope.evaluate.data import check_hub, load_corpus, pull, verify
from prunescope.evaluate.data.folder import read_manifest, read_rows
from prunescope.evaluate.tasks import load_tasks

ROWS = Path(__file__).parent / "data" / "tasks"


def hand_written(name: str) -> dict[str, list[dict[str, Any]]]:
    manifest = read_manifest(ROWS)
    return {split: read_rows(ROWS, file) for split, file in manifest.splits(name).items()}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The hand-written rows as data sets of the hub, under the ids that lm-eval's tasks name."""
    folder = tmp_path_factory.mktemp("published")
    return {
        "aps/super_glue": save_dataset(folder / "boolq", {"boolq": hand_written("boolq")}),
        "Rowan/hellaswag": save_dataset(
            folder / "hellaswag", {"default": hand_written("hellaswag")}, suffix="jsonl"
        ),
        "Salesforce/wikitext": save_dataset(
            folder / "wikitext", {"wikitext-2-raw-v1": hand_written("wikitext2")}
        ),
    }


@pytest.fixture
def hub(
    published: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Hub]:
    with running_hub() as running:
        for name, folder in published.items():
            running.add_dataset(name, folder)
        running.use(monkeypatch, tmp_path / "home")
        yield running


def requests(name: str, data_dir: Path | None, **changes: Any) -> list[tuple[Any, ...]]:
    settings: dict[str, Any] = {"num_fewshot": None, "seed": 0, **changes}
    task = load_tasks([name], data_dir=data_dir, **settings).leaves[name]
    task.build_all_requests(limit=None)
    return [instance.args for instance in task.instances]


def error_of(call: Any, *args: Any, seconds: float, **kwargs: Any) -> str:
    """The one line of the DataError that a call raises within so many seconds."""
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        call(*args, **kwargs)
    assert time.monotonic() - start < seconds
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- what is there ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["boolq", "hellaswag"])
@pytest.mark.parametrize("shots", [0, 2])
def test_hub_and_folder_make_the_same_requests(hub: Hub, name: str, shots: int) -> None:
    assert requests(name, None, num_fewshot=shots) == requests(name, ROWS, num_fewshot=shots)


@pytest.mark.parametrize("name", ["wikitext2", "boolq-passages"])
def test_hub_and_folder_give_the_same_corpus(hub: Hub, name: str) -> None:
    from_hub = load_corpus(name, data_dir=None, cache_dir=None)
    assert from_hub.text == load_corpus(name, data_dir=ROWS, cache_dir=None).text
    assert from_hub.source.startswith("hub: ")


def test_pull_writes_the_hubs_rows_and_where_they_came_from(hub: Hub, tmp_path: Path) -> None:
    said: list[str] = []
    manifest = pull(
        tmp_path / "d", tasks=["boolq", "boolq-passages", "hellaswag"], source="hub",
        say=said.append,
    )  # fmt: skip
    assert verify(tmp_path / "d") == manifest
    for name in ("boolq", "hellaswag", "wikitext2"):
        for split, file in manifest.splits(name).items():
            assert read_rows(tmp_path / "d", file) == hand_written(name)[split]
    assert {(file.task, file.split) for file in manifest.files} == {
        ("wikitext2", "test"), ("boolq", "validation"), ("boolq", "train"),
        ("hellaswag", "validation"), ("hellaswag", "train"),
    }  # fmt: skip
    boolq = manifest.splits("boolq")["validation"]
    assert boolq.source.startswith("hub: aps/super_glue boolq @ ")
    assert boolq.license == "CC-BY-SA-3.0"
    assert any("boolq/validation.jsonl: 10 rows" in line for line in said)
    hub.stop()
    assert requests("boolq", tmp_path / "d", num_fewshot=3) == requests(
        "boolq", ROWS, num_fewshot=3
    )


def test_any_task_with_rows_can_be_pulled(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "bridges.yaml"
    path.write_text(
        "task: bridges\ndataset_path: aps/super_glue\ndataset_name: boolq\ntest_split: train\n"
        'fewshot_split: validation\noutput_type: multiple_choice\ndoc_to_text: "{{question}}?"\n'
        'doc_to_target: label\ndoc_to_choice: ["no", "yes"]\nmetric_list:\n  - metric: acc\n'
    )
    manifest = pull(tmp_path / "d", tasks=[str(path)], source="hub", say=lambda _: None)
    assert set(manifest.splits("bridges")) == {"train", "validation"}
    tasks = load_tasks([str(path)], data_dir=tmp_path / "d", num_fewshot=2, seed=1)
    reference = load_tasks([str(path)], data_dir=None, num_fewshot=2, seed=1)
    for loaded in (tasks, reference):
        loaded.leaves["bridges"].build_all_requests(limit=None)
    assert [one.args for one in tasks.leaves["bridges"].instances] == [
        other.args for other in reference.leaves["bridges"].instances
    ]


def test_downloads_go_to_the_folder_that_is_named(hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    load_tasks(["boolq"], data_dir=None, num_fewshot=None, seed=0, cache_dir=str(cache))
    load_corpus("wikitext2", data_dir=None, cache_dir=str(cache))
    assert (cache / "datasets").is_dir()
    assert (cache / "datasets--Salesforce--wikitext").is_dir()
    home = tmp_path / "home"
    assert not list(home.rglob("*.parquet"))
    assert not list(home.rglob("*.arrow"))


def test_a_fresh_process_reaches_the_hub_through_hf_endpoint(hub: Hub, tmp_path: Path) -> None:
    script = (
        "from prunescope.evaluate.tasks import load_tasks\n"
        "from prunescope.evaluate.data import load_corpus\n"
        "loaded = load_tasks(['boolq'], data_dir=None, num_fewshot=None, seed=0)\n"
        "corpus = load_corpus('wikitext2', data_dir=None, cache_dir=None)\n"
        "print(loaded.source, len(loaded.leaves['boolq'].eval_docs), len(corpus.text))\n"
    )

    def run(**changes: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=hub.environment(tmp_path / "home", **changes),
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        return done.stdout

    expected = len(load_corpus("wikitext2", data_dir=ROWS, cache_dir=None).text)
    assert run() == f"hub 10 {expected}\n"
    assert any("/aps/super_glue/" in request for request in hub.requests)
    hub.stop()
    assert run(HF_HUB_OFFLINE="1") == f"hub 10 {expected}\n"


# --- what is not --------------------------------------------------------------------------------


def test_a_hub_that_is_gone_is_one_line_at_once(hub: Hub) -> None:
    hub.stop()
    text = error_of(check_hub, seconds=1)
    assert text.startswith(f"cannot reach the hub at {hub.url}. Set HF_ENDPOINT to a mirror")
    assert "--data-dir" in text
    for text in (
        error_of(load_tasks, ["boolq"], data_dir=None, num_fewshot=None, seed=0, seconds=8),
        error_of(load_corpus, "wikitext2", data_dir=None, cache_dir=None, seconds=4),
    ):
        assert text.startswith(f"cannot reach the hub at {hub.url}")


def test_a_hub_that_does_not_answer_is_one_line_in_seconds(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunescope.evaluate.data.hub.PROBE_SECONDS", 1.0)
    hub.delay = 30
    text = error_of(load_corpus, "wikitext2", data_dir=None, cache_dir=None, seconds=6)
    assert text.startswith(f"the hub at {hub.url} did not answer within 1 s. Set HF_ENDPOINT")


def test_a_hub_that_fails_is_one_line_at_once(hub: Hub) -> None:
    hub.status = 503
    text = error_of(load_corpus, "wikitext2", data_dir=None, cache_dir=None, seconds=4)
    assert text.startswith(f"the hub at {hub.url} is failing (status 503)")


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_hub_that_refuses_everything_is_one_line(hub: Hub, status: int) -> None:
    hub.status = status
    text = error_of(load_corpus, "wikitext2", data_dir=None, cache_dir=None, seconds=8)
    assert hub.url in text
    assert "the corpus wikitext2" in text
    assert "--data-dir" in text


def test_a_data_set_that_the_hub_lacks_is_named_by_its_task(hub: Hub) -> None:
    settings: dict[str, Any] = {"data_dir": None, "num_fewshot": None, "seed": 0}
    text = error_of(load_tasks, ["boolq", "winogrande"], **settings, seconds=20)
    assert text.startswith(f"the hub at {hub.url} has no data for task winogrande")


def test_a_gated_data_set_asks_for_access(hub: Hub) -> None:
    hub.gate("Salesforce/wikitext", kind="datasets")
    text = error_of(load_corpus, "wikitext2", data_dir=None, cache_dir=None, seconds=8)
    assert "does not let you read the data of the corpus wikitext2" in text
    assert "HF_TOKEN" in text


def test_what_was_downloaded_before_is_used_when_the_hub_is_gone(hub: Hub) -> None:
    before = requests("boolq", None)
    corpus = load_corpus("wikitext2", data_dir=None, cache_dir=None)
    hub.stop()
    assert requests("boolq", None) == before
    assert load_corpus("wikitext2", data_dir=None, cache_dir=None).text == corpus.text
    text = error_of(load_corpus, "c4", data_dir=None, cache_dir=None, seconds=4)
    assert text.startswith("cannot reach the hub")


def test_offline_without_a_cache_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    settings: dict[str, Any] = {"data_dir": None, "num_fewshot": None, "seed": 0}
    for text in (
        error_of(load_tasks, ["boolq"], **settings, seconds=8),
        error_of(load_corpus, "wikitext2", data_dir=None, cache_dir=None, seconds=4),
    ):
        assert "were not downloaded before, and HF_HUB_OFFLINE is set" in text
    assert hub.requests == []


def test_a_failed_pull_from_the_hub_leaves_nothing(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="task winogrande"):
        pull(tmp_path / "d", tasks=["boolq", "winogrande"], source="hub", say=lambda _: None)
    assert not (tmp_path / "d").exists()


def test_importing_the_data_layer_loads_nothing_big() -> None:
    script = (
        "import sys, json, prunescope.evaluate.data, prunescope.evaluate.tasks\n"
        "big = {'torch', 'transformers', 'datasets', 'lm_eval', 'pandas', 'pyarrow', 'requests'}\n"
        "print(json.dumps(sorted(big & set(sys.modules))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ
    )
    assert json.loads(done.stdout) == []
