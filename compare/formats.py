"""Comparisons as CSV and as LaTeX tables."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable

from prunescope.compare.analysis_tables import significance_table
from prunescope.compare.delta import Comparison, Row
from prunescope.compare.layout import Table, spreadsheet_safe
from prunescope.compare.tables import comparison_tables
from prunescope.compare.vocabulary import divergence_figures
from prunescope.plain import printable

__all__ = ["csv_report", "escape_latex", "latex_report", "latex_table"]

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\u0394": r"$\Delta$",
    "\u2212": "$-$",
    "\u00b1": r"$\pm$",
    "\u00d7": r"$\times$",
    "\u2026": r"\ldots{}",
    "\u2265": r"$\geq$",
}


_LATEX_CHARACTERS = 75
"""About so many fit the text width at 10 pt."""
_BEYOND_LATIN = re.compile(
    "[^\x00-\u017f\u2013\u2014\u2018\u2019\u201c\u201d\u2022]"
    "|[\u00ab\u00bb\u00d0\u00de\u00f0\u00fe\u0104\u0105\u0110\u0111\u0118\u0119\u0126\u0127\u012e"
    "\u012f\u0138\u013f\u0140\u0149\u014a\u014b\u0166\u0167\u0172\u0173\u017f]"
)
"""What pdflatex has no letter for, with the encodings that it loads by itself."""
_UNICODE_HINT = (
    "% has letters that pdflatex lacks: compile with lualatex or xelatex, and a font with them"
)


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it is, without ligatures; newlines become spaces."""
    escaped = "".join(_LATEX.get(character, character) for character in _flat(text))
    escaped = re.sub(r"(?<![\d.\w-])-(?=\d)", "$-$", escaped)
    return re.sub(r"(?<=[-'`,])(?=[-'`,])|(?<=[?!])(?=`)", "{}", escaped)


def _flat(text: str) -> str:
    """Text in one line, without control characters."""
    return re.sub(r"\s+", " ", printable(re.sub(r"[\x00-\x1f\x7f-\x9f\s]+", " ", text)))


def latex_report(comparison: Comparison) -> str:
    """Tables for a paper (package booktabs): summary and tasks; significance and divergences
    where there are any."""
    tables = comparison_tables(comparison)
    names = (comparison.original.model.name, comparison.pruned.model.name)
    original, pruned = (escape_latex(name) for name in names)
    significance = significance_table(comparison.analysis)
    parts = [
        f"% {_flat(names[1])} against {_flat(names[0])}; needs \\usepackage{{booktabs}}",
        latex_table(tables.summary, f"{pruned} against {original}.", "summary"),
        latex_table(tables.tasks, f"Zero-shot accuracy of {original} and {pruned}.", "tasks"),
    ]
    if significance is not None:
        caption = escape_latex(significance.caption)
        parts.append(latex_table(significance, caption, "significance"))
    for table in tables.divergences:
        label = re.sub(r"[^a-z]+", "-", table.title.lower())
        parts.append(latex_table(table, escape_latex(table.caption), label))
    parts.extend(f"% [{n}] {_flat(reason)}" for n, reason in enumerate(tables.footnotes, 1))
    parts.extend(f"% {_flat(note)}" for note in tables.notes)
    return "\n".join(parts) + "\n"


def latex_table(table: Table, caption: str, label: str) -> str:
    """One table in booktabs style; the caption is LaTeX already.

    Where a name has letters that pdflatex has no font for, a comment says so.
    """
    columns = "l" * table.words + "r" * (len(table.header) - table.words)
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{caption}}}",
        rf"\label{{tab:prunescope-{label}}}",
        *_latex_size(table),
        rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
        r"\toprule",
        _latex_row(table.header),
        r"\midrule",
    ]
    for number, row in enumerate(table.rows):
        if number in table.strong and number:
            lines.append(r"\midrule")
        lines.append(_latex_row(tuple(cell.text for cell in row)))
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    text = "\n".join(lines)
    return text if _BEYOND_LATIN.search(text) is None else f"{_UNICODE_HINT}\n{text}"


def _latex_size(table: Table) -> list[str]:
    """A smaller type for what is wider than a column of text of the class ``article``."""
    columns = zip(
        table.header, *(tuple(cell.text for cell in row) for row in table.rows), strict=True
    )
    characters = sum(max(map(len, column)) for column in columns)
    if characters + 2 * len(table.header) <= _LATEX_CHARACTERS:
        return []
    return [r"\scriptsize", r"\setlength{\tabcolsep}{1pt}"]


def _latex_row(texts: tuple[str, ...]) -> str:
    # A row that begins with [ would be read as the optional argument of the \\ before it.
    cells = [escape_latex(text) for text in texts]
    first = "{}" + cells[0] if cells[0].startswith("[") else cells[0]
    return " & ".join([first, *cells[1:]]) + r" \\"


def csv_report(comparison: Comparison) -> str:
    """Every row with full precision (RFC 4180); empty cells where there is no value.

    Cells that a spreadsheet would take for a formula get an apostrophe in front.
    """
    sections = (
        ("sparsity", comparison.sparsity),
        ("perplexity", comparison.perplexity),
        ("task", comparison.tasks),
        ("average", (comparison.average,)),
        ("group", comparison.groups),
        ("further", comparison.further),
    )
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(_HEADER)
    judged, diverged = _judged(comparison), _diverged(comparison)
    for section, rows in sections:
        for row in rows:
            task = row.label if section == "task" else ""
            more = (*judged.get(task, _UNJUDGED), *diverged.get(task, _UNKNOWN))
            reason = spreadsheet_safe(row.reason or "")
            texts = (section, spreadsheet_safe(row.label), spreadsheet_safe(row.key))
            writer.writerow([*texts, *_figures(row), *more, reason])
    for label, key, figures in divergence_figures(comparison):
        texts = ("divergence", spreadsheet_safe(label), spreadsheet_safe(key))
        writer.writerow([*texts, *_cells(figures), *_UNJUDGED, *_UNKNOWN, ""])
    return out.getvalue()


_HEADER = (
    "section", "label", "key", "original", "pruned", "difference", "relative", "original_stderr",
    "pruned_stderr", "low", "high", "p", "p_holm", "lost", "gained", "verdict", "choice_kl",
    "choice_kl_stderr", "choice_tv", "choice_tv_stderr", "reason",
)  # fmt: skip
_UNJUDGED = [""] * 7
_UNKNOWN = [""] * 4


def _cells(values: Iterable[float | None]) -> list[str]:
    return ["" if value is None else repr(value) for value in values]


def _figures(row: Row) -> list[str]:
    values = (
        row.original,
        row.pruned,
        row.difference,
        row.relative,
        row.original_stderr,
        row.pruned_stderr,
    )
    return _cells(values)


def _diverged(comparison: Comparison) -> dict[str, list[str]]:
    """Task -> divergence over the answer choices: KL (nats) and total variation, with errors."""
    return {
        d.task: _cells((d.kl, d.kl_stderr, d.total_variation, d.total_variation_stderr))
        for d in (comparison.analysis.divergences if comparison.analysis is not None else ())
    }


def _judged(comparison: Comparison) -> dict[str, list[str]]:
    """Task -> interval, p values, flips and verdict."""
    suite = comparison.analysis.suite if comparison.analysis is not None else None
    return {
        task.task: [
            repr(task.estimate.low),
            repr(task.estimate.high),
            repr(task.p_value),
            repr(task.p_holm),
            "" if task.flips is None else str(task.flips.lost),
            "" if task.flips is None else str(task.flips.gained),
            task.verdict,
        ]
        for task in (suite.tasks if suite is not None else ())
    }
