"""Tiny random models and a tiny tokenizer, built on the spot."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

CORPUS = (
    "The river runs through the old town and under seven bridges.",
    "Question: is the sky blue on a clear day?\nAnswer: yes",
    "A man is standing in a kitchen. He picks up a pan and starts to cook an egg.",
    "Plants use sunlight, water and carbon dioxide to make sugar and oxygen.",
    "The trophy does not fit in the suitcase because it is too large.",
    "True or False? Answer: True. Answer: False. no yes A B C D",
    "Der Fluss fließt durch die Stadt. 河流穿过古城。",
)

VOCAB_SIZE = 384


@lru_cache(maxsize=1)
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return tokenizer.to_str()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 384 tokens that adds no special tokens."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=256,
    )


def tiny_config(family: str, **changes: Any) -> PretrainedConfig:
    """The config of a model of about 50,000 parameters: ``llama``, ``opt`` or ``gpt2``."""
    common: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    if family == "llama":
        settings = {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "tie_word_embeddings": False,
        }
        return LlamaConfig(**{**common, **settings, **changes})
    if family == "opt":
        settings = {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "word_embed_proj_dim": 32,
        }
        return OPTConfig(**{**common, **settings, **changes})
    if family == "gpt2":
        settings = {
            "vocab_size": VOCAB_SIZE,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 256,
        }
        return GPT2Config(**{**common, **settings, **changes})
    raise ValueError(family)


def tiny_model(family: str = "llama", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model in float32, with weights large enough that its answers differ."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(family, **changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "norm" not in name:
                parameter.mul_(8.0)
    return model.eval().float()


def prune_magnitude(model: PreTrainedModel, sparsity: float) -> PreTrainedModel:
    """Zero the smallest weights of each linear layer of the decoder blocks, in place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and ("layers." in name or ".h." in name):
                count = int(sparsity * parameter.numel())
                smallest = parameter.abs().flatten().argsort()[:count]
                parameter.view(-1)[smallest] = 0.0
    return model


def save_tiny_model(
    directory: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    sparsity: float = 0.0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "5GB",
    **changes: Any,
) -> Path:
    """Write a tiny model and its tokenizer as a checkpoint folder and return the folder."""
    model = tiny_model(family, seed, **changes)
    if sparsity:
        prune_magnitude(model, sparsity)
    model.to(dtype).save_pretrained(directory, max_shard_size=max_shard_size)
    tiny_tokenizer().save_pretrained(directory)
    return directory
