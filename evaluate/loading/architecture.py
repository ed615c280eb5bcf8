"""What ``config.json`` says: is it a causal language model, and how long are its sequences?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunescope.errors import ModelError
from prunescope.evaluate.loading.locate import ResolvedModel, read_config
from prunescope.evaluate.loading.quiet import quiet_libraries
from prunescope.records import EvalConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

__all__ = [
    "DEFAULT_MAX_LENGTH",
    "architecture_name",
    "causal_lm_config",
    "configured_length",
    "max_sequence_length",
    "text_config",
    "vocabulary_size",
]

DEFAULT_MAX_LENGTH = 2048
"""Tokens, where neither config nor tokenizer says how long a sequence may be."""

_AUTO_CLASS = "AutoModelForCausalLM"


def causal_lm_config(resolved: ResolvedModel, config: EvalConfig) -> PretrainedConfig:
    """transformers' config of the model (of an adapter: of its base).

    Raises:
        ModelError: the architecture is unknown to the installed transformers or no causal
            language model, or it needs code of the checkpoint's own and that is not allowed.
    """
    if resolved.base is not None:
        return causal_lm_config(resolved.base, config)
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    raw = read_config(resolved)
    own_code = _AUTO_CLASS in (raw.get("auto_map") or {})
    known = transformers.CONFIG_MAPPING
    if resolved.kind != "gguf" and raw.get("model_type") not in known:
        if not own_code:
            raise ModelError(
                f"{resolved.path} has the architecture {_architecture(raw)}, which transformers"
                f" {transformers.__version__} does not know",
                hint="Install a transformers that does: pip install --upgrade transformers",
            )
        if not config.trust_remote_code:
            raise ModelError(
                f"{resolved.path} needs Python code that comes with it ({_architecture(raw)})",
                hint="Read that code, then allow it with --trust-remote-code",
            )
    found = _read(resolved, config)
    if type(found) not in MODEL_FOR_CAUSAL_LM_MAPPING and not (
        own_code and config.trust_remote_code
    ):
        raise ModelError(
            f"{resolved.path} ({_architecture(raw) or found.model_type}) is not a causal language"
            " model"
        )
    return found


def max_sequence_length(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None
) -> int:
    """Longest sequence in tokens, as lm-eval's HFLM derives it.

    The text model's ``n_positions``, ``max_position_embeddings`` or ``n_ctx``, else the
    tokenizer's ``model_max_length``, else 2048 (lm_eval.models.utils.resolve_max_length).
    """
    from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

    length = configured_length(config)
    if length is not None:
        return length
    longest = getattr(tokenizer, "model_max_length", None)
    if longest is not None and longest < VERY_LARGE_INTEGER:
        return int(longest)
    return DEFAULT_MAX_LENGTH


def configured_length(config: PretrainedConfig) -> int | None:
    """Longest sequence in tokens that the config names; None where it names none."""
    text = text_config(config)
    names = ("n_positions", "max_position_embeddings", "n_ctx")
    values = (getattr(text, name, None) for name in names)
    return next((int(value) for value in values if value is not None), None)


def vocabulary_size(config: PretrainedConfig) -> int | None:
    """Rows of the embedding, as the config has them."""
    return getattr(text_config(config), "vocab_size", None)


def architecture_name(config: PretrainedConfig) -> str | None:
    """Name of the class that the model will run as."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if isinstance(name, str):
        return name
    return config.architectures[0] if config.architectures else None


def text_config(config: PretrainedConfig) -> PretrainedConfig:
    """The language model's part of a multimodal config; else the config itself."""
    return getattr(config, "text_config", None) or config


def _read(resolved: ResolvedModel, config: EvalConfig) -> PretrainedConfig:
    from transformers import AutoConfig

    folder, settings = resolved.path, {}
    if resolved.kind == "gguf":
        folder, settings = resolved.path.parent, {"gguf_file": resolved.path.name}
    try:
        with quiet_libraries():
            found: PretrainedConfig = AutoConfig.from_pretrained(
                str(folder),
                trust_remote_code=config.trust_remote_code,
                local_files_only=True,
                **settings,
            )
    except Exception as error:
        # Config classes (and code of the checkpoint's own) raise what they like.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"cannot read the configuration of {resolved.path}: {lines[0].rstrip('.')}"
        ) from error
    return found


def _architecture(raw: dict[str, Any]) -> str:
    """The name that a ``config.json`` gives its architecture."""
    names = raw.get("architectures")
    if isinstance(names, list) and names:
        return str(names[0])
    return str(raw.get("model_type") or "")
