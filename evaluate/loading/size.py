"""How large a model is, from the headers of its files: nothing is loaded."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunescope.errors import ModelError
from prunescope.evaluate.loading.address import HubModel, hub_endpoint, parse_hub_id
from prunescope.evaluate.loading.files import dtype_in_config, read_safetensors_header
from prunescope.evaluate.loading.gguf_header import read_gguf_header
from prunescope.evaluate.loading.hub_errors import explain, transport_errors
from prunescope.evaluate.loading.locate import ResolvedModel, read_config, resolve_model
from prunescope.evaluate.loading.quiet import quiet_libraries
from prunescope.records import EvalConfig

__all__ = ["ModelSize", "model_size"]

_STORED = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class ModelSize:
    """What a model's files say about its size."""

    parameters: int
    stored_dtype: str | None
    """dtype that most of the weights have in the files; None for quantized ones."""
    download: int = 0
    """Bytes still to be fetched from the hub."""


def model_size(model: str) -> ModelSize | None:
    """Parameters and dtype of a model, from headers: on this disk, in the cache or on the hub.

    Of a hub model that is not cached, only the headers are fetched.

    Returns:
        None where only the whole files would tell (``.bin`` files on the hub).

    Raises:
        ModelError: there is no such model, it is not whole, or the hub cannot be reached.
    """
    address = None if Path(model).expanduser().exists() else parse_hub_id(model)
    if address is None:
        return _size_on_disk(resolve_model(EvalConfig(model=model)))
    cached = _cached(address)
    if cached is not None:
        return _size_on_disk(cached)
    return _size_on_hub(address)


def _size_on_disk(resolved: ResolvedModel) -> ModelSize:
    own = _count(resolved)
    if resolved.base is None:
        return own
    base = _size_on_disk(resolved.base)
    return ModelSize(base.parameters + own.parameters, base.stored_dtype)


def _count(resolved: ResolvedModel) -> ModelSize:
    if resolved.kind == "gguf":
        return _count_gguf(resolved.path)
    counts: Counter[str] = Counter()
    for file in resolved.files:
        if file.suffix != ".safetensors":
            return _guess_bin(resolved)
        for entry in read_safetensors_header(file).values():
            counts[str(entry["dtype"])] += math.prod(entry["shape"])
    return _by_dtype(counts)


def _by_dtype(counts: Mapping[str, int]) -> ModelSize:
    """Parameter counts by safetensors' dtype names as one size."""
    main = max(counts, key=counts.__getitem__, default="")
    return ModelSize(sum(counts.values()), _STORED.get(main))


def _count_gguf(path: Path) -> ModelSize:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    header = read_gguf_header(path)
    parameters = 0
    for name, size in header.tensor_bytes.items():
        weights, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
        parameters += size // block_bytes * weights
    return ModelSize(parameters, _STORED.get(str(header.main_type)))


def _guess_bin(resolved: ResolvedModel) -> ModelSize:
    """From the size of ``.bin`` files, which have no header, and the dtype that config names."""
    config = read_config(resolved)
    dtype = dtype_in_config(config) or "float32"
    size = sum(file.stat().st_size for file in resolved.files)
    return ModelSize(size // _BYTES.get(dtype, 4), dtype)


def _cached(address: HubModel) -> ResolvedModel | None:
    """The model as it lies in the cache, where it is whole there."""
    from huggingface_hub import constants, errors, snapshot_download

    if constants.HF_HUB_OFFLINE:
        return resolve_model(EvalConfig(model=str(address)))
    try:
        folder = snapshot_download(address.id, revision=address.revision, local_files_only=True)
        return resolve_model(EvalConfig(model=folder))
    except (errors.LocalEntryNotFoundError, ModelError, OSError, ValueError):
        return None


def _size_on_hub(address: HubModel) -> ModelSize | None:
    from huggingface_hub import HfApi, errors

    answers: tuple[type[Exception], ...] = (OSError, ValueError, TypeError, KeyError)
    answers = (*answers, *transport_errors())
    api: Any = HfApi(endpoint=hub_endpoint())
    with quiet_libraries():
        try:
            found = api.get_safetensors_metadata(address.id, revision=address.revision)
            info = api.model_info(address.id, revision=address.revision, files_metadata=True)
        except errors.NotASafetensorsRepoError:
            return None
        except answers as error:
            raise explain(address, error) from error
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    size = _by_dtype(found.parameter_count)
    download = sum(sizes.get(name, 0) for name in found.files_metadata)
    return ModelSize(size.parameters, size.stored_dtype, download)
