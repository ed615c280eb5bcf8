"""Models and data sets from the hub: the real huggingface_hub against a hub on the loopback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.hub import TOKEN, Hub, running_hub, save_dataset
from support.loading import assert_same_weights, config, load
from support.models import save_tiny_model, tiny_model

from prunescope.errors import ModelError
from prunescope.evaluate import loading
from prunescope.evaluate.progress import SilentProgress
from prunescope.records import Stage

ID = "someone/tiny-llama"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub with a sharded model: seed 0 at ``v1``, seed 1 at ``main``; this process uses it."""
    from huggingface_hub import constants

    old = save_tiny_model(tmp_path / "repository-v1", max_shard_size="60KB")
    new = save_tiny_model(tmp_path / "repository-v2", seed=1, max_shard_size="60KB")
    for folder in (old, new):
        (folder / "original").mkdir()
        (folder / "original/consolidated.00.pth").write_bytes(b"0" * 5000)
        torch.save({}, folder / "pytorch_model.bin")
        (folder / "README.md").write_text("A model.")
        (folder / "modeling_own.py").write_text("raise SystemExit")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
    with running_hub() as server:
        server.add_model(ID, old, refs=("v1",))
        server.add_model(ID, new, refs=("main",))
        server.use(monkeypatch, tmp_path / "home")
        yield server


def refusal(model: str, **changes: Any) -> str:
    """What finding the model is refused with: one line, and soon."""
    began = time.monotonic()
    with pytest.raises(ModelError) as caught:
        loading.resolve_model(config(model, **changes))
    assert time.monotonic() - began < 5
    text = str(caught.value)
    assert "\n" not in text
    return text


def fetched(hub: Hub) -> list[str]:
    """Names of the files whose content was sent."""
    return sorted(
        r.split("/")[-1] for r in hub.requests if r.startswith("GET") and "/resolve/" in r
    )


# --- what is fetched ----------------------------------------------------------------------------


def test_a_sharded_model_at_a_revision_loads_exactly(hub: Hub) -> None:
    resolved = loading.resolve_model(config(f"{ID}@v1"))
    loaded = loading.load_model(resolved, config(f"{ID}@v1"), SilentProgress())
    assert_same_weights(loaded.model, tiny_model(seed=0).state_dict())
    commit = hub.repositories["models", ID].refs["v1"]
    info = loading.describe_model(resolved, loaded, config(f"{ID}@v1"))
    assert (info.hub_id, info.revision, info.name) == (ID, commit, "tiny-llama")
    assert info.requested == f"{ID}@v1"
    assert len(resolved.files) == 3
    assert_same_weights(load(ID).model, tiny_model(seed=1).state_dict())
    assert_same_weights(load(f"{ID}@{commit}").model, tiny_model(seed=0).state_dict())


def test_only_config_tokenizer_and_safetensors_are_fetched_and_only_once(hub: Hub) -> None:
    loading.resolve_model(config(ID))
    assert fetched(hub) == [
        "config.json",
        "generation_config.json",
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    hub.requests.clear()
    loading.resolve_model(config(ID))
    assert fetched(hub) == []


def test_code_is_fetched_only_where_it_is_allowed(hub: Hub) -> None:
    loading.resolve_model(config(ID, trust_remote_code=True))
    assert "modeling_own.py" in fetched(hub)


def test_bin_is_fetched_where_there_is_no_safetensors(hub: Hub, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "bin")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    hub.add_model("someone/bin", folder)
    assert_same_weights(load("someone/bin").model, tiny_model().state_dict())


def test_a_model_without_owner_is_found(hub: Hub, tmp_path: Path) -> None:
    hub.add_model("tiny", save_tiny_model(tmp_path / "tiny"))
    assert loading.resolve_model(config("tiny")).hub_id == "tiny"


def test_a_local_folder_comes_before_the_hub(hub: Hub) -> None:
    save_tiny_model(Path(ID))
    resolved = loading.resolve_model(config(ID))
    assert resolved.hub_id is None
    assert hub.requests == []


def test_an_adapter_and_its_base_come_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False)
    get_peft_model(tiny_model(), settings).save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_config.json"
    named = {**json.loads(path.read_text()), "base_model_name_or_path": ID, "revision": "v1"}
    path.write_text(json.dumps(named))
    hub.add_model("someone/adapter", tmp_path / "adapter")
    resolved = loading.resolve_model(config("someone/adapter"))
    assert resolved.base is not None
    assert resolved.base.revision == hub.repositories["models", ID].refs["v1"]
    found = load("someone/adapter").model.state_dict()
    for name, tensor in tiny_model(seed=0).state_dict().items():
        assert torch.equal(found[name], tensor) == ("v_proj" not in name)


def test_a_tokenizer_comes_from_the_hub_without_the_weights(hub: Hub, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "bare")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    settings = config(str(folder), tokenizer=f"{ID}@v1")
    tokenizer = loading.load_tokenizer(loading.resolve_model(settings), settings)
    assert len(tokenizer) == 384
    assert fetched(hub) == ["config.json", "tokenizer.json", "tokenizer_config.json"]


def test_progress_ends_at_the_bytes_of_the_weights(hub: Hub) -> None:
    class Bytes(SilentProgress):
        totals: list[float | None]
        done: list[float]

        def start(self, stage: Stage, description: str, total: float | None) -> None:
            self.totals.append(total)
            self.done.append(0.0)

        def advance(self, amount: float) -> None:
            self.done[-1] += amount

    progress = Bytes()
    progress.totals, progress.done = [], []
    resolved = loading.resolve_model(config(ID), progress)
    assert progress.totals[-1] == sum(file.stat().st_size for file in resolved.files)
    assert progress.done == pytest.approx(progress.totals)


def test_cache_dir_is_where_downloads_go(hub: Hub, tmp_path: Path) -> None:
    resolved = loading.resolve_model(config(ID, cache_dir=str(tmp_path / "cache")))
    assert resolved.path.is_relative_to(tmp_path / "cache")
    assert not (tmp_path / "home").exists()


def test_nothing_reaches_the_terminal(hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    load(ID)
    hub.stop()
    loading.resolve_model(config(ID))
    assert capfd.readouterr() == ("", "")


# --- from a fresh process, by the environment alone ---------------------------------------------

PROGRAM = """
import sys
from prunescope.errors import PrunescopeError
from prunescope.evaluate.loading import resolve_model
from prunescope.records import EvalConfig
try:
    print(resolve_model(EvalConfig(model=sys.argv[1])).path)
except PrunescopeError as error:
    sys.exit(str(error))
"""


def test_hf_endpoint_hf_home_and_offline_are_honoured(hub: Hub, tmp_path: Path) -> None:
    def run(**changes: str) -> subprocess.CompletedProcess[str]:
        environment = hub.environment(tmp_path / "elsewhere", **changes)
        command = [sys.executable, "-c", PROGRAM, f"{ID}@v1"]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    refused = run(HF_HUB_OFFLINE="1")
    assert refused.returncode == 1
    assert "HF_HUB_OFFLINE" in refused.stderr and hub.requests == []
    online = run()
    assert online.stderr == ""
    path = Path(online.stdout.strip())
    assert path.is_relative_to(tmp_path / "elsewhere")
    assert path.name == hub.repositories["models", ID].refs["v1"]
    hub.requests.clear()
    offline = run(HF_HUB_OFFLINE="1")
    assert (offline.stdout, offline.stderr) == (online.stdout, "")
    assert hub.requests == []
    hub.stop()
    assert run().stdout == online.stdout


# --- what goes wrong ----------------------------------------------------------------------------


def test_a_hub_that_is_gone_is_told_at_once(hub: Hub) -> None:
    hub.stop()
    text = refusal(ID)
    assert hub.url in text and "HF_ENDPOINT" in text and ID in text


def test_a_hub_that_is_slow_is_told_soon(hub: Hub) -> None:
    hub.delay = 60
    text = refusal(ID)
    assert hub.url in text and "HF_ENDPOINT" in text


@pytest.mark.parametrize("failure", ["gone", "slow", "503"])
def test_a_cached_model_is_used_when_the_hub_does_not_answer(hub: Hub, failure: str) -> None:
    first = loading.resolve_model(config(f"{ID}@v1"))
    if failure == "gone":
        hub.stop()
    hub.delay = 60 if failure == "slow" else 0
    hub.status = 503 if failure == "503" else None
    again = loading.resolve_model(config(f"{ID}@v1"))
    assert (again.path, again.revision) == (first.path, first.revision)
    assert hub.url in again.notes[0] and "came from the cache" in again.notes[0]
    assert f"{ID}@v1 came from the cache" in load(f"{ID}@v1").notes[0]


def test_a_half_downloaded_model_is_told_when_the_hub_is_gone(hub: Hub) -> None:
    first = loading.resolve_model(config(ID))
    first.files[1].unlink()
    hub.stop()
    assert f"{first.files[1].name} of the 3 weight files" in refusal(ID)


def test_a_truncated_download_is_told(hub: Hub) -> None:
    first = loading.resolve_model(config(ID))
    blob = first.files[1].resolve()
    blob.write_bytes(blob.read_bytes()[:-100])
    assert f"{first.files[1]} is truncated" in refusal(ID)


@pytest.mark.parametrize("token", [None, TOKEN], ids=["401", "404"])
def test_an_unknown_model_is_told_with_the_nearest_folders(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    save_tiny_model(Path("models/tiny-llama"))
    text = refusal("someone/tiny-lama")
    assert f"no model 'someone/tiny-lama' on {hub.url}" in text
    assert "Nearest: models/tiny-llama" in text


@pytest.mark.parametrize("token", [None, TOKEN], ids=["401", "403"])
def test_a_gated_model_names_hf_token(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.gate(ID)
    text = refusal(ID)
    assert f"{ID} is gated" in text and "HF_TOKEN" in text and f"{hub.url}/{ID}" in text


@pytest.mark.parametrize("status", [401, 403])
def test_a_mirror_that_refuses_names_hf_token(hub: Hub, status: int) -> None:
    hub.status = status
    text = refusal(ID)
    assert f"refuses access to {ID} ({status})" in text and "HF_TOKEN" in text


def test_a_mirror_without_the_model_names_it(hub: Hub) -> None:
    hub.status = 404
    assert f"no model '{ID}' on {hub.url}" in refusal(ID)


def test_a_refusal_is_not_hidden_by_the_cache(hub: Hub) -> None:
    loading.resolve_model(config(ID))
    hub.status = 404
    assert f"no model '{ID}'" in refusal(ID)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_fails_is_told_with_its_status(hub: Hub, status: int) -> None:
    hub.status = status
    assert f"{hub.url} failed with status {status}" in refusal(ID)


def test_an_unknown_revision_is_told(hub: Hub) -> None:
    text = refusal(f"{ID}@v3")
    assert f"{ID} has no revision 'v3'" in text and f"{hub.url}/{ID}" in text


def test_a_login_page_is_told(hub: Hub) -> None:
    hub.page = "<html>Sign in to the network</html>"
    text = refusal(ID)
    assert f"what answers at {hub.url} is not a Hugging Face hub" in text


def test_an_endpoint_that_is_no_address_is_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "hub.example")
    text = refusal(ID)
    assert "hub.example" in text and "HF_ENDPOINT" in text


def test_a_repository_without_readable_weights_is_told(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "gguf"
    folder.mkdir()
    (folder / "tiny.Q4_0.gguf").write_bytes(b"GGUF")
    hub.add_model("someone/gguf", folder)
    text = refusal("someone/gguf")
    assert "tiny.Q4_0.gguf" in text and "give its path" in text
    (folder / "tiny.Q4_0.gguf").rename(folder / "tf_model.h5")
    hub.add_model("someone/tensorflow", folder)
    text = refusal("someone/tensorflow")
    assert "no weights in safetensors or PyTorch" in text and "tf_model.h5" in text


def test_a_cache_that_cannot_be_written_is_told(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    text = refusal(ID, cache_dir=str(tmp_path / "file/cache"))
    assert "cannot store" in text and "--cache-dir" in text


def test_what_is_no_hub_id_is_never_asked_for(hub: Hub) -> None:
    for name in ("a/b/c", "./tiny", "../tiny", "/tiny", "tiny.gguf", "a b", "a..b", "-/~"):
        refusal(name)
    assert hub.requests == []


# --- data sets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_datasets_loads_from_the_loopback_hub(hub: Hub, tmp_path: Path, suffix: Any) -> None:
    import datasets

    rows = [{"question": "is the sky blue", "answer": True}, {"question": "no", "answer": False}]
    folder = save_dataset(
        tmp_path / "rows", {"a": {"test": rows}, "b": {"train": rows[:1]}}, suffix=suffix
    )
    hub.add_dataset("someone/rows", folder)
    found = datasets.load_dataset("someone/rows", "a", split="test")
    assert found.to_list() == rows
    assert datasets.load_dataset("someone/rows", "b")["train"].num_rows == 1
    shutil.rmtree(tmp_path / "home")
