"""What a stored tensor is, from its name, its shape and the model's config.

Covers the decoder families of transformers (llama, mistral, mixtral, qwen, gemma, phi, gpt2,
gpt-j, gpt-neox, opt, bloom, falcon, olmo, stablelm, granite, ...). A name that is not known keeps
its own last part as its kind, so that new families are still counted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "EMBEDDING",
    "HEAD",
    "NORM",
    "ModelNames",
    "TensorRole",
    "is_token_embedding",
]

EMBEDDING, HEAD, NORM = "embedding", "head", "norm"

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
_OTHER_TOWER = re.compile(r"(?:^|\.)(?:vision|visual|audio|image|mm_|multi_modal)")
_NORM = re.compile(r"norm|(?:^|_)ln(?:_|\d|$)")
_EMBEDDING = re.compile(
    r"embed(?!.*proj)|(?:^|\.)(?:wte|wpe|tok_embeddings|relative_attention_bias)$"
)
_TOKEN_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|embeddings?)\.weight$"
)
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output_layer)$|^output$")
_BUFFER = re.compile(
    r"(?:^|\.)(?:rotary_emb\.inv_freq|rotary_pos_emb\.inv_freq|masked_bias|position_ids)$"
)
_EXPERTS = re.compile(r"\.experts\.(gate_up_proj|gate_proj|up_proj|down_proj)$")
_CONV1D_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
_CONV1D_NAMES = frozenset({"c_attn", "q_attn", "c_proj", "c_fc"})

_KINDS = {
    **dict.fromkeys(("q_proj", "q", "wq", "query", "q_attn"), "q"),
    **dict.fromkeys(("k_proj", "k", "wk", "key"), "k"),
    **dict.fromkeys(("v_proj", "v", "wv", "value"), "v"),
    **dict.fromkeys(("o_proj", "wo"), "o"),
    **dict.fromkeys(
        ("qkv_proj", "query_key_value", "c_attn", "Wqkv", "wqkv", "W_pack", "qkv"), "qkv"
    ),
    **dict.fromkeys(("gate_proj", "w1"), "gate"),
    **dict.fromkeys(("up_proj", "w3", "fc1", "fc_in", "c_fc", "dense_h_to_4h"), "up"),
    **dict.fromkeys(("down_proj", "w2", "fc2", "fc_out", "dense_4h_to_h"), "down"),
    **dict.fromkeys(("gate_up_proj", "input_linear"), "gate_up"),
    "output_linear": "down",
    "router": "router",
    "gate": "router",
    "shared_expert_gate": "router",
    "q_a_proj": "q_a",
    "q_b_proj": "q_b",
    "kv_a_proj_with_mqa": "kv_a",
    "kv_b_proj": "kv_b",
}
_BY_HEAD = frozenset({"q", "k", "v", "qkv", "o"})
_OUTPUTS = frozenset({"dense", "out_proj", "c_proj"})


@dataclass(frozen=True)
class TensorRole:
    """What a tensor is for."""

    kind: str
    """``q``, ``k``, ``v``, ``o``, ``qkv``, ``gate``, ``up``, ``down``, ``gate_up``, ``router``,
    ``embedding``, ``head``, ``norm``, ``bias``, or the module's own name."""
    layer: int | None = None
    """Index of the decoder block."""
    linear: bool = False
    """Whether it is the weight of a linear layer inside a decoder block."""
    head_size: int | None = None
    """Rows (of o: columns) that belong to one attention head, where the config tells."""
    transposed: bool = False
    """Whether it is stored (in, out), as GPT-2's Conv1D does, and not (out, in)."""
    buffer: bool = False
    """Whether it is a stored constant (a causal mask, rotary frequencies), which no count and no
    hash includes: one library version stores it and the next does not."""


class ModelNames:
    """Tells the role of a model's tensors.

    Args:
        config: the model's ``config.json``; without it shapes decide what they can.
    """

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        config = config or {}
        text = config.get("text_config")
        decoder: Mapping[str, Any] = {**config, **text} if isinstance(text, Mapping) else config
        self._type = str(decoder.get("model_type") or config.get("model_type") or "")
        self._layers = _first_int(decoder, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
        self._head_size = _head_size(decoder)

    def role(self, name: str, shape: Sequence[int]) -> TensorRole:
        """The role of the tensor ``name`` of ``shape``."""
        module, _, leaf = name.rpartition(".")
        if _is_buffer(name, shape):
            return TensorRole("buffer", buffer=True)
        layer = self._layer(name)
        experts = _EXPERTS.search(name)
        if experts and len(shape) == 3:
            transposed = self._type.startswith("gpt_oss")
            kind = _KINDS[experts.group(1)]
            linear = layer is not None
            return TensorRole(kind, layer, linear, transposed=linear and transposed)
        kind = _kind(module, leaf)
        linear = (
            layer is not None
            and leaf == "weight"
            and kind not in (EMBEDDING, HEAD, NORM)
            and (len(shape) == 2 or (len(shape) == 3 and "moe" in module))
        )
        return TensorRole(
            kind,
            layer,
            linear,
            head_size=self._head_size if linear and kind in _BY_HEAD else None,
            transposed=linear and self._is_conv1d(module, shape),
        )

    def _layer(self, name: str) -> int | None:
        match = _LAYER.search(name)
        if match is None or _OTHER_TOWER.search(name):
            return None
        layer = int(match.group(1))
        # a block beyond the config's count (DeepSeek's multi-token prediction) is never run
        return layer if self._layers is None or layer < self._layers else None

    def _is_conv1d(self, module: str, shape: Sequence[int]) -> bool:
        last = module.rpartition(".")[2]
        if last not in _CONV1D_NAMES or len(shape) != 2:
            return False
        if self._type:
            return self._type in _CONV1D_TYPES
        if last == "c_proj":
            return ".h." in f".{module}" and shape[0] >= shape[1]
        return shape[1] > shape[0]


def is_token_embedding(name: str) -> bool:
    """Whether ``name`` is the matrix that token ids are looked up in."""
    return bool(_TOKEN_EMBEDDING.search(name)) and not _OTHER_TOWER.search(name)


def _first_int(config: Mapping[str, Any], *keys: str) -> int | None:
    values = (config.get(key) for key in keys)
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def _head_size(config: Mapping[str, Any]) -> int | None:
    size = _first_int(config, "head_dim")
    heads = _first_int(config, "num_attention_heads", "n_head", "n_heads", "num_heads")
    hidden = _first_int(config, "hidden_size", "n_embd", "d_model")
    if size is None and heads and hidden:
        size = hidden // heads
    return size


def _is_buffer(name: str, shape: Sequence[int]) -> bool:
    if _BUFFER.search(name):
        return True
    # the causal mask of GPT-2 and GPT-NeoX: (1, 1, positions, positions)
    return len(shape) == 4 and name.endswith((".attn.bias", ".attention.bias"))


def _kind(module: str, leaf: str) -> str:
    last = module.rpartition(".")[2]
    if leaf == "bias" or leaf.endswith("_bias"):
        return "bias"
    if _HEAD.search(module):
        return HEAD
    if _NORM.search(last):
        return NORM
    if _EMBEDDING.search(module):
        return EMBEDDING
    if last in _OUTPUTS:
        attention = "att" in module.rpartition(".")[0].rpartition(".")[2]
        if attention:
            return "o"
        return "down" if last == "c_proj" else last
    if last == "layer" and module.endswith("router.layer"):
        return "router"
    return _KINDS.get(last, last or leaf)
