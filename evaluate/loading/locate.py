"""Find the files of a model, wherever it is: no torch, no transformers, only files."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from prunescope.errors import ModelError, SettingError
from prunescope.evaluate.loading.address import HubModel, parse_hub_id
from prunescope.evaluate.loading.files import check_weight_file, read_json, shard_files
from prunescope.evaluate.loading.hub import fetch_model
from prunescope.evaluate.progress import Progress
from prunescope.records import EvalConfig, canonical_hash

__all__ = [
    "DTYPES",
    "ResolvedModel",
    "config_sha256",
    "nearest_paths",
    "read_config",
    "resolve_model",
    "source_sha256",
]

DTYPES = ("auto", "float32", "float16", "bfloat16")
"""What ``--dtype`` takes."""

# The order in which transformers looks for them.
_WEIGHTS: tuple[tuple[Literal["safetensors", "bin"], str], ...] = (
    ("safetensors", "model.safetensors"),
    ("safetensors", "model.safetensors.index.json"),
    ("bin", "pytorch_model.bin"),
    ("bin", "pytorch_model.bin.index.json"),
)
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class ResolvedModel:
    """A model whose files are on disk, whole and of a known kind."""

    requested: str
    """What the user asked for, word for word."""
    name: str
    """Short name for tables."""
    kind: Literal["safetensors", "bin", "gguf", "peft"]
    path: Path
    """The folder, or the GGUF file."""
    hub_id: str | None = None
    revision: str | None = None
    """Commit on the hub."""
    base: ResolvedModel | None = None
    """The model that a PEFT adapter belongs to."""
    files: tuple[Path, ...] = ()
    """Weight files in order; an adapter's own without its base's."""
    notes: tuple[str, ...] = ()
    """What the record should say about how the files were found."""


def resolve_model(config: EvalConfig, progress: Progress | None = None) -> ResolvedModel:
    """Find the model that ``config.model`` names, downloading it where it is on the hub.

    Each weight file's header is checked, nothing is loaded.

    Args:
        config: ``model``, ``cache_dir``, ``trust_remote_code`` and ``dtype`` are read.
        progress: hears of downloads, in bytes.

    Raises:
        ModelError: nothing there, or not whole, or not of a kind that can be read.
        SettingError: ``--dtype`` is none of :data:`DTYPES`.
    """
    if config.dtype not in DTYPES:
        raise SettingError(f"--dtype must be one of {', '.join(DTYPES)}, found {config.dtype!r}")
    if (text := config.model).encode("utf-8", "replace").decode() != text:
        raise ModelError(
            f"expected a path in UTF-8, found {os.fsencode(text)!r}",
            hint="Rename the folder, or name it through a link with a plain name",
        )
    return _Search(config, progress).find(config.model)


def read_config(resolved: ResolvedModel) -> dict[str, Any]:
    """The model's ``config.json``; of an adapter, its base's; empty for a GGUF file.

    Raises:
        ModelError: the file is damaged.
    """
    if resolved.base is not None:
        return read_config(resolved.base)
    return {} if resolved.kind == "gguf" else read_json(resolved.path / "config.json")


def config_sha256(resolved: ResolvedModel) -> str:
    """Hash of what ``config.json`` says about the computation (RoPE, norms, activations ...).

    Names, versions and the dtype of storage are left out: they change no number by themselves.
    """
    ignored = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")
    settings = {k: v for k, v in read_config(resolved).items() if k not in ignored}
    return canonical_hash(settings)


def source_sha256(resolved: ResolvedModel) -> str | None:
    """Hash of the files that decide the weights, where the weights are made from them.

    Returns:
        For a GGUF file its sha256; for an adapter a hash over its weights, its config and its
        base; None for safetensors and .bin, which ``weights_sha256`` identifies better.
    """
    if resolved.kind == "gguf":
        return _file_sha256(resolved.path)
    if resolved.kind != "peft" or resolved.base is None:
        return None
    adapter = {k: v for k, v in _adapter_config(resolved.path).items() if v is not None}
    adapter.pop("base_model_name_or_path", None)
    base = source_sha256(resolved.base) or [_file_sha256(file) for file in resolved.base.files]
    return canonical_hash(
        {
            "weights": [_file_sha256(file) for file in resolved.files],
            "adapter": adapter,
            "base": base,
            "config": config_sha256(resolved.base),
        }
    )


def nearest_paths(wanted: Path, count: int = 3) -> tuple[Path, ...]:
    """Existing paths whose names are like ``wanted``'s, the likest first.

    Looked for beside the first missing part, and in the working directory and its folders.
    """
    parts = [wanted, *wanted.parents]
    missing = next((p for p in parts if p.parent.is_dir()), wanted)
    found: dict[str, Path] = {}
    for path in _candidates(missing.parent):
        found.setdefault(path.name.lower(), path)
    matches = [
        match
        for name in dict.fromkeys((missing.name.lower(), wanted.name.lower()))
        for match in difflib.get_close_matches(name, list(found), n=count, cutoff=0.6)
    ]
    return tuple(found[name] for name in list(dict.fromkeys(matches))[:count])


# --- searching ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Search:
    config: EvalConfig
    progress: Progress | None
    adapters: tuple[Path, ...] = ()
    """Adapters whose base is being looked for, so that a circle is seen."""

    def find(self, text: str) -> ResolvedModel:
        path = Path(text).expanduser()
        try:
            if path.is_file():
                return self._file(text, path.absolute())
            if path.is_dir():
                return self._folder(text, path.absolute())
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
        model = None if _is_local(text) else parse_hub_id(text)
        if model is None:
            raise ModelError(
                f"no model folder or file at {path}",
                hint=_nearest(path) or "Give a folder, a GGUF file or a hub id (owner/name)",
            )
        return self._hub(text, model)

    def _hub(self, text: str, model: HubModel) -> ResolvedModel:
        try:
            snapshot = fetch_model(
                model,
                cache_dir=self.config.cache_dir,
                remote_code=self.config.trust_remote_code,
                progress=self.progress,
            )
        except ModelError as error:
            near = _nearest(Path(model.id))
            raise ModelError(
                error.message, hint=". ".join(part for part in (error.hint, near) if part)
            ) from error
        found = self._folder(text, snapshot.folder)
        return ResolvedModel(
            requested=text,
            name=model.id.split("/")[-1],
            kind=found.kind,
            path=found.path,
            hub_id=model.id,
            revision=snapshot.commit,
            base=found.base,
            files=found.files,
            notes=(*snapshot.notes, *found.notes),
        )

    def _file(self, text: str, path: Path) -> ResolvedModel:
        if path.suffix != ".gguf":
            raise ModelError(
                f"{path} is a file; expected a model folder or a .gguf file",
                hint=f"Give the folder: {path.parent}" if path.parent.exists() else None,
            )
        check_weight_file(path)
        return ResolvedModel(text, path.stem, "gguf", path, files=(path,))

    def _folder(self, text: str, folder: Path) -> ResolvedModel:
        weights = next(((k, folder / n) for k, n in _WEIGHTS if (folder / n).is_file()), None)
        if (folder / "adapter_config.json").is_file():
            if weights is not None:
                raise ModelError(
                    f"{folder} holds both a model ({weights[1].name}) and an adapter"
                    " (adapter_config.json)",
                    hint="Move one of them to a folder of its own",
                )
            return self._adapter(text, folder)
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} has no config.json", hint=_instead(folder))
        if weights is None:
            raise ModelError(
                f"{folder} has no weights: expected model.safetensors, pytorch_model.bin or an"
                " index of their shards",
                hint=_instead(folder),
            )
        kind, first = weights
        files = shard_files(first) if first.suffix == ".json" else (first,)
        for file in files:
            check_weight_file(file)
        read_json(folder / "config.json")
        return ResolvedModel(text, _folder_name(folder), kind, folder, files=files)

    def _adapter(self, text: str, folder: Path) -> ResolvedModel:
        config = _adapter_config(folder)
        weights = next((folder / n for n in _ADAPTER_WEIGHTS if (folder / n).is_file()), None)
        if weights is None:
            raise ModelError(
                f"the adapter {folder} has no weights: expected {' or '.join(_ADAPTER_WEIGHTS)}"
            )
        check_weight_file(weights)
        base = config.get("base_model_name_or_path")
        if not base:
            raise ModelError(
                f"{folder / 'adapter_config.json'} does not name the base model",
                hint="Set base_model_name_or_path in it to a folder or hub id",
            )
        if folder.resolve() in self.adapters:
            raise ModelError(f"the adapter {folder} names itself as its base")
        search = _Search(self.config, self.progress, (*self.adapters, folder.resolve()))
        try:
            found = search.find(_base_address(str(base), folder, config.get("revision")))
        except ModelError as error:
            raise ModelError(
                f"the adapter {folder} needs its base model {base}, which cannot be had:"
                f" {error.message}",
                hint=error.hint,
            ) from error
        return ResolvedModel(
            text,
            _folder_name(folder),
            "peft",
            folder,
            base=found,
            files=(weights,),
            notes=found.notes,
        )


def _base_address(base: str, folder: Path, revision: Any) -> str:
    """A path that the adapter's folder or the working directory makes right, or a hub id."""
    beside = folder / Path(base).expanduser()
    if beside.exists() or (_is_local(base) and not Path(base).expanduser().exists()):
        return str(beside.resolve())
    if Path(base).expanduser().exists() or not revision or "@" in base:
        return base
    return f"{base}@{revision}"


def _adapter_config(folder: Path) -> dict[str, Any]:
    return read_json(folder / "adapter_config.json")


def _is_local(text: str) -> bool:
    """Whether the text can only mean a path."""
    return text.startswith(("/", ".", "~")) or "\\" in text or text.endswith((".gguf", "/"))


def _folder_name(folder: Path) -> str:
    """The folder's name; for a snapshot in the hub's cache, the repository's."""
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.split("--")[-1]
    return folder.resolve().name if folder.name in ("", "..") else folder.name


def _candidates(folder: Path) -> Iterator[Path]:
    for start in dict.fromkeys((folder, Path())):
        for pattern in ("*", "*/*") if start == Path() else ("*",):
            for path in islice(start.glob(pattern), 5000):
                if path.suffix == ".gguf" or (path.is_dir() and not path.name.startswith(".")):
                    yield path


def _nearest(path: Path) -> str | None:
    near = nearest_paths(path)
    return f"Nearest: {', '.join(map(str, near))}" if near else None


def _instead(folder: Path) -> str:
    """What the folder has in place of a model."""
    gguf = sorted(folder.glob("*.gguf"))
    if gguf:
        return f"It has GGUF files: give {gguf[0]}"
    inner = [*folder.glob("*/config.json"), *folder.glob("*/adapter_config.json")]
    if inner:
        return f"It holds a model folder: give {sorted(inner)[0].parent}"
    names = sorted(path.name for path in folder.iterdir())
    return f"Found: {', '.join(names[:8])}" if names else "The folder is empty"


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
