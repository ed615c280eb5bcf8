"""From what the user names to a model that is ready to score.

:func:`resolve_model` finds (and downloads) files and checks that they are whole; it needs neither
torch nor transformers. :func:`load_model` loads them. Both tell every mistake in one line.
"""

from prunescope.evaluate.loading.address import hub_cache, hub_endpoint
from prunescope.evaluate.loading.describe import count_parameters, describe_model
from prunescope.evaluate.loading.locate import (
    DTYPES,
    ResolvedModel,
    config_sha256,
    nearest_paths,
    read_config,
    resolve_model,
    source_sha256,
)
from prunescope.evaluate.loading.model import LoadedModel, load_model
from prunescope.evaluate.loading.placement import resolve_device, resolve_dtype
from prunescope.evaluate.loading.size import ModelSize, model_size
from prunescope.evaluate.loading.tokenizer import load_tokenizer, tokenizer_sha256

__all__ = [
    "DTYPES",
    "LoadedModel",
    "ModelSize",
    "ResolvedModel",
    "config_sha256",
    "count_parameters",
    "describe_model",
    "hub_cache",
    "hub_endpoint",
    "load_model",
    "load_tokenizer",
    "model_size",
    "nearest_paths",
    "read_config",
    "resolve_device",
    "resolve_dtype",
    "resolve_model",
    "source_sha256",
    "tokenizer_sha256",
]
