"""A tiny config of every model family that prunescope promises to work with."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from support.models import VOCAB_SIZE

WINDOW = 8
"""Sliding window, tokens, of the families that have one."""

_LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_GEMMA_LIKE: dict[str, Any] = {**_LLAMA_LIKE, "head_dim": 8}
_GPT_LIKE: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _LLAMA_LIKE,
    "mistral": {**_LLAMA_LIKE, "sliding_window": WINDOW},
    "mixtral": {
        **_LLAMA_LIKE,
        "sliding_window": WINDOW,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "qwen2": {
        **_LLAMA_LIKE,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 1,
    },
    "qwen3": {**_LLAMA_LIKE, "head_dim": 8},
    "gemma": _GEMMA_LIKE,
    "gemma2": {
        **_GEMMA_LIKE,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 2.0,
    },
    "gemma3_text": {
        **_GEMMA_LIKE,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "phi": _LLAMA_LIKE,
    "phi3": {**_LLAMA_LIKE, "sliding_window": WINDOW, "pad_token_id": 2},
    "gpt2": _GPT_LIKE,
    "gptj": {**_GPT_LIKE, "rotary_dim": 8},
    "gpt_neox": {key: _LLAMA_LIKE[key] for key in _LLAMA_LIKE if key != "num_key_value_heads"},
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "word_embed_proj_dim": 16,
    },
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    "olmo2": _LLAMA_LIKE,
    "stablelm": _LLAMA_LIKE,
    "granite": {**_LLAMA_LIKE, "logits_scaling": 4.0, "attention_multiplier": 0.3},
}
"""Family (transformers' ``model_type``) -> what makes its config tiny."""


def family_config(family: str, **changes: Any) -> PretrainedConfig:
    """The config of a tiny model of ``family``, with the tests' tiny tokenizer in mind."""
    settings: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
        **FAMILIES[family],
        **changes,
    }
    return AutoConfig.for_model(family, **settings)


def family_model(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random float32 model of ``family`` whose answers depend on the whole context."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(family_config(family, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.mul_(6.0)
    return model.eval().float()
