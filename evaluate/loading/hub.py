"""Fetch a model from the Hugging Face hub: only the files that an evaluation needs.

HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE and HF_TOKEN mean what they mean to
huggingface_hub. Its retries may take minutes; here one short request tells first whether the
hub answers and which files there are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from prunescope.evaluate.loading.address import HubModel, hub_endpoint
from prunescope.evaluate.loading.files import read_json
from prunescope.evaluate.loading.hub_errors import explain, no_weights, status_of, transport_errors
from prunescope.evaluate.loading.quiet import quiet_libraries
from prunescope.evaluate.progress import Progress

__all__ = ["Snapshot", "fetch_model", "fetch_tokenizer"]

_CONFIG_FILES = ("config.json", "generation_config.json", "adapter_config.json")
_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template*",
)
# In the order of preference: the first that a repository has is fetched, with its shards.
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
_PROBE_SECONDS = 10.0


@dataclass(frozen=True)
class Snapshot:
    """Files of one commit of a repository, in the local cache."""

    folder: Path
    commit: str
    notes: tuple[str, ...] = ()


def fetch_model(
    model: HubModel,
    *,
    cache_dir: str | None,
    remote_code: bool = False,
    progress: Progress | None = None,
) -> Snapshot:
    """Bring config, tokenizer and weights (safetensors rather than .bin) into the cache.

    What is cached already is not fetched again, and is all there is when the hub is offline or
    does not answer.

    Raises:
        ModelError: no such repository or revision, no access, hub not reachable with nothing
            cached, or no weights of a kind that can be read.
    """
    patterns = (*_CONFIG_FILES, *_TOKENIZER_FILES, *(("*.py",) if remote_code else ()))

    def choose(names: Collection[str]) -> list[str]:
        weights = next((name for name in _WEIGHT_FILES if name in names), None)
        if weights is None:
            raise no_weights(model, names)
        return [*_matching(names, patterns), weights]

    return _fetch(model, choose, cache_dir, progress)


def fetch_tokenizer(
    model: HubModel, *, cache_dir: str | None, remote_code: bool = False
) -> Snapshot:
    """Bring only a repository's tokenizer (and config, which may name its class) into the cache.

    Raises:
        ModelError: as :func:`fetch_model`.
    """
    patterns = ("config.json", *_TOKENIZER_FILES, *(("*.py",) if remote_code else ()))
    return _fetch(model, lambda names: _matching(names, patterns), cache_dir, None)


def _fetch(
    model: HubModel,
    choose: Callable[[Collection[str]], list[str]],
    cache_dir: str | None,
    progress: Progress | None,
) -> Snapshot:
    from huggingface_hub import HfApi, constants

    no_transfer: tuple[type[Exception], ...] = (OSError, *transport_errors())
    no_hub: tuple[type[Exception], ...]
    no_hub = (*no_transfer, ValueError, TypeError, KeyError)  # or an answer that is not a hub's
    timeout = min(_PROBE_SECONDS, constants.HF_HUB_ETAG_TIMEOUT)
    with quiet_libraries():
        try:
            info = HfApi(endpoint=hub_endpoint()).model_info(
                model.id, revision=model.revision, timeout=timeout, files_metadata=True
            )
            sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        except no_hub as error:
            return _cached(model, cache_dir, error)
        wanted = choose(sizes)
        try:
            folder = _download(model, wanted, sizes, cache_dir, progress)
            if shards := _shards(folder, wanted):
                _download(model, shards, sizes, cache_dir, progress)
        except no_transfer as error:
            raise explain(model, error) from error
    return Snapshot(folder, folder.name)


def _download(
    model: HubModel,
    names: Iterable[str],
    sizes: Mapping[str, int],
    cache_dir: str | None,
    progress: Progress | None,
) -> Path:
    from huggingface_hub import snapshot_download

    names = list(names)
    if progress is not None:
        total = sum(sizes.get(name, 0) for name in names)
        progress.start("load", f"download {model.id}", float(total) if total else None)
    try:
        folder = snapshot_download(
            model.id,
            revision=model.revision,
            cache_dir=cache_dir,
            endpoint=hub_endpoint(),
            allow_patterns=[re.sub(r"([*?\[])", r"[\1]", name) for name in names],
            tqdm_class=_progress_bar(progress),
        )
    finally:
        if progress is not None:
            progress.finish()
    return Path(folder)


def _cached(model: HubModel, cache_dir: str | None, error: Exception) -> Snapshot:
    """The copy in the cache where the hub gives no answer; where it says no, an error."""
    from huggingface_hub import errors, snapshot_download

    status = status_of(error)
    if status is not None and status < 500:
        raise explain(model, error) from error
    try:
        # Which files are complete is checked by whoever reads the folder.
        folder = Path(
            snapshot_download(
                model.id,
                revision=model.revision,
                cache_dir=cache_dir,
                local_files_only=True,
                allow_patterns=["config.json"],
            )
        )
    except (errors.LocalEntryNotFoundError, OSError, ValueError):
        raise explain(model, error) from error
    offline = isinstance(error, errors.OfflineModeIsEnabled)
    note = f"{model} came from the cache: the hub at {hub_endpoint()} did not answer"
    return Snapshot(folder, folder.name, () if offline else (note,))


def _shards(folder: Path, wanted: Iterable[str]) -> list[str]:
    for name in wanted:
        if name.endswith(".index.json"):
            weight_map = read_json(folder / name).get("weight_map")
            return sorted(set(weight_map.values())) if isinstance(weight_map, dict) else []
    return []


def _matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The files at the top of the repository that match a pattern."""
    patterns = tuple(patterns)
    return [n for n in names if "/" not in n and any(fnmatch(n, p) for p in patterns)]


def _progress_bar(progress: Progress | None) -> type | None:
    """A tqdm class that draws nothing and passes on the bytes that have arrived."""
    if progress is None:
        return None
    from tqdm import tqdm  # type: ignore[import-untyped]

    advance = progress.advance
    counted: dict[int, float] = {}
    reported = [0.0]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.counts_bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            # Several bars may count the same bytes (received, written): the furthest one leads.
            if self.counts_bytes:
                counted[id(self)] = counted.get(id(self), 0.0) + (n or 0.0)
                step = max(counted.values()) - reported[0]
                if step > 0:
                    reported[0] += step
                    advance(step)
            return None

    return Bar
