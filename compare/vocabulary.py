"""Divergence over the vocabulary, which an evaluation took from an original, as a table."""

from __future__ import annotations

from prunescope.compare.delta import Comparison
from prunescope.compare.layout import Cell, Table
from prunescope.metrics import KL, corpus_title, format_percent
from prunescope.records import DivergenceResult, EvalRecord

__all__ = ["divergence_tables"]


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
    return (Table("Divergence over the Vocabulary", header, rows, words=3, caption=caption),)


def _row(
    side: str, record: EvalRecord, original_id: str, found: DivergenceResult
) -> tuple[Cell, ...]:
    known = {original_id: "the original", record.record_id: "itself"}
    source = known.get(found.reference_record_id or "", found.reference_name)
    bound = f"\u2265 (k = {found.k}) " if found.kind == "top-k" else ""
    error = "" if found.stderr_windows is None else f" \u00b1 {KL.format(found.stderr_windows)}"
    return (
        Cell(side),
        Cell(corpus_title(found.corpus)),
        Cell(source),
        Cell(f"{bound}{KL.format(found.mean)}{error}"),
        Cell(KL.format(found.percentiles.get("50"))),
        Cell(KL.format(found.percentiles.get("99"))),
        Cell(format_percent(found.same_top)),
    )
