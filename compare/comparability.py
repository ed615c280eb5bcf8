"""Whether two figures may be subtracted, decided from how each was taken.

One function, :func:`comparable`, decides for every row of every table. A setting that one side
does not know (results imported from elsewhere) cannot refuse a row: :func:`unchecked` names it,
so that the report can say what it took on trust.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from prunescope.records import EvalRecord, PerplexityResult, TaskProtocol, TaskResult

__all__ = [
    "Kind",
    "ProtocolDifference",
    "comparable",
    "protocol_differences",
    "unchecked",
]

Kind = Literal["task", "perplexity"]

_UNKNOWN = frozenset({"", "unknown", "None"})


@dataclass(frozen=True)
class ProtocolDifference:
    """A setting that differs between two evaluations, with both sides' values as text."""

    what: str
    original: str
    pruned: str

    def __str__(self) -> str:
        return f"{self.what}: original {self.original}, pruned {self.pruned}"


@dataclass(frozen=True)
class _Fact:
    """Something that decides a figure, on both sides; None where a side does not know it."""

    what: str
    original: str | None
    pruned: str | None

    @property
    def known(self) -> bool:
        return self.original is not None and self.pruned is not None

    @property
    def differs(self) -> bool:
        return self.known and self.original != self.pruned

    def __str__(self) -> str:
        return f"{self.what}: original {self.original}, pruned {self.pruned}"


def comparable(kind: Kind, name: str, original: EvalRecord, pruned: EvalRecord) -> str | None:
    """Decide whether a figure of two evaluations may be subtracted.

    A task needs the same version, few-shot examples, primary metric and documents (so the same
    limit, unless both limits cover the same documents). A perplexity needs the same text, window
    length, windows and tokenization of the text. Tokenizer files that differ but cut the text
    into equally many tokens do not refuse it: fine-tuning often writes them anew with another
    padding token, and the figure is a mean over tokens.

    Args:
        kind: what ``name`` names.
        name: a key of ``tasks`` or of ``perplexity``.

    Returns:
        None where the figures are comparable, else what differs with both sides' values.
    """
    missing = _missing(kind, name, original, pruned)
    if missing is not None:
        return missing
    differing = [fact for fact in _facts(kind, name, original, pruned) if fact.differs]
    if kind == "task" and not differing:
        return _subtasks(name, original, pruned)
    return "; ".join(str(fact) for fact in differing) or None


def unchecked(kind: Kind, name: str, original: EvalRecord, pruned: EvalRecord) -> tuple[str, ...]:
    """The settings of a comparable row that at least one side does not know, by name."""
    if _missing(kind, name, original, pruned) is not None:
        return ()
    return tuple(fact.what for fact in _facts(kind, name, original, pruned) if not fact.known)


def _missing(kind: Kind, name: str, original: EvalRecord, pruned: EvalRecord) -> str | None:
    absent = []
    for side, record in (("original", original), ("pruned", pruned)):
        has = record.tasks if kind == "task" else record.perplexity
        if name not in has:
            others = "" if kind == "task" or not has else f" (it has {', '.join(has)})"
            absent.append(f"not evaluated in the {side} run{others}")
    return "; ".join(absent) or None


def _facts(kind: Kind, name: str, original: EvalRecord, pruned: EvalRecord) -> tuple[_Fact, ...]:
    if kind == "task":
        return _task_facts(name, original, pruned)
    return _perplexity_facts(original.perplexity[name], pruned.perplexity[name], original, pruned)


# --- tasks --------------------------------------------------------------------------------------


def _task_facts(name: str, original: EvalRecord, pruned: EvalRecord) -> tuple[_Fact, ...]:
    a, b = original.tasks[name], pruned.tasks[name]
    facts = [
        _Fact("task version", _text(a.version), _text(b.version)),
        _Fact("few-shot examples", _fewshot(name, original), _fewshot(name, pruned)),
        _Fact("primary metric", a.primary, b.primary),
    ]
    if a.group and b.group:
        members = (", ".join(sorted(a.subtasks)), ", ".join(sorted(b.subtasks)))
        facts.append(_Fact("subtasks", members[0] or None, members[1] or None))
        return tuple(facts)
    # Another version or other examples in the prompt change the documents' hashes as well:
    # the cause alone is the reason.
    if not any(fact.differs for fact in facts):
        facts.extend(_document_facts(name, original, pruned))
    return tuple(facts)


def _document_facts(name: str, original: EvalRecord, pruned: EvalRecord) -> tuple[_Fact, ...]:
    a, b = original.tasks[name], pruned.tasks[name]
    hashes = (_documents(a, original), _documents(b, pruned))
    if hashes[0] is not None and hashes[0] == hashes[1]:
        return ()
    counts = (_count(a.n), _count(b.n))
    limits = (_limit(original), _limit(pruned))
    if limits[0] != limits[1] and counts[0] != counts[1]:
        return (_Fact("limit", *limits),)
    if None not in counts and counts[0] != counts[1]:
        return (_Fact("documents", *counts),)
    if None in hashes:
        return (_Fact("documents", None, None),)
    return (
        _Fact("documents", *(f"{n} ({str(h)[:8]})" for n, h in zip(counts, hashes, strict=True))),
    )


def _subtasks(name: str, original: EvalRecord, pruned: EvalRecord) -> str | None:
    """A group is comparable when each of its members is, as far as both runs have them."""
    for member in original.tasks[name].subtasks:
        if member in original.tasks and member in pruned.tasks and member != name:
            reason = comparable("task", member, original, pruned)
            if reason is not None:
                return f"{member}: {reason}"
    return None


def _task_protocol(name: str, record: EvalRecord) -> TaskProtocol | None:
    return record.protocol.tasks.get(name)


def _fewshot(name: str, record: EvalRecord) -> str | None:
    result, protocol = record.tasks[name], _task_protocol(name, record)
    for known in (
        result.num_fewshot,
        None if protocol is None else protocol.num_fewshot,
        record.protocol.num_fewshot,
    ):
        if known is not None:
            return str(known)
    return None


def _documents(result: TaskResult, record: EvalRecord) -> str | None:
    protocol = _task_protocol(result.task, record)
    found = result.documents_sha256 or (protocol.documents_sha256 if protocol else None)
    return found or None


def _limit(record: EvalRecord) -> str:
    return "none" if record.protocol.limit is None else str(record.protocol.limit)


# --- perplexity ---------------------------------------------------------------------------------


def _perplexity_facts(
    a: PerplexityResult, b: PerplexityResult, original: EvalRecord, pruned: EvalRecord
) -> tuple[_Fact, ...]:
    text = _Fact("corpus text", _short(a.corpus_sha256), _short(b.corpus_sha256))
    facts = [
        _Fact("corpus", _text(a.corpus), _text(b.corpus)),
        text,
        _Fact("window length", _count(a.seqlen), _count(b.seqlen)),
    ]
    if not text.differs:
        facts.append(_tokenizer_fact(a, b, original, pruned))
    # Each of these changes the number of windows too: the cause alone is the reason.
    if not any(fact.differs for fact in facts):
        facts.append(_Fact("windows", _count(a.windows), _count(b.windows)))
    return tuple(facts)


def _tokenizer_fact(
    a: PerplexityResult, b: PerplexityResult, original: EvalRecord, pruned: EvalRecord
) -> _Fact:
    hashes = (_short(original.model.tokenizer_sha256), _short(pruned.model.tokenizer_sha256))
    counts = (_count(a.corpus_tokens), _count(b.corpus_tokens))
    if None in counts:
        return _Fact("tokenizer", *hashes)
    sides = (f"{n} tokens of the corpus" for n in counts)
    return _Fact("tokenizer", *sides)


# --- the whole protocol -------------------------------------------------------------------------

_SETTINGS: tuple[tuple[str, Callable[[EvalRecord], object]], ...] = (
    ("tasks asked for", lambda r: ", ".join(r.protocol.requested_tasks)),
    ("limit", lambda r: _limit(r)),
    ("few-shot examples asked for", lambda r: _or_default(r.protocol.num_fewshot)),
    ("perplexity corpus", lambda r: r.protocol.ppl_corpus),
    ("window length", lambda r: r.protocol.seqlen),
    ("perplexity samples", lambda r: _or_all(r.protocol.nsamples)),
    ("dtype", lambda r: r.protocol.dtype),
    ("scorer", lambda r: r.protocol.scorer),
    ("batch size", lambda r: r.protocol.batch_size),
    ("device", lambda r: r.protocol.device),
    ("seed", lambda r: r.protocol.seed),
    ("tokenizer", lambda r: _short(r.model.tokenizer_sha256)),
    ("code from the checkpoint", lambda r: "run" if r.model.trust_remote_code else "not run"),
    ("lm-eval", lambda r: _package(r, "lm_eval", "lm-eval")),
    ("transformers", lambda r: _package(r, "transformers")),
    ("torch", lambda r: _package(r, "torch")),
    ("rows came from", lambda r: r.provenance.data_source),
)


def protocol_differences(
    original: EvalRecord, pruned: EvalRecord
) -> tuple[ProtocolDifference, ...]:
    """The settings that differ between two evaluations, whether or not they refuse a row.

    Batch size, dtype, device, scorer and package versions move figures little:
    they are told, and do not make a row incomparable.
    """
    found = []
    for what, get in _SETTINGS:
        a, b = _shown(get(original)), _shown(get(pruned))
        if a != b:
            found.append(ProtocolDifference(what, a, b))
    return tuple(found)


def _package(record: EvalRecord, *names: str) -> str | None:
    return next((v for n in names if (v := record.provenance.packages.get(n))), None)


def _or_default(value: int | None) -> str:
    return "each task's default" if value is None else str(value)


def _or_all(value: int | None) -> str:
    return "all" if value is None else str(value)


def _shown(value: object) -> str:
    return "not known" if value is None or value == "" else str(value)


def _text(value: str) -> str | None:
    return None if value in _UNKNOWN else value


def _count(value: int) -> str | None:
    return str(value) if value > 0 else None


def _short(sha256: str | None) -> str | None:
    return sha256[:8] if sha256 else None
