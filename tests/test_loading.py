"""From a name to a model: every kind of checkpoint, and every way in which it can be broken."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.loading import assert_same_weights, config, load, refusal, write_gguf
from support.models import VOCAB_SIZE, prune_magnitude, save_tiny_model, tiny_model, tiny_tokenizer

from prunescope.errors import ModelError, SettingError
from prunescope.evaluate import loading
from prunescope.evaluate.progress import SilentProgress
from prunescope.records import Stage


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Llama, to be broken."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "tiny-llama"))


def edit_json(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text())
    value.update(changes)
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


def save_bin(folder: Path, weights: dict[str, Any]) -> Path:
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


# --- kinds of checkpoints -----------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_one_safetensors_file_loads_exactly(family: str, tmp_path: Path) -> None:
    loaded = load(save_tiny_model(tmp_path / family, family))
    assert_same_weights(loaded.model, tiny_model(family).state_dict())
    assert not loaded.model.training
    assert loaded.device == torch.device("cpu")
    assert loaded.notes == ()


def test_shards_load_exactly_and_are_listed_in_order(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "sharded", max_shard_size="60KB")
    resolved = loading.resolve_model(config(path))
    assert len(resolved.files) > 2
    assert [f.name for f in resolved.files] == sorted(p.name for p in path.glob("model-*"))
    assert_same_weights(load(path).model, tiny_model().state_dict())


def test_bin_loads_exactly(folder: Path) -> None:
    save_bin(folder, load_file(folder / "model.safetensors"))
    loaded = load(folder)
    assert loading.resolve_model(config(folder)).kind == "bin"
    assert_same_weights(loaded.model, tiny_model().state_dict())


def test_sharded_bin_loads_exactly(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {
        "pytorch_model-00001-of-00002.bin": names[:5],
        "pytorch_model-00002-of-00002.bin": names[5:],
    }
    for file, keys in parts.items():
        torch.save({key: weights[key] for key in keys}, folder / file)
    index = {"metadata": {}, "weight_map": {k: f for f, keys in parts.items() for k in keys}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_same_weights(load(folder).model, tiny_model().state_dict())


def test_safetensors_is_preferred_over_bin(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    assert loading.resolve_model(config(folder)).kind == "safetensors"


def test_a_pickle_that_runs_code_is_refused_without_running_it(
    folder: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "it-ran"

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (marker,)

    save_bin(folder, {"model.embed_tokens.weight": Evil()})
    text = refusal(folder)
    assert str(folder) in text and "safetensors" in text
    assert not marker.exists()


def test_tied_weights_are_one_tensor_and_counted_once(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "tied", tie_word_embeddings=True)
    loaded = load(path)
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    info = loading.describe_model(loading.resolve_model(config(path)), loaded, config(path))
    stored = load_file(path / "model.safetensors")
    assert "lm_head.weight" not in stored
    assert info.parameters == sum(tensor.numel() for tensor in stored.values())


def test_progress_ends_at_the_size_of_the_weights(tmp_path: Path) -> None:
    class Bytes(SilentProgress):
        total: float | None = None
        done = 0.0
        finished = False

        def start(self, stage: Stage, description: str, total: float | None) -> None:
            assert stage == "load"
            self.total = total

        def advance(self, amount: float) -> None:
            self.done += amount

        def finish(self) -> None:
            self.finished = True

    path = save_tiny_model(tmp_path / "sharded", max_shard_size="60KB")
    progress = Bytes()
    loading.load_model(loading.resolve_model(config(path)), config(path), progress)
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    assert progress.total == size
    assert progress.done == pytest.approx(size)
    assert progress.finished


# --- adapters -----------------------------------------------------------------------------------


@pytest.fixture
def adapter(folder: Path) -> Path:
    """A random LoRA adapter beside its base, which it names by a relative path."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(7)
    settings = LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False
    )
    path = folder.parent / "adapter"
    get_peft_model(tiny_model(), settings).save_pretrained(path)
    edit_json(path / "adapter_config.json", base_model_name_or_path="../tiny-llama")
    return path


def test_a_lora_adapter_is_base_plus_scaled_product(adapter: Path) -> None:
    loaded = load(adapter)
    expected = {name: tensor.clone() for name, tensor in tiny_model().state_dict().items()}
    parts = load_file(adapter / "adapter_model.safetensors")
    changed = 0
    for name in expected:
        stem = "base_model.model." + name.removesuffix(".weight")
        if f"{stem}.lora_A.weight" in parts:
            a, b = parts[f"{stem}.lora_A.weight"], parts[f"{stem}.lora_B.weight"]
            expected[name] += (6 / 4) * (b.double() @ a.double()).float()
            changed += 1
    assert changed == 4
    found = loaded.model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6)
        assert torch.equal(found[name], tiny_model().state_dict()[name]) == (
            "q_proj" not in name and "down_proj" not in name
        )


def test_the_record_says_that_an_adapter_was_merged(adapter: Path) -> None:
    settings = config(adapter)
    resolved = loading.resolve_model(settings)
    loaded = loading.load_model(resolved, settings, SilentProgress())
    base = str(adapter.parent / "tiny-llama")
    info = loading.describe_model(resolved, loaded, settings)
    assert (info.kind, info.adapter_of, info.name) == ("peft", base, "adapter")
    assert any("merged onto" in note and base in note for note in loaded.notes)
    files = [adapter / "adapter_model.safetensors", adapter.parent / "tiny-llama/model.safetensors"]
    assert info.bytes == sum(file.stat().st_size for file in files)


def test_an_adapter_without_its_base_names_the_base(adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="../tiny-lama")
    text = refusal(adapter)
    assert "needs its base model ../tiny-lama" in text
    assert "tiny-llama" in text.split("Nearest:")[1]


def test_an_adapter_that_names_no_base_or_itself_is_refused(adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="../adapter")
    assert "names itself" in refusal(adapter)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=None)
    assert "does not name the base model" in refusal(adapter)


def test_an_adapter_without_weights_is_refused(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    assert "has no weights: expected adapter_model.safetensors" in refusal(adapter)


@pytest.mark.parametrize("layers", [1, 3])
def test_an_adapter_of_another_model_is_refused(adapter: Path, layers: int) -> None:
    save_tiny_model(adapter.parent / "other", num_hidden_layers=layers)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="../other")
    assert "does not fit its base model, first at base_model.model" in refusal(adapter)


def test_a_folder_with_both_a_model_and_an_adapter_is_refused(adapter: Path, folder: Path) -> None:
    shutil.copy(adapter / "adapter_config.json", folder)
    assert "both a model (model.safetensors) and an adapter" in refusal(folder)


def test_an_adapter_that_cannot_be_merged_is_refused(folder: Path, tmp_path: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model

    path = tmp_path / "prompt"
    settings = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    get_peft_model(tiny_model(), settings).save_pretrained(path)
    edit_json(path / "adapter_config.json", base_model_name_or_path=str(folder))
    assert "cannot be merged" in refusal(path)


# --- dtype, device, lengths ---------------------------------------------------------------------


def test_auto_dtype_is_float32_on_cpu_and_the_stored_one_is_told(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "half", dtype=torch.bfloat16)
    loaded = load(path)
    assert loaded.dtype == torch.float32
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    expected = {k: v.bfloat16().float() for k, v in tiny_model().state_dict().items()}
    assert_same_weights(loaded.model, expected)
    info = loading.describe_model(loading.resolve_model(config(path)), loaded, config(path))
    assert (info.dtype, info.stored_dtype) == ("float32", "bfloat16")


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
def test_auto_dtype_is_the_stored_one_on_gpu(stored: torch.dtype, tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "stored", dtype=stored)
    # What config.json says is not what counts.
    edit_json(path / "config.json", dtype="float32")
    resolved = loading.resolve_model(config(path))
    assert loading.resolve_dtype(resolved, config(path), torch.device("cuda")) == stored


def test_a_dtype_that_is_asked_for_is_the_one_it_runs_in(tiny_llama: Path) -> None:
    loaded = load(tiny_llama, dtype="bfloat16")
    assert loaded.dtype == torch.bfloat16
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}


def test_a_bad_dtype_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    text = refusal(tmp_path / "nothing-here", SettingError, dtype="int8")
    assert text.startswith("--dtype must be one of auto, float32, float16, bfloat16, found 'int8'")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_an_absent_gpu_is_told(tiny_llama: Path, device: str) -> None:
    text = refusal(tiny_llama, SettingError, device=device)
    assert f"--device {device} needs" in text and "found 0" in text
    assert "--device cpu" in text


def test_a_device_that_is_none_is_told(tiny_llama: Path) -> None:
    assert "found 'gpu'" in refusal(tiny_llama, SettingError, device="gpu")


def test_device_map_auto_loads_on_cpu_as_well(tiny_llama: Path) -> None:
    loaded = load(tiny_llama, device_map="auto")
    assert_same_weights(loaded.model.cpu(), tiny_model().state_dict())
    assert loaded.notes == ()
    told = load(tiny_llama, device_map="auto", device="cpu").notes
    assert told == ("--device-map auto was not used, because --device cpu was given",)


@pytest.mark.parametrize(
    ("family", "changes", "expected"),
    [
        ("llama", {"max_position_embeddings": 77}, 77),
        ("gpt2", {"n_positions": 64}, 64),
        ("opt", {"max_position_embeddings": 99}, 99),
    ],
)
def test_longest_sequence_is_lm_evals(
    family: str, changes: dict[str, int], expected: int, tmp_path: Path
) -> None:
    from lm_eval.models.utils import resolve_max_length

    path = save_tiny_model(tmp_path / family, family, **changes)
    loaded = load(path)
    assert loaded.max_length == expected
    assert loaded.max_length == resolve_max_length(loaded.model.config, loaded.tokenizer)
    info = loading.describe_model(loading.resolve_model(config(path)), None, config(path))
    assert info.max_length == expected


def bloom(path: Path) -> Path:
    """A model whose config names no length."""
    from transformers import BloomConfig, BloomForCausalLM

    settings = BloomConfig(vocab_size=VOCAB_SIZE, hidden_size=16, n_layer=1, n_head=2)
    BloomForCausalLM(settings).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def test_longest_sequence_is_the_tokenizers_where_the_config_names_none(tmp_path: Path) -> None:
    path = bloom(tmp_path / "bloom")
    resolved = loading.resolve_model(config(path))
    assert load(path).max_length == 256
    assert loading.describe_model(resolved, None, config(path)).max_length == 256
    edit_json(path / "tokenizer_config.json", model_max_length=None)
    assert load(path).max_length == 2048
    assert loading.describe_model(resolved, None, config(path)).max_length == 2048


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_what_is_told_before_loading_holds_after_it(family: str, tmp_path: Path) -> None:
    settings = config(save_tiny_model(tmp_path / family, family, dtype=torch.float16))
    resolved = loading.resolve_model(settings)
    before = loading.describe_model(resolved, None, settings)
    loaded = loading.load_model(resolved, settings, SilentProgress())
    after = loading.describe_model(resolved, loaded, settings)
    known_later = {"parameters": None, "tokenizer_sha256": None}
    assert after.model_copy(update=known_later) == before
    assert after.parameters == sum(p.numel() for p in tiny_model(family).parameters())
    assert after.tokenizer_sha256 == loading.tokenizer_sha256(tiny_tokenizer())


# --- tokenizers ---------------------------------------------------------------------------------


def test_the_tokenizer_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    text = refusal(folder)
    assert "has no tokenizer" in text and "--tokenizer" in text
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    loaded = load(folder, tokenizer=str(tmp_path / "tokenizer"))
    assert len(loaded.tokenizer) == VOCAB_SIZE


def test_a_tokenizer_that_is_not_there_is_told(folder: Path, tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer-a")
    text = refusal(folder, tokenizer=str(tmp_path / "tokenizer-b"))
    assert "no tokenizer folder at" in text and "tokenizer-a" in text
    (tmp_path / "empty").mkdir()
    assert "has no tokenizer" in refusal(folder, tokenizer=str(tmp_path / "empty"))


def test_a_damaged_tokenizer_is_told(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model":')
    assert f"cannot read the tokenizer in {folder}" in refusal(folder)


def test_a_tokenizer_of_another_model_is_told(folder: Path, tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "small", vocab_size=300)
    assert "the tokenizer has 384 tokens, the model 300" in refusal(path)


def test_the_tokenizers_hash_ignores_folder_padding_and_truncation(
    tiny_llama: Path, tmp_path: Path
) -> None:
    first = loading.load_tokenizer(loading.resolve_model(config(tiny_llama)), config(tiny_llama))
    digest = loading.tokenizer_sha256(first)
    first(["a", "a longer text"], padding=True, truncation=True, max_length=3)
    first.padding_side = "left"
    assert loading.tokenizer_sha256(first) == digest
    first.save_pretrained(tmp_path / "copy")
    shutil.copy(tiny_llama / "config.json", tmp_path / "copy")
    again = load(tiny_llama, tokenizer=str(tmp_path / "copy")).tokenizer
    assert loading.tokenizer_sha256(again) == digest


def test_the_tokenizers_hash_follows_what_decides_ids() -> None:
    from tokenizers.processors import TemplateProcessing

    digests = [loading.tokenizer_sha256(tiny_tokenizer())]
    prefixed = tiny_tokenizer()
    prefixed.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    digests.append(loading.tokenizer_sha256(prefixed))
    extended = tiny_tokenizer()
    extended.add_tokens(["prune"])
    digests.append(loading.tokenizer_sha256(extended))
    renamed = tiny_tokenizer()
    renamed.bos_token = "</s>"
    digests.append(loading.tokenizer_sha256(renamed))
    assert len(set(digests)) == 4


def test_a_tokenizer_without_a_fast_backend_has_a_hash(tmp_path: Path) -> None:
    from transformers.models.ctrl.tokenization_ctrl import CTRLTokenizer

    def build(name: str, merges: str) -> Any:
        place = tmp_path / name
        place.mkdir()
        vocabulary = {"a</w>": 0, "b</w>": 1, "<unk>": 2, "a": 3, "b": 4, "ab</w>": 5}
        (place / "vocab.json").write_text(json.dumps(vocabulary))
        (place / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
        return CTRLTokenizer(place / "vocab.json", place / "merges.txt")

    digests = [
        loading.tokenizer_sha256(build(name, merges))
        for name, merges in (("one", "a b</w>"), ("two", "a b</w>"), ("three", "b a</w>"))
    ]
    assert digests[0] == digests[1] != digests[2]


# --- hashes of sources --------------------------------------------------------------------------


def test_weights_in_plain_files_have_no_source_hash(tiny_llama: Path) -> None:
    assert loading.source_sha256(loading.resolve_model(config(tiny_llama))) is None


def test_an_adapters_hash_follows_adapter_and_base(adapter: Path) -> None:
    def digest() -> str | None:
        return loading.source_sha256(loading.resolve_model(config(adapter)))

    digests = [digest()]
    edit_json(adapter / "adapter_config.json", lora_alpha=12)
    digests.append(digest())
    weights = load_file(adapter / "adapter_model.safetensors")
    next(iter(weights.values()))[0, 0] += 1
    save_file(weights, adapter / "adapter_model.safetensors")
    digests.append(digest())
    prune_magnitude(tiny_model(), 0.5).save_pretrained(adapter.parent / "tiny-llama")
    digests.append(digest())
    edit_json(adapter.parent / "tiny-llama/config.json", rms_norm_eps=1e-3)
    digests.append(digest())
    assert None not in digests
    assert len(set(digests)) == 5
    moved = adapter.parent / "moved"
    shutil.copytree(adapter, moved / "adapter")
    shutil.copytree(adapter.parent / "tiny-llama", moved / "tiny-llama")
    assert loading.source_sha256(loading.resolve_model(config(moved / "adapter"))) == digests[-1]


def test_the_configs_hash_follows_the_computation_alone(folder: Path) -> None:
    resolved = loading.resolve_model(config(folder))
    first = loading.config_sha256(resolved)
    edit_json(folder / "config.json", transformers_version="4.0.0", dtype="float16")
    assert loading.config_sha256(resolved) == first
    edit_json(folder / "config.json", rms_norm_eps=0.5)
    assert loading.config_sha256(resolved) != first


# --- what bad input gets ------------------------------------------------------------------------


def test_a_missing_folder_is_told_with_the_nearest(folder: Path) -> None:
    text = refusal(folder.parent / "tiny-lama")
    assert f"no model folder or file at {folder.parent / 'tiny-lama'}" in text
    assert f"Nearest: {folder}" in text
    text = refusal(folder.parent.parent / (folder.parent.name + "x") / "tiny-llama")
    assert str(folder.parent) in text.split("Nearest:")[1]


def test_a_missing_name_without_a_hub_is_told_with_the_nearest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.parent / "work").mkdir()
    shutil.move(folder, folder.parent / "work/models/tiny-llama")
    monkeypatch.chdir(folder.parent / "work")
    text = refusal("tiny-lama")
    assert "HF_HUB_OFFLINE" in text
    assert "Nearest: models/tiny-llama" in text


def test_a_file_in_place_of_a_folder_is_told(folder: Path) -> None:
    assert f"Give the folder: {folder}" in refusal(folder / "model.safetensors")


def test_a_folder_without_config_is_told(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert f"{folder} has no config.json. Found: " in refusal(folder)
    assert f"It holds a model folder: give {folder.parent}" not in refusal(folder)


def test_a_folder_of_checkpoints_is_told_which(folder: Path) -> None:
    assert f"give {folder}" in refusal(folder.parent)


def test_a_folder_of_gguf_files_is_told_which(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    assert f"give {tmp_path / 'a.gguf'}" in refusal(tmp_path)


def test_a_folder_without_weights_is_told(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert f"{folder} has no weights: expected model.safetensors" in refusal(folder)


@pytest.mark.parametrize("keep", [0.9, 0.01, 0.00003])
def test_a_truncated_safetensors_file_is_told_before_loading(folder: Path, keep: float) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(ModelError) as caught:
        loading.resolve_model(config(folder))
    assert f"{path} is truncated" in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: struct.pack("<Q", 2**40) + data[8:],
        lambda data: data[:8] + b"\xff" * 20 + data[28:],
        lambda data: struct.pack("<Q", 2) + b"[]" + data[10:],
        lambda data: data + b"more",
        lambda data: b"",
    ],
    ids=["length", "header", "list", "longer", "empty"],
)
def test_a_corrupt_safetensors_file_is_told_before_loading(folder: Path, damage: Any) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelError) as caught:
        loading.resolve_model(config(folder))
    assert str(path) in str(caught.value)
    assert "again" in str(caught.value)


def test_a_corrupt_bin_file_is_told_before_loading(folder: Path) -> None:
    save_bin(folder, load_file(folder / "model.safetensors"))
    path = folder / "pytorch_model.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    assert f"{path} is truncated" in refusal(folder)
    path.write_bytes(b"<html>" + whole)
    assert f"{path} is not a PyTorch checkpoint" in refusal(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "sharded", max_shard_size="60KB")
    gone = sorted(path.glob("model-*"))[1]
    gone.unlink()
    text = refusal(path)
    assert f"{gone.name} of the 3 weight files that" in text
    assert "model.safetensors.index.json names is missing" in text


def test_a_broken_index_is_told(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "sharded", max_shard_size="60KB")
    index = path / "model.safetensors.index.json"
    index.write_text("{}")
    assert f"{index} names no weight files" in refusal(path)
    index.write_text("{")
    assert f"{index} is not JSON" in refusal(path)
    index.write_text("[]")
    assert "expected a JSON object" in refusal(path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_git_lfs_pointer_is_told(folder: Path, name: str) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    (folder / name).write_text(pointer)
    text = refusal(folder)
    assert f"{folder / name} is a Git LFS pointer" in text and "git lfs pull" in text


def test_missing_weights_are_refused_instead_of_random(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    text = refusal(folder)
    assert "1 weight is missing" in text and "model.layers.1.mlp.up_proj.weight" in text


def test_pruning_that_was_not_made_permanent_is_told(folder: Path) -> None:
    from torch.nn.utils import prune

    model = tiny_model()
    prune.l1_unstructured(model.model.layers[0].mlp.up_proj, "weight", amount=0.5)
    save_file(model.state_dict(), folder / "model.safetensors")
    text = refusal(folder)
    assert "model.layers.0.mlp.up_proj.weight; the files have" in text
    assert "torch.nn.utils.prune.remove" in text


def test_weights_saved_under_other_names_are_refused_with_one_of_them(folder: Path) -> None:
    weights = {f"module.{k}": v for k, v in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    assert "the files have module.lm_head.weight instead" in refusal(folder)


@pytest.mark.parametrize("value", [{"model": {}, "step": 3}, [1], torch.nn.Linear(2, 2)])
def test_a_bin_file_that_holds_something_else_is_refused(folder: Path, value: Any) -> None:
    assert str(folder) in refusal(save_bin(folder, value))


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    edit_json(folder / "config.json", intermediate_size=48)
    text = refusal(folder)
    assert "6 weights are of another shape than config.json says" in text
    assert "model.layers.0.mlp.down_proj.weight: (32, 64) instead of (32, 48)" in text


def test_weights_that_the_model_does_not_use_are_noted(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.extra.weight"] = torch.ones(2)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (note,) = load(folder).notes
    assert "1 stored tensor is not used" in note and "mlp.extra.weight" in note


def test_an_unknown_architecture_is_told(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="llamazilla", architectures=["LlamazillaModel"])
    text = refusal(folder)
    assert "LlamazillaModel" in text and "transformers" in text
    with pytest.raises(ModelError):
        loading.describe_model(loading.resolve_model(config(folder)), None, config(folder))


def test_a_model_that_is_no_language_model_is_told(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="vit", architectures=["ViTModel"])
    assert "(ViTModel) is not a causal language model" in refusal(folder)


def test_a_config_that_makes_no_model_is_told(folder: Path) -> None:
    edit_json(folder / "config.json", num_attention_heads="many")
    text = refusal(folder)
    assert f"cannot read the configuration of {folder}" in text and "num_attention_heads" in text


# --- code of the checkpoint's own ---------------------------------------------------------------

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({marker!r}).touch()

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint whose architecture is defined by Python code in its folder."""
    from transformers.utils import hub as transformers_hub

    monkeypatch.setattr(transformers_hub, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    import transformers.dynamic_module_utils as dynamic

    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    edit_json(
        folder / "config.json",
        model_type="own",
        architectures=["OwnModel"],
        auto_map={
            "AutoConfig": "modeling_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.OwnModel",
        },
    )
    (folder / "modeling_own.py").write_text(CODE.format(marker=str(tmp_path / "it-ran")))
    return folder


def test_code_of_the_checkpoints_own_runs_only_when_allowed(own_code: Path, tmp_path: Path) -> None:
    text = refusal(own_code)
    assert "needs Python code that comes with it" in text and "--trust-remote-code" in text
    assert not (tmp_path / "it-ran").exists()
    loaded = load(own_code, trust_remote_code=True)
    assert (tmp_path / "it-ran").exists()
    assert type(loaded.model).__name__ == "OwnModel"
    assert_same_weights(loaded.model, tiny_model().state_dict())
    assert any("Python code" in note for note in loaded.notes)
    settings = config(own_code, trust_remote_code=True)
    info = loading.describe_model(loading.resolve_model(settings), loaded, settings)
    assert info.trust_remote_code and info.architecture == "OwnModel"


# --- manners ------------------------------------------------------------------------------------


def test_nothing_reaches_the_terminal(
    adapter: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    weights = load_file(adapter.parent / "tiny-llama/model.safetensors")
    weights["surplus"] = torch.ones(2)
    save_file(weights, adapter.parent / "tiny-llama/model.safetensors", metadata={"format": "pt"})
    capfd.readouterr()
    load(adapter)
    load(tmp_path / "tiny.gguf")
    load(adapter.parent / "tiny-llama", device_map="auto")
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_finding_a_model_needs_neither_torch_nor_transformers(tiny_llama: Path) -> None:
    code = (
        "import sys; from prunescope.evaluate import loading; from prunescope.records import"
        " EvalConfig; r = loading.resolve_model(EvalConfig(model=sys.argv[1])); print(r.kind,"
        " sorted({'torch', 'transformers', 'peft', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_llama)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=True,
    )
    assert done.stdout.strip() == "safetensors []"


def test_the_name_of_a_snapshot_in_the_hubs_cache_is_the_models(tmp_path: Path) -> None:
    path = tmp_path / "models--someone--tiny" / "snapshots" / ("0" * 40)
    save_tiny_model(path)
    assert loading.resolve_model(config(path)).name == "tiny"


def test_the_working_directory_is_a_model_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert loading.resolve_model(config(".")).name == "tiny-llama"
