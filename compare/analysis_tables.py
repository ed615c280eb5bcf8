"""The analysis of documents and tokens as tables of text."""

from __future__ import annotations

from collections.abc import Iterable

from prunescope.compare.analysis import Analysis
from prunescope.compare.drift import MaskDrift
from prunescope.compare.layout import Cell, Table
from prunescope.compare.paired_perplexity import Measured, TokenComparison, WindowLoss
from prunescope.compare.significance import Estimate
from prunescope.compare.verdict import SuiteStatistics, TaskStatistics
from prunescope.metrics import corpus_title, format_percent

__all__ = [
    "analysis_notes",
    "choice_divergence_table",
    "collapse_notes",
    "detail_tables",
    "format_p",
    "significance_table",
]

_TEXT_LIMIT = 300
_BETTER = {"better": True, "worse": False}


def format_p(value: float | None) -> str:
    """A p value with four decimals, ``<0.0001`` below, ``n/a`` where there is none."""
    if value is None:
        return "n/a"
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"


def significance_table(analysis: Analysis | None) -> Table | None:
    """One row a task: the difference in points, its interval, flips and verdict; then the suite."""
    if analysis is None or analysis.suite is None:
        return None
    suite = analysis.suite
    rows = [_task_row(task) for task in suite.tasks]
    rows.append(
        (
            Cell("SUITE"),
            *_points(suite.mean),
            Cell(format_p(suite.mean.p_value)),
            Cell(_flip_count(suite, suite.lost)),
            Cell(_flip_count(suite, suite.gained)),
            Cell(""),
            Cell(""),
            Cell(suite.verdict, _BETTER.get(suite.verdict)),
        )
    )
    header = (
        "Task", "Points", "95% interval", "p", "Lost", "Gained", "Changed", "Detectable", "Verdict",
    )  # fmt: skip
    return Table(
        "Is the difference real?",
        header,
        tuple(rows),
        strong=frozenset({len(rows) - 1}),
        caption=_significance_caption(suite),
        spare=(header.index("Detectable"), header.index("Changed")),
    )


def detail_tables(analysis: Analysis | None) -> tuple[Table, ...]:
    """The tables of the long reports, those that have something to show."""
    if analysis is None:
        return ()
    tables = [
        *(_tokens_table(tokens) for tokens in analysis.tokens),
        *(_windows_table(tokens) for tokens in analysis.tokens),
        choice_divergence_table(analysis),
        _margin_table(analysis),
        *_field_tables(analysis),
        _noise_table(analysis.noise),
        _mask_table(analysis.masks),
        _worst_table(analysis),
    ]
    return tuple(table for table in tables if table.rows)


def collapse_notes(analysis: Analysis | None) -> tuple[str, ...]:
    """Tasks of which a model no longer reads the documents."""
    return tuple(
        f"Collapse: the {c.side} model gives answer {c.choice + 1} to {100 * c.share:.1f} % of "
        f"{c.task}'s documents; it is right for {100 * c.gold_share:.1f} %"
        for c in (analysis.collapses if analysis is not None else ())
    )


def analysis_notes(analysis: Analysis | None) -> tuple[str, ...]:
    """What a reader must know of the documents."""
    if analysis is None:
        return ()
    return (*collapse_notes(analysis), *_mask_notes(analysis.masks), *analysis.notes)


# --- significance -------------------------------------------------------------------------------


def _task_row(task: TaskStatistics) -> tuple[Cell, ...]:
    flips = task.flips
    changed = flips.changed if flips is not None else None
    mark = {"paired": "", "clustered": " c", "unpaired": " ~"}[task.method]
    return (
        Cell(task.task + mark),
        *_points(task.estimate),
        Cell(format_p(task.p_holm)),
        Cell("n/a" if flips is None else str(flips.lost)),
        Cell("n/a" if flips is None else str(flips.gained)),
        Cell("n/a" if changed is None else str(changed)),
        Cell(f"{100 * task.detectable:.2f}"),
        Cell(task.verdict, _BETTER.get(task.verdict)),
    )


def _points(estimate: Estimate) -> tuple[Cell, Cell]:
    return (
        Cell(f"{100 * estimate.value:+.2f}"),
        Cell(f"{100 * estimate.low:+.2f} to {100 * estimate.high:+.2f}"),
    )


def _flip_count(suite: SuiteStatistics, count: int) -> str:
    return "n/a" if suite.p_pooled is None else str(count)


def _significance_caption(suite: SuiteStatistics) -> str:
    methods = {task.method for task in suite.tasks}
    points = round(100 * suite.margin, 6)
    parts = [
        "Differences in percentage points with 95 % intervals"
        + (", paired by document" if methods - {"unpaired"} else ""),
        "p is Holm-adjusted over the tasks",
        f"Same means within {points:g} point{'' if points == 1 else 's'}",
        "Detectable is the smallest difference that this many documents would have shown",
    ]
    if "clustered" in methods:
        parts.append("c: documents that share a passage count as one cluster")
    if "unpaired" in methods:
        parts.append("~: no documents, so the two runs are taken as independent samples")
    parts.append(
        f"Over all tasks: pooled McNemar p {format_p(suite.p_pooled)}, "
        f"Fisher's combination p {format_p(suite.p_fisher)}"
    )
    return ". ".join(parts) + "."


# --- tokens -------------------------------------------------------------------------------------


def _tokens_table(tokens: TokenComparison) -> Table:
    rows = [
        ("Perplexity ratio", _plus_minus(tokens.ratio), _interval(tokens.ratio)),
        ("Perplexity difference", _plus_minus(tokens.difference), _interval(tokens.difference)),
        ("ln(ratio)", _plus_minus(tokens.log_ratio), _interval(tokens.log_ratio)),
    ]
    if tokens.bootstrap_ratio is not None:
        low, high = tokens.bootstrap_ratio
        interval = f"{low:.4f} to {high:.4f}"
        rows.append(("Perplexity ratio, windows resampled", f"{tokens.ratio.value:.4f}", interval))
    rows += [
        ("Correlation of log-probabilities", f"{tokens.correlation:.4f}", ""),
        ("Mean change of p(right token)", *_percent(tokens.mean_dp)),
        ("RMS change of p(right token)", *_percent(tokens.rms_dp)),
        ("Same most probable token", *_percent(tokens.same_top)),
    ]
    rows += [
        (f"Change of p(right token), {_ordinal(percent)}", f"{100 * value:.3f} %", "")
        for percent, value in tokens.percentiles.items()
    ]
    return Table(
        f"{corpus_title(tokens.corpus)}, Token by Token",
        ("Figure", "Value", "95% interval"),
        tuple((Cell(a), Cell(b), Cell(c)) for a, b, c in rows),
        caption=f"{tokens.tokens:,} tokens in {tokens.windows:,} windows.",
    )


def _windows_table(tokens: TokenComparison) -> Table:
    known = any(w.first_character is not None for w in tokens.worst)
    rows = tuple(
        (
            Cell(str(w.window)),
            Cell(f"{w.first_token:,} to {w.last_token:,}"),
            *([Cell(_span(w))] if known else []),
            Cell(f"{w.original_nll:.4f}"),
            Cell(f"{w.pruned_nll:.4f}"),
            Cell(f"{w.pruned_nll - w.original_nll:+.4f}"),
        )
        for w in tokens.worst
    )
    places = ("Tokens of the corpus", *(["Characters of the corpus"] if known else []))
    header = ("Window", *places, "Original", "Pruned", "Difference")
    caption = "Mean cross-entropy in nats per token, the windows that lost most."
    title = f"{corpus_title(tokens.corpus)}, Worst Windows"
    return Table(title, header, rows, words=1 + len(places), caption=caption)


def _span(window: WindowLoss) -> str:
    if window.first_character is None or window.last_character is None:
        return "n/a"
    return f"{window.first_character:,} to {window.last_character:,}"


def _plus_minus(measured: Measured) -> str:
    return f"{measured.value:.4f} \u00b1 {measured.stderr:.4f}"


def _interval(measured: Measured) -> str:
    return f"{measured.low:.4f} to {measured.high:.4f}"


def _percent(measured: Measured) -> tuple[str, str]:
    return (
        f"{100 * measured.value:.3f} \u00b1 {100 * measured.stderr:.3f} %",
        f"{100 * measured.low:.3f} to {100 * measured.high:.3f} %",
    )


def _ordinal(percent: float) -> str:
    names = {0.0: "smallest", 50.0: "median", 100.0: "largest"}
    return names.get(percent, f"percentile {percent:g}")


# --- documents ----------------------------------------------------------------------------------


def choice_divergence_table(analysis: Analysis) -> Table:
    """One row a task: how far the two models' beliefs over the answers are apart."""
    rows = tuple(
        (
            Cell(d.task),
            Cell(f"{d.n:,}"),
            Cell(f"{d.kl:.4f} \u00b1 {d.kl_stderr:.4f}"),
            Cell(f"{d.total_variation:.4f} \u00b1 {d.total_variation_stderr:.4f}"),
        )
        for d in analysis.divergences
    )
    caption = (
        "Between the two models' distributions over each document's answer choices (KL in nats, "
        "original to pruned), not over the vocabulary."
    )
    header = ("Task", "Documents", "KL divergence", "Total variation")
    return Table("Divergence over the Answer Choices", header, rows, caption=caption)


def _margin_table(analysis: Analysis) -> Table:
    rows = tuple(
        (
            Cell(task.task),
            *(Cell(f"\u2212{g.lost} +{g.gained} of {g.n}") for g in task.groups),
        )
        for task in analysis.margins
    )
    header = ("Task", "Least sure", "Less sure", "More sure", "Surest")
    caption = (
        "Documents in four groups of equal size by how sure the original was (its best "
        "loglikelihood minus the next): \u2212 lost, + gained."
    )
    return Table("Flips by the Original's Confidence", header, rows, caption=caption)


def _field_tables(analysis: Analysis) -> Iterable[Table]:
    for found in analysis.fields:
        rows = tuple(
            (
                Cell(group.label),
                Cell(f"{group.n:,}"),
                Cell(str(group.lost)),
                Cell(str(group.gained)),
                Cell(f"{100 * group.net:+.2f}", None if not group.net else group.net > 0),
            )
            for group in found.groups
        )
        header = (found.by, "Documents", "Lost", "Gained", "Points")
        caption = "Kinds with at least 10 documents, those that lost most first."
        yield Table(f"Flips in {found.task} by {found.by}", header, rows, caption=caption)


def _noise_table(noise: SuiteStatistics | None) -> Table:
    rows = () if noise is None else tuple(_task_row(task) for task in noise.tasks)
    header = (
        "Task", "Points", "95% interval", "p", "Lost", "Gained", "Changed", "Detectable", "Verdict",
    )  # fmt: skip
    caption = "The original against a second run of itself: what changes without any pruning."
    return Table("Noise Floor", header, rows, caption=caption)


def _mask_table(drift: MaskDrift | None) -> Table:
    groups = [] if drift is None else [*drift.kinds.items(), ("all", drift.total)]
    rows = tuple(
        (
            Cell(kind),
            Cell(format_percent(count.first.fraction)),
            Cell(format_percent(count.second.fraction)),
            Cell(f"{count.changed} of {count.tensors}"),
            Cell(f"{count.returned_at_least:,}", False if count.returned_at_least else None),
        )
        for kind, count in groups
    )
    header = ("Kind", "Original", "Pruned", "Masks changed", "Weights back (at least)")
    caption = (
        "Zeros of the linear layers in both runs. Weights back: zeros of the original that must "
        "have become other numbers, by the counts and mask hashes of the records."
    )
    strong = frozenset({len(rows) - 1} if rows else ())
    return Table("Masks", header, rows, strong=strong, caption=caption)


def _mask_notes(drift: MaskDrift | None) -> tuple[str, ...]:
    if drift is None:
        return ()
    if drift.same_mask:
        return ("Both runs have the same mask in every linear layer",)
    if drift.total.returned_at_least:
        return (
            f"Pruned weights came back: at least {drift.total.returned_at_least:,} zeros of the "
            f"original are other numbers in the pruned run",
        )
    return ()


def _worst_table(analysis: Analysis) -> Table:
    rows = tuple(
        (
            Cell(loss.task),
            Cell(str(loss.doc_id)),
            Cell(_shorten(loss.context)),
            Cell(_answer(loss.choices, loss.gold)),
            Cell(_answer(loss.choices, loss.pruned_choice)),
            Cell(f"{loss.original_p:.4f}"),
            Cell(f"{loss.pruned_p:.4f}"),
        )
        for loss in analysis.worst
    )
    header = (
        "Task", "Document", "Context", "Right answer", "Pruned model's answer",
        "Original p", "Pruned p",
    )  # fmt: skip
    caption = "p is the right answer's probability among the choices."
    return Table("Documents That Lost Most", header, rows, words=5, caption=caption)


def _answer(choices: tuple[str, ...], index: int) -> str:
    return _shorten(choices[index].strip()) if 0 <= index < len(choices) else "n/a"


def _shorten(text: str) -> str:
    """The end of a text, where the question is."""
    flat = " ".join(text.split())
    return flat if len(flat) <= _TEXT_LIMIT else "\u2026" + flat[-_TEXT_LIMIT:]
