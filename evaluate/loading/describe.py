"""Put into the record what is known about a model, before and after it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunescope.evaluate.loading.architecture import (
    architecture_name,
    causal_lm_config,
    configured_length,
    max_sequence_length,
    vocabulary_size,
)
from prunescope.evaluate.loading.locate import ResolvedModel, source_sha256
from prunescope.evaluate.loading.model import LoadedModel, weight_bytes
from prunescope.evaluate.loading.placement import checkpoint_dtype, resolve_device, resolve_dtype
from prunescope.evaluate.loading.tokenizer import load_tokenizer, tokenizer_sha256
from prunescope.records import EvalConfig, ModelInfo

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

__all__ = ["count_parameters", "describe_model"]


def describe_model(
    resolved: ResolvedModel, loaded: LoadedModel | None, config: EvalConfig
) -> ModelInfo:
    """What the record says about the model.

    Without ``loaded`` everything that files tell: dtype, lengths and hashes are those that
    loading will give, ``parameters`` and ``tokenizer_sha256`` are None. ``source_sha256`` is
    found then and not again.

    Raises:
        ModelError: the architecture cannot be read.
        SettingError: the device is absent.
    """
    info = ModelInfo(
        requested=resolved.requested,
        name=resolved.name,
        kind=resolved.kind,
        path=str(resolved.path),
        hub_id=resolved.hub_id,
        revision=resolved.revision,
        adapter_of=resolved.base.requested if resolved.base is not None else None,
        stored_dtype=checkpoint_dtype(resolved),
        bytes=weight_bytes(resolved),
        trust_remote_code=config.trust_remote_code,
    )
    if loaded is None:
        return info.model_copy(update=_from_files(resolved, config))
    return info.model_copy(
        update={
            "architecture": type(loaded.model).__name__,
            "parameters": count_parameters(loaded.model),
            "dtype": _name(loaded.dtype),
            "max_length": loaded.max_length,
            "vocab_size": vocabulary_size(loaded.model.config),
            "tokenizer_sha256": tokenizer_sha256(loaded.tokenizer),
        }
    )


def count_parameters(model: PreTrainedModel) -> int:
    """Number of parameters, tied weights once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _from_files(resolved: ResolvedModel, config: EvalConfig) -> dict[str, object]:
    found = causal_lm_config(resolved, config)
    length = configured_length(found)
    if length is None:
        length = max_sequence_length(found, load_tokenizer(resolved, config))
    return {
        "architecture": architecture_name(found),
        "dtype": _name(resolve_dtype(resolved, config, resolve_device(config))),
        "max_length": length,
        "vocab_size": vocabulary_size(found),
        "source_sha256": source_sha256(resolved),
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
