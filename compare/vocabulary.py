"""Divergence over the vocabulary, which an evaluation took from an original, as a table."""

from __future__ import annotations

from collections.abc import Iterator

from prunescope.compare.delta import Comparison
from prunescope.compare.layout import Cell, Table
from prunescope.metrics import KL, corpus_title, format_percent
from prunescope.records import DivergenceResult, EvalRecord

__all__ = ["divergence_figures", "divergence_tables"]


def divergence_tables(comparison: Comparison) -> tuple[Table, ...]:
    """One row a side and corpus; no table where neither side was evaluated with a reference."""
    rows = tuple(
        _row(side, record, comparison.original.record_id, found)
        for side, record in (("original", comparison.original), ("pruned", comparison.pruned))
        for found in record.divergence.values()
    )
    if not rows:
        return ()
    header = ("Model", "Corpus", "From", "KL divergence", "Median", "99 %", "Same most probable")
    caption = (
        "KL divergence in nats per token over the whole vocabulary, from the model under From, "
        "with its standard error over the windows; \u2265: over that model's most probable tokens "
        "and one bucket for all others, a lower bound."
    )
    spare = (header.index("Median"), header.index("99 %"))
    title = "Divergence over the Vocabulary"
    return (Table(title, header, rows, words=3, caption=caption, spare=spare),)


def divergence_figures(
    comparison: Comparison,
) -> Iterator[tuple[str, str, tuple[float | None, ...]]]:
    """What the table shows, with full precision.

    Yields:
        A label; a key (``kl/wikitext2``, ``kl_median/...``, ``kl_p99/...``, ``same_top/...``); and
        original, pruned, difference and relative change (both None), and both sides' standard
        errors. None on a side that was not evaluated with this reference.
    """
    found: dict[tuple[str, str, int | None], list[_Figures]] = {}
    for place, record in enumerate((comparison.original, comparison.pruned)):
        for result in record.divergence.values():
            source = _source(result, record, comparison.original.record_id)
            pair = found.setdefault((result.corpus, source, result.k), [_NOT_TAKEN, _NOT_TAKEN])
            pair[place] = _figures(result)
    for (corpus, source, k), (original, pruned) in found.items():
        for number, (key, name) in enumerate(_NAMES.items()):
            bound = "" if k is None or key == "same_top" else f", lower bound with k = {k}"
            values, errors = zip(original[number], pruned[number], strict=True)
            yield f"{name} {source}{bound}", f"{key}/{corpus}", (*values, None, None, *errors)


_NAMES = {
    "kl": "KL divergence from",
    "kl_median": "Median KL divergence from",
    "kl_p99": "99 % KL divergence from",
    "same_top": "Same most probable token as",
}
_Figures = tuple[tuple[float | None, float | None], ...]
_NOT_TAKEN: _Figures = ((None, None),) * len(_NAMES)


def _figures(found: DivergenceResult) -> _Figures:
    """Value and standard error of each of ``_NAMES``."""
    return (
        (found.mean, found.stderr_windows),
        (found.percentiles.get("50"), None),
        (found.percentiles.get("99"), None),
        (found.same_top, found.same_top_stderr),
    )


def _source(found: DivergenceResult, record: EvalRecord, original_id: str) -> str:
    known = {original_id: "the original", record.record_id: "itself"}
    return known.get(found.reference_record_id or "", found.reference_name)


def _row(
    side: str, record: EvalRecord, original_id: str, found: DivergenceResult
) -> tuple[Cell, ...]:
    bound = f"\u2265 (k = {found.k}) " if found.kind == "top-k" else ""
    error = "" if found.stderr_windows is None else f" \u00b1 {KL.format(found.stderr_windows)}"
    return (
        Cell(side),
        Cell(corpus_title(found.corpus)),
        Cell(_source(found, record, original_id)),
        Cell(f"{bound}{KL.format(found.mean)}{error}"),
        Cell(KL.format(found.percentiles.get("50"))),
        Cell(KL.format(found.percentiles.get("99"))),
        Cell(format_percent(found.same_top)),
    )
