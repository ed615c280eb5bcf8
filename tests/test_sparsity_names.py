"""Which tensors are linear layers of decoder blocks, in every family, against the modules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.families import FAMILIES, family_model
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prunescope.evaluate.checkpoint import iter_model, iter_tensors
from prunescope.evaluate.sparsity import measure
from prunescope.evaluate.sparsity.names import ModelNames, is_token_embedding

_STANDARD = {"q", "k", "v", "o", "gate", "up", "down"}
_FUSED = {"qkv", "o", "up", "down"}
KINDS = {
    **dict.fromkeys(FAMILIES, _STANDARD),
    **dict.fromkeys(("gpt2", "gpt_neox", "bloom", "falcon"), _FUSED),
    **dict.fromkeys(("phi", "opt", "gptj"), _STANDARD - {"gate"}),
    "phi3": {"qkv", "o", "gate_up", "down"},
    "mixtral": {"q", "k", "v", "o", "gate_up", "down", "router"},
}


def linear_names(model: PreTrainedModel) -> dict[str, bool]:
    """Weights of the linear modules inside the decoder blocks -> whether stored (in, out)."""
    lists = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)}
    blocks = min(lists, key=len)
    found = {}
    for name, module in lists[blocks].named_modules(prefix=blocks):
        if isinstance(module, torch.nn.Linear | Conv1D):
            found[f"{name}.weight"] = isinstance(module, Conv1D)
        elif type(module).__name__.endswith("Router"):  # a linear layer, in a class of its own
            found[f"{name}.weight"] = False
        elif type(module).__name__.endswith("Experts"):  # linear layers, stacked
            found |= {f"{name}.{leaf}": False for leaf, _ in module.named_parameters()}
    return found


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_linear_set_is_the_linear_modules_of_the_decoder_blocks(family: str) -> None:
    model = family_model(family)
    names = ModelNames(model.config.to_dict())
    roles = {name: names.role(name, tensor.shape) for name, tensor in iter_model(model)}
    expected = linear_names(model)
    assert len(expected) >= 8
    assert {name: r.transposed for name, r in roles.items() if r.linear} == expected
    assert {role.kind for role in roles.values() if role.linear} == KINDS[family]
    assert {role.layer for role in roles.values() if role.linear} == {0, 1}
    sizes = {role.head_size for role in roles.values() if role.kind in ("q", "k", "v", "qkv", "o")}
    config = model.config.to_dict()
    heads = config.get("num_attention_heads") or config["n_head"]
    assert sizes == {(config.get("hidden_size") or config["n_embd"]) // heads}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_other_tensors_are_embeddings_norms_biases_or_the_head(family: str) -> None:
    model = family_model(family)
    names = ModelNames(model.config.to_dict())
    expected: dict[str, str] = {}
    for name, module in model.named_modules():
        for leaf, _ in module.named_parameters(recurse=False):
            if leaf == "bias":
                kind = "bias"
            elif isinstance(module, torch.nn.Embedding):
                kind = "embedding"
            elif "Norm" in type(module).__name__:
                kind = "norm"
            elif name in ("lm_head", "embed_out"):
                kind = "head"
            else:
                continue
            expected[f"{name}.{leaf}"] = kind
    found = {
        name: names.role(name, p.shape).kind
        for name, p in model.named_parameters()
        if name in expected
    }
    assert found == {name: kind for name, kind in expected.items() if name in found}
    embedding = model.get_input_embeddings().weight
    tokens = [n for n, p in model.named_parameters() if is_token_embedding(n)]
    assert [p is embedding for n, p in model.named_parameters() if n in tokens] == [True]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_saved_checkpoint_counts_what_the_model_in_memory_does(
    family: str, tmp_path: Path
) -> None:
    model = family_model(family)
    with torch.no_grad():
        for name in linear_names(model):
            weight = model.get_parameter(name)
            weight[weight.abs() < weight.abs().median()] = 0.0
    model.save_pretrained(tmp_path)
    config = model.config.to_dict()
    files = list(tmp_path.glob("*.safetensors"))
    saved = measure(iter_tensors(files, "safetensors"), config=config).result
    in_memory = measure(iter_model(model), config=config).result
    assert saved.linear == in_memory.linear
    assert saved.total == in_memory.total
    assert saved.layers == in_memory.layers
    assert 0.45 < saved.linear.fraction < 0.55
    if family != "mixtral":  # stored as one tensor an expert, run as one tensor a layer
        assert saved.kinds == in_memory.kinds


@pytest.mark.parametrize(
    ("name", "shape", "kind", "layer", "linear"),
    [
        ("model.layers.3.block_sparse_moe.experts.7.w2.weight", (8, 4), "down", 3, True),
        ("model.layers.3.block_sparse_moe.gate.weight", (8, 4), "router", 3, True),
        ("model.layers.3.mlp.shared_expert_gate.weight", (1, 4), "router", 3, True),
        ("model.layers.3.mlp.gate_proj.weight", (8, 4), "gate", 3, True),
        ("model.layers.12.self_attn.q_norm.weight", (8,), "norm", 12, False),
        ("model.layers.0.self_attn.q_proj.bias", (8,), "bias", 0, False),
        ("layers.1.attention.wq.weight", (8, 8), "q", 1, True),
        ("transformer.encoder.layers.1.mlp.dense_4h_to_h.weight", (8, 8), "down", 1, True),
        ("backbone.layers.2.mixer.in_proj.weight", (8, 8), "in_proj", 2, True),
        ("backbone.layers.2.mixer.conv1d.weight", (8, 1, 4), "conv1d", 2, False),
        ("backbone.layers.2.mixer.A_log", (8, 4), "mixer", 2, False),
        ("vision_tower.encoder.layers.4.self_attn.q_proj.weight", (8, 8), "q", None, False),
        ("language_model.model.layers.4.self_attn.q_proj.weight", (8, 8), "q", 4, True),
        ("model.decoder.project_in.weight", (8, 8), "project_in", None, False),
        ("lm_head.weight", (8, 8), "head", None, False),
    ],
)
def test_names_of_other_families_and_formats(
    name: str, shape: tuple[int, ...], kind: str, layer: int | None, linear: bool
) -> None:
    role = ModelNames().role(name, shape)
    assert (role.kind, role.layer, role.linear) == (kind, layer, linear)
    assert not role.transposed


def test_blocks_beyond_the_configs_count_are_not_part_of_the_decoder() -> None:
    names = ModelNames({"model_type": "deepseek_v3", "num_hidden_layers": 61})
    assert names.role("model.layers.60.mlp.up_proj.weight", (4, 4)).linear
    assert not names.role("model.layers.61.mlp.up_proj.weight", (4, 4)).linear


def test_without_a_config_shapes_tell_a_conv1d_from_a_linear_layer() -> None:
    names = ModelNames()
    assert names.role("h.0.attn.c_attn.weight", (8, 24)).transposed
    assert names.role("h.0.mlp.c_fc.weight", (8, 32)).transposed
    assert names.role("h.0.mlp.c_proj.weight", (32, 8)).transposed
    assert not names.role("h.0.mlp.c_fc.weight", (32, 8)).transposed
    assert not names.role("h.0.mlp.c_proj.weight", (8, 32)).transposed
