"""Load a tokenizer, and say which one it is."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunescope.errors import ModelError
from prunescope.evaluate.loading.address import parse_hub_id
from prunescope.evaluate.loading.architecture import causal_lm_config
from prunescope.evaluate.loading.files import check_weight_file, read_json
from prunescope.evaluate.loading.hub import fetch_tokenizer
from prunescope.evaluate.loading.locate import ResolvedModel, nearest_paths
from prunescope.evaluate.loading.quiet import quiet_libraries
from prunescope.records import EvalConfig, canonical_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["load_tokenizer", "tokenizer_sha256"]

# Without one of these transformers 5 builds a tokenizer with an empty vocabulary for some classes.
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tekken.json",
    "merges.txt",
    "*.model",
    "*.tiktoken",
)
_TOKENIZER_HINT = "Name the folder or hub id of its tokenizer with --tokenizer"


def load_tokenizer(resolved: ResolvedModel, config: EvalConfig) -> PreTrainedTokenizerBase:
    """The tokenizer that ``config.tokenizer`` names, else the model's own.

    An adapter without a tokenizer has its base's.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    source = _source(resolved, config)
    from transformers import AutoTokenizer

    where: dict[str, Any] = {"pretrained_model_name_or_path": str(source)}
    if source.is_file():
        where = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    try:
        with quiet_libraries():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                **where, trust_remote_code=config.trust_remote_code, local_files_only=True
            )
    except Exception as error:
        # Tokenizer files are parsed by many classes (and by code of the checkpoint's own), which
        # have no common error. They read config.json too, whose faults are better told as such.
        if source == resolved.path:
            causal_lm_config(resolved, config)
        raise _unreadable(source, config, error) from error
    if tokenizer.vocab_size == 0:
        raise ModelError(f"the tokenizer in {source} has no vocabulary", hint=_TOKENIZER_HINT)
    return tokenizer


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of everything that decides token ids.

    The vocabulary, merges, normalization, pre-tokenization, templates and added tokens, and
    which special tokens there are and are added. Neither the folder nor the present state of
    padding and truncation enters.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts: dict[str, Any] = {
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "added": {str(i): str(t) for i, t in sorted(tokenizer.added_tokens_decoder.items())},
        "bos": getattr(tokenizer, "add_bos_token", None),
        "eos": getattr(tokenizer, "add_eos_token", None),
        "split_special": getattr(tokenizer, "split_special_tokens", False),
    }
    if backend is not None:
        state = json.loads(backend.to_str())
        parts["backend"] = {k: v for k, v in state.items() if k not in ("padding", "truncation")}
    else:
        parts["class"] = type(tokenizer).__name__
        parts["files"] = _vocabulary_hashes(tokenizer)
    return canonical_hash(parts)


def _vocabulary_hashes(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        names = tokenizer.save_vocabulary(folder)
        return {
            Path(name).name: hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in names
        }


def _source(resolved: ResolvedModel, config: EvalConfig) -> Path:
    """The folder or GGUF file that the tokenizer is read from."""
    if config.tokenizer is not None:
        return _named(config.tokenizer, config)
    if resolved.kind == "gguf":
        return resolved.path
    if _has_vocabulary(resolved.path, config):
        return resolved.path
    if resolved.base is not None:
        return _source(resolved.base, config)
    raise ModelError(f"{resolved.path} has no tokenizer", hint=_TOKENIZER_HINT)


def _named(text: str, config: EvalConfig) -> Path:
    path = Path(text).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        check_weight_file(path)
        return path.absolute()
    if path.is_file() and path.name in ("tokenizer.json", "tokenizer_config.json"):
        path = path.parent
    if path.is_dir():
        if not _has_vocabulary(path, config):
            raise ModelError(f"{path} has no tokenizer", hint="Give a folder with tokenizer.json")
        return path.absolute()
    model = parse_hub_id(text)
    if model is None or path.is_file():
        near = ", ".join(map(str, nearest_paths(path)))
        raise ModelError(
            f"no tokenizer folder at {path}", hint=f"Nearest: {near}" if near else _TOKENIZER_HINT
        )
    snapshot = fetch_tokenizer(
        model, cache_dir=config.cache_dir, remote_code=config.trust_remote_code
    )
    if not _has_vocabulary(snapshot.folder, config):
        raise ModelError(f"{model} has no tokenizer", hint=_TOKENIZER_HINT)
    return snapshot.folder


def _has_vocabulary(folder: Path, config: EvalConfig) -> bool:
    if any(True for pattern in _VOCABULARIES for _ in folder.glob(pattern)):
        return True
    # Code of the checkpoint's own may keep its vocabulary in any file.
    settings = folder / "tokenizer_config.json"
    return config.trust_remote_code and settings.is_file() and "auto_map" in read_json(settings)


def _unreadable(source: Path, config: EvalConfig, error: Exception) -> ModelError:
    reason = (str(error).strip().splitlines() or [""])[0].rstrip(".:") or type(error).__name__
    settings = source / "tokenizer_config.json"
    custom = settings.is_file() and "auto_map" in read_json(settings)
    if custom and not config.trust_remote_code:
        return ModelError(
            f"the tokenizer in {source} needs Python code that comes with it",
            hint="Read that code, then allow it with --trust-remote-code",
        )
    return ModelError(f"cannot read the tokenizer in {source}: {reason}", hint=_TOKENIZER_HINT)
