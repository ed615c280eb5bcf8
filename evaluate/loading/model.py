"""Load a model's weights, whatever form they have on disk."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunescope.errors import ModelError, SettingError
from prunescope.evaluate.loading.architecture import causal_lm_config, max_sequence_length
from prunescope.evaluate.loading.locate import ResolvedModel
from prunescope.evaluate.loading.placement import checkpoint_dtype, resolve_device, resolve_dtype
from prunescope.evaluate.loading.quiet import quiet_libraries
from prunescope.evaluate.loading.tokenizer import load_tokenizer
from prunescope.evaluate.progress import Progress
from prunescope.records import EvalConfig

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["LoadedModel", "load_model", "weight_bytes"]


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to score."""

    model: PreTrainedModel
    """In evaluation mode."""
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    """Where inputs go."""
    dtype: torch.dtype
    max_length: int
    """Longest sequence that the model takes, tokens."""
    notes: tuple[str, ...] = ()
    """What a reader of the record should know about how it was loaded."""


def load_model(resolved: ResolvedModel, config: EvalConfig, progress: Progress) -> LoadedModel:
    """Load weights and tokenizer; an adapter is merged onto its base.

    Args:
        resolved: from :func:`~prunescope.evaluate.loading.resolve_model`.
        config: device, dtype, ``device_map``, tokenizer and ``trust_remote_code`` are read.
        progress: hears of the loading, in bytes of the weight files.

    Raises:
        ModelError: a file cannot be read, weights are missing or of another shape, the
            architecture is unknown, or the memory does not suffice.
        SettingError: the device is absent.
    """
    device = resolve_device(config)
    dtype = resolve_dtype(resolved, config, device)
    tokenizer = load_tokenizer(resolved, config)
    spread = config.device_map == "auto" and config.device == "auto"
    notes = list(resolved.notes)
    total = float(weight_bytes(resolved))
    progress.start("load", resolved.name, total)
    with quiet_libraries(), _advancing(progress, total), _explained(resolved, device):
        model = _build(resolved, config, dtype, "auto" if spread else {"": str(device)}, notes)
    progress.finish()
    places = sorted({str(place) for place in getattr(model, "hf_device_map", {}).values()})
    if len(places) > 1:
        notes.append(f"the model was spread over {', '.join(places)}")
    if config.device_map == "auto" and not spread:
        notes.append(f"--device-map auto was not used, because --device {config.device} was given")
    if config.trust_remote_code:
        notes.append("Python code that comes with the checkpoint was allowed to run")
    _check_vocabulary(model, tokenizer, notes)
    return LoadedModel(
        model=model.eval(),
        tokenizer=tokenizer,
        device=_entrance(model) if spread else device,
        dtype=dtype,
        max_length=max_sequence_length(model.config, tokenizer),
        notes=tuple(notes),
    )


def _entrance(model: PreTrainedModel) -> torch.device:
    """Where inputs go; hooks carry them to layers that wait in CPU memory (on ``meta``)."""
    import torch

    device: torch.device = model.get_input_embeddings().weight.device
    return device if device.type != "meta" else torch.device("cuda:0")


def weight_bytes(resolved: ResolvedModel) -> int:
    """Size of the weight files, an adapter's together with its base's, bytes."""
    own = sum(file.stat().st_size for file in resolved.files)
    return own + (weight_bytes(resolved.base) if resolved.base is not None else 0)


def _build(
    resolved: ResolvedModel,
    config: EvalConfig,
    dtype: torch.dtype,
    device_map: Any,
    notes: list[str],
) -> PreTrainedModel:
    if resolved.base is not None:
        base = _build(resolved.base, config, dtype, device_map, notes)
        notes.append(f"the adapter {resolved.name} was merged onto {resolved.base.requested}")
        return _merge(resolved, base)
    if resolved.kind == "gguf":
        stored = checkpoint_dtype(resolved)
        notes.append(f"{resolved.path.name} ({stored}) was unpacked to {str(dtype)[6:]}")
    return _from_pretrained(resolved, config, dtype, device_map, notes)


def _from_pretrained(
    resolved: ResolvedModel,
    config: EvalConfig,
    dtype: torch.dtype,
    device_map: Any,
    notes: list[str],
) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    settings: dict[str, Any] = {
        "config": causal_lm_config(resolved, config),
        "dtype": dtype,
        "trust_remote_code": config.trust_remote_code,
        "local_files_only": True,
        "ignore_mismatched_sizes": True,  # told by _check_complete
        "output_loading_info": True,
        "weights_only": True,
    }
    if device_map != {"": "cpu"}:
        settings["device_map"] = device_map
    if resolved.kind == "gguf":
        settings |= {"gguf_file": resolved.path.name, **_unpacked()}
        folder = resolved.path.parent
    else:
        settings["use_safetensors"] = resolved.kind == "safetensors"
        folder = resolved.path
    model, info = AutoModelForCausalLM.from_pretrained(str(folder), **settings)
    _check_complete(resolved, info, notes)
    if resolved.kind == "gguf" and hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    loaded: PreTrainedModel = model
    return loaded


def _unpacked() -> dict[str, Any]:
    """Ask transformers to unpack GGUF blocks to floats; its first 5.x versions always did."""
    import transformers

    settings = getattr(transformers, "GgufConfig", None)
    return {} if settings is None else {"quantization_config": settings(dequantize=True)}


def _check_complete(resolved: ResolvedModel, info: dict[str, Any], notes: list[str]) -> None:
    """Refuse a model some of whose weights were left random, which transformers only logs."""
    missing = sorted(info["missing_keys"])
    unused = sorted(info["unexpected_keys"])
    if missing:
        found = f"; the files have {unused[0]} instead" if unused else ""
        raise ModelError(
            f"{_count(len(missing), 'weight')} missing in {resolved.path}, first"
            f" {missing[0]}{found}",
            hint="Make pruning permanent with torch.nn.utils.prune.remove before saving"
            if any(name.endswith("weight_orig") for name in unused)
            else "Check that the weights and config.json belong together",
        )
    mismatched = sorted((str(name), *shapes) for name, *shapes in info["mismatched_keys"])
    if mismatched:
        name, stored, expected = mismatched[0]
        raise ModelError(
            f"{_count(len(mismatched), 'weight')} of another shape than config.json says in"
            f" {resolved.path}, first {name}: {tuple(stored)} instead of {tuple(expected)}",
            hint="Check that the weights and config.json belong together",
        )
    if unused:
        notes.append(
            f"{_count(len(unused), 'stored tensor')} not used by the model, first {unused[0]}"
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what} is" if number == 1 else f"{number:,} {what}s are"


def _merge(resolved: ResolvedModel, base: PreTrainedModel) -> PreTrainedModel:
    """base + scale * B @ A for LoRA (Hu et al. 2021, section 4.1), by PEFT's own merge."""
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    adapted = PeftModel.from_pretrained(base, str(resolved.path))
    # PEFT only warns where names do not match, and leaves those weights as they were.
    stored = set(load_peft_weights(str(resolved.path), device="cpu"))
    expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    odd = sorted((expected - stored) | (stored - expected - set(adapted.state_dict())))
    if odd:
        raise ModelError(
            f"the adapter {resolved.path} does not fit its base model, first at {odd[0]}",
            hint="Check base_model_name_or_path in adapter_config.json",
        )
    if not hasattr(adapted, "merge_and_unload"):
        kind = adapted.peft_config[adapted.active_adapter].peft_type
        raise ModelError(
            f"the adapter {resolved.path} is of type {kind}, which cannot be merged onto a model",
            hint="LoRA and its relatives can",
        )
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged


def _check_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, notes: list[str]
) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if tokenizer.vocab_size > rows:
        raise ModelError(
            f"the tokenizer has {tokenizer.vocab_size:,} tokens, the model {rows:,}: it belongs to"
            " another model",
            hint="Name the model's own tokenizer with --tokenizer",
        )
    if len(tokenizer) > rows:
        extra = len(tokenizer) - rows
        notes.append(f"{extra} added tokens of the tokenizer are unknown to the model")


@contextmanager
def _advancing(progress: Progress, total: float) -> Iterator[None]:
    """Turn transformers' bar over the tensors into bytes of ours."""
    from transformers.utils import logging as transformers_logging

    set_hook = getattr(transformers_logging, "set_tqdm_hook", None)
    if set_hook is None:
        yield
        return

    def hook(factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        items = args[0] if args else kwargs.get("iterable")
        if kwargs.get("desc") != "Loading weights" or not hasattr(items, "__len__"):
            return factory(*args, **kwargs)
        return _Counted(items, progress, total)

    previous = set_hook(hook)
    try:
        yield
    finally:
        set_hook(previous)


class _Counted:
    """Iterates, and says how far it is; offers what transformers calls on its bars."""

    def __init__(self, items: Any, progress: Progress, total: float) -> None:
        self.items = items
        self.progress = progress
        self.step = total / max(len(items), 1)

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            yield item
            self.progress.advance(self.step)

    def __enter__(self) -> _Counted:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def __getattr__(self, _: str) -> Any:
        return _nothing


def _nothing(*_: object, **__: object) -> None:
    """What the methods of a bar do that is not drawn."""


@contextmanager
def _explained(resolved: ResolvedModel, device: torch.device) -> Iterator[None]:
    """Turn what the libraries raise over a checkpoint into one line."""
    import torch
    from safetensors import SafetensorError

    where = f"{resolved.path}"
    try:
        yield
    except (ModelError, SettingError):
        raise
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{resolved.name} does not fit into the memory of {device}",
            hint="Use --device-map auto, --dtype bfloat16 or --device cpu",
        ) from error
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{where} holds Python objects other than tensors, which are not loaded because"
            " they can run code",
            hint="Convert the checkpoint to safetensors",
        ) from error
    except ImportError as error:
        raise ModelError(
            f"{where} needs a package that is missing: {_first_line(error)}"
        ) from error
    except (
        SafetensorError,
        OSError,
        ValueError,
        RuntimeError,
        TypeError,
        KeyError,
        AttributeError,
        EOFError,
        NotImplementedError,
    ) as error:
        raise ModelError(f"cannot load {where}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".:")
