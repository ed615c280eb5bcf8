"""Load models in tests, and write the tiny Llama as a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prunescope.errors import ModelError, PrunescopeError
from prunescope.evaluate import loading
from prunescope.evaluate.progress import SilentProgress
from prunescope.records import EvalConfig
from support.models import VOCAB_SIZE, tiny_model, tiny_tokenizer

__all__ = ["assert_same_weights", "config", "load", "refusal", "rotary_order", "write_gguf"]


def config(model: object, **changes: Any) -> EvalConfig:
    return EvalConfig(model=str(model), **changes)


def load(model: object, **changes: Any) -> loading.LoadedModel:
    settings = config(model, **changes)
    return loading.load_model(loading.resolve_model(settings), settings, SilentProgress())


def refusal(model: object, kind: type[PrunescopeError] = ModelError, **changes: Any) -> str:
    """What resolving and loading is refused with: one line."""
    with pytest.raises(kind) as caught:
        load(model, **changes)
    text = str(caught.value)
    assert "\n" not in text
    return text


def assert_same_weights(model: torch.nn.Module, expected: dict[str, torch.Tensor]) -> None:
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def rotary_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix as llama.cpp orders them for its rotary embedding."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, 2, rows // heads // 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path: Path, kind: str = "F32") -> dict[str, Any]:
    """Write the tiny Llama with the gguf package, matrices as ``kind``, and return its weights."""
    import gguf

    quantization = gguf.GGMLQuantizationType[kind]
    model = tiny_model()
    settings = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(settings.max_position_embeddings)
    writer.add_embedding_length(settings.hidden_size)
    writer.add_block_count(settings.num_hidden_layers)
    writer.add_feed_forward_length(settings.intermediate_size)
    writer.add_head_count(settings.num_attention_heads)
    writer.add_head_count_kv(settings.num_key_value_heads)
    writer.add_layer_norm_rms_eps(settings.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCAB_SIZE)
    tokenizer = json.loads(tiny_tokenizer().backend_tokenizer.to_str())["model"]
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    places = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    for layer in range(settings.num_hidden_layers):
        for ours, theirs in places.items():
            names[f"model.layers.{layer}.{ours}.weight"] = f"blk.{layer}.{theirs}.weight"
    weights = model.state_dict()
    for name, tensor in weights.items():
        array = tensor.numpy()
        if "q_proj" in name:
            array = rotary_order(array, settings.num_attention_heads)
        if "k_proj" in name:
            array = rotary_order(array, settings.num_key_value_heads)
        if tensor.dim() == 2 and kind != "F32":
            stored = gguf.quants.quantize(np.ascontiguousarray(array), quantization)
            writer.add_tensor(names[name], stored, raw_dtype=quantization)
        else:
            writer.add_tensor(names[name], np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights
