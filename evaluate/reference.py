"""The original that a token-level divergence is taken from: where it is, and which it is."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunescope.errors import ModelError, RecordError, SettingError
from prunescope.evaluate import checkpoint, loading, sparsity
from prunescope.evaluate.divergence import (
    KeptReference,
    LoadedReference,
    TokenDivergence,
    TopkKeeper,
    statistics,
)
from prunescope.evaluate.progress import Progress
from prunescope.records import (
    TOPK_ARRAYS,
    DivergenceResult,
    EvalConfig,
    EvalRecord,
    KeptTopk,
    ModelInfo,
    Protocol,
    read_record,
    topk_path,
)

if TYPE_CHECKING:
    from prunescope.evaluate.data import Corpus

__all__ = [
    "Reference",
    "Subject",
    "divergence_result",
    "find_reference",
    "kept_topk",
    "open_keeper",
    "open_reference",
    "read_topk",
]


@dataclass(frozen=True)
class Subject:
    """The model that is compared with the original."""

    model: ModelInfo
    tokenizer: Any


@dataclass(frozen=True)
class Reference:
    """An original to compare with, token by token."""

    name: str
    sha256: str | None
    """Hash of its weights."""
    record_id: str | None
    kept: Path | None = None
    """Record directory whose kept log-probabilities are used; None where the model is loaded."""
    k: int | None = None
    resolved: loading.ResolvedModel | None = None
    config: EvalConfig | None = None
    """With which the original's model is loaded."""

    @property
    def identity(self) -> dict[str, Any]:
        """What of it decides the numbers."""
        return {"weights": self.sha256, "k": self.k}


def find_reference(
    config: EvalConfig,
    subject: Subject,
    corpus: Corpus,
    seqlen: int,
    progress: Progress,
) -> Reference | None:
    """The original that ``config.kl_reference`` names; None where none is asked for.

    A record directory's kept log-probabilities are used where they cover the windows; otherwise
    the model that the record names is looked for, and must still have the same weights.

    Raises:
        ModelError: the original's model is gone, or is another one now.
        SettingError: it has another vocabulary, or cuts the text into other tokens.
        RecordError: the record is damaged.
    """
    if config.kl_reference is None:
        return None
    folder = Path(config.kl_reference)
    if not (folder / "record.json").is_file():
        return _model_reference(config, config.kl_reference, None, subject, corpus, progress)
    record = read_record(folder)
    kept = record.topk.get(corpus.name)
    if kept is not None and _covers(record, corpus, seqlen, config.nsamples):
        known = record.model
        sha256 = known.source_sha256 or known.weights_sha256
        return Reference(known.name, sha256, record.record_id, kept=folder, k=kept.k)
    return _model_reference(config, _location(record), record, subject, corpus, progress)


def _covers(record: EvalRecord, corpus: Corpus, seqlen: int, nsamples: int | None) -> bool:
    """Whether the windows that will be scored are among those that the record kept."""
    from hashlib import sha256

    known = record.perplexity.get(corpus.name)
    if known is None or known.seqlen != seqlen:
        return False
    if known.corpus_sha256 != sha256(corpus.text.encode("utf-8", "surrogatepass")).hexdigest():
        return False
    available = known.corpus_tokens // seqlen
    return known.windows >= min(available, nsamples or available)


def _location(record: EvalRecord) -> str:
    model = record.model
    if model.hub_id is None:
        return model.path or model.requested
    return f"{model.hub_id}@{model.revision}" if model.revision else model.hub_id


def _model_reference(
    config: EvalConfig,
    place: str,
    record: EvalRecord | None,
    subject: Subject,
    corpus: Corpus,
    progress: Progress,
) -> Reference:
    theirs = config.model_copy(update={"model": place})
    try:
        resolved = loading.resolve_model(theirs, progress)
    except ModelError as error:
        if record is None:
            raise
        raise ModelError(
            f"the original's model is no longer at {place}: {error.message}",
            hint="Name the place where it is now with --kl-reference, or evaluate the original "
            "with --keep-topk",
        ) from error
    info = loading.describe_model(resolved, None, theirs)
    _check_vocabulary(info, subject.model)
    _check_tokens(loading.load_tokenizer(resolved, theirs), subject, corpus)
    sha256 = info.source_sha256 or _weights_sha256(resolved, info, progress)
    if record is not None:
        _check_unchanged(record.model, sha256, place)
    record_id = record.record_id if record is not None else None
    return Reference(info.name, sha256, record_id, resolved=resolved, config=theirs)


def _weights_sha256(
    resolved: loading.ResolvedModel, info: ModelInfo, progress: Progress
) -> str | None:
    if resolved.kind == "gguf" or resolved.kind == "peft":
        raise RuntimeError("such a model is known by its files")
    progress.start("load", f"hash of {resolved.name}", total=info.bytes)
    found = sparsity.hash_weights(
        checkpoint.iter_tensors(resolved.files, resolved.kind),
        config=loading.read_config(resolved),
        advance=progress.advance,
    )
    progress.finish()
    return found.weights_sha256


def _check_unchanged(known: ModelInfo, sha256: str | None, place: str) -> None:
    expected = known.source_sha256 or known.weights_sha256
    if expected is not None and sha256 is not None and expected != sha256:
        raise ModelError(
            f"the model at {place} has other weights ({sha256[:8]}) than the original that was "
            f"evaluated ({expected[:8]})",
            hint="Evaluate the original again, or name another model with --kl-reference",
        )


def _check_vocabulary(original: ModelInfo, model: ModelInfo) -> None:
    if original.vocab_size != model.vocab_size:
        raise SettingError(
            f"the original has {original.vocab_size} tokens, this model {model.vocab_size}: their "
            "distributions cannot be compared",
            hint="Name the original of this very model with --kl-reference",
        )


def _check_tokens(tokenizer: Any, subject: Subject, corpus: Corpus) -> None:
    if loading.tokenizer_sha256(tokenizer) == subject.model.tokenizer_sha256:
        return
    theirs, own = (t(corpus.text, verbose=False) for t in (tokenizer, subject.tokenizer))
    if theirs["input_ids"] != own["input_ids"]:
        raise SettingError(
            f"the original's tokenizer cuts {corpus.name} into other tokens than this model's",
            hint="Use one tokenizer for both with --tokenizer",
        )


def read_topk(directory: Path, corpus: str) -> Mapping[str, np.ndarray]:
    """What a record directory kept, see :data:`prunescope.records.TOPK_ARRAYS`.

    Raises:
        RecordError: the file is missing or damaged.
    """
    path = topk_path(directory, corpus)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in TOPK_ARRAYS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RecordError(
            f"the log-probabilities kept at {path} cannot be read: {error}",
            hint="Evaluate the original again with --keep-topk and --force",
        ) from error


# --- while perplexity is measured -----------------------------------------------------------------


def open_reference(
    reference: Reference, corpus: str, progress: Progress
) -> LoadedReference | KeptReference:
    """What watches the windows: the original's model, loaded now, or what its evaluation kept.

    Raises:
        ModelError: the model cannot be loaded.
        RecordError: what was kept cannot be read.
    """
    if reference.kept is not None:
        progress.say(
            f"KL divergence over the original's {reference.k} most probable tokens and one bucket "
            "for the others, a lower bound of the one over the vocabulary"
        )
        return KeptReference(read_topk(reference.kept, corpus))
    if reference.resolved is None or reference.config is None:
        raise RuntimeError("a reference is a model or what was kept of one")
    return LoadedReference(loading.load_model(reference.resolved, reference.config, progress))


def open_keeper(
    k: int | None,
    loaded: loading.LoadedModel,
    corpus: Corpus,
    protocol: Protocol,
    progress: Progress,
) -> TopkKeeper | None:
    """What keeps the log-probabilities, after its size was told; None where none are wanted."""
    if k is None or protocol.seqlen is None:
        return None
    tokens = len(loaded.tokenizer(corpus.text, verbose=False)["input_ids"])
    windows = tokens // protocol.seqlen
    windows = min(windows, protocol.nsamples or windows)
    size = windows * (protocol.seqlen - 1) * (8 * k + 8)
    progress.say(
        f"top-{k} log-probabilities of {windows * (protocol.seqlen - 1):,} tokens are kept: "
        f"{size / 1e6:,.1f} MB before compression"
    )
    return TopkKeeper(k)


def divergence_result(
    reference: Reference, corpus: str, found: TokenDivergence
) -> DivergenceResult:
    """The tokens' divergences as the record holds them."""
    figures = statistics(found)
    windows, predicted = found.kl.shape
    return DivergenceResult(
        corpus=corpus,
        kind="full" if reference.kept is None else "top-k",
        k=reference.k,
        mean=figures.mean,
        stderr_tokens=figures.stderr_tokens,
        stderr_windows=figures.stderr_windows,
        percentiles=figures.percentiles,
        same_top=figures.same_top,
        same_top_stderr=figures.same_top_stderr,
        tokens=windows * predicted,
        windows=windows,
        reference_name=reference.name,
        reference_record_id=reference.record_id,
        reference_sha256=reference.sha256,
    )


def kept_topk(arrays: Mapping[str, np.ndarray], size: int) -> KeptTopk:
    """What the record says of the kept log-probabilities, whose file has ``size`` bytes."""
    logprob = arrays["logprob"]
    covered = np.exp(logprob.astype(np.float64)).sum(axis=-1).mean()
    return KeptTopk(k=logprob.shape[-1], bytes=size, covered=float(covered))
