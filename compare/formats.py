"""Comparisons as CSV and as LaTeX tables."""

from __future__ import annotations

import csv
import io
import re

from prunescope.compare.analysis_tables import significance_table
from prunescope.compare.delta import Comparison, Row
from prunescope.compare.layout import Table, spreadsheet_safe
from prunescope.compare.tables import comparison_tables

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
}


def escape_latex(text: str) -> str:
    """Text that LaTeX prints as it is; newlines become spaces."""
    flat = re.sub(r"[\s\x00-\x1f\x7f]+", " ", text)
    escaped = "".join(_LATEX.get(character, character) for character in flat)
    return re.sub(r"(?<![\d.\w])-(?=\d)", "$-$", escaped)


def latex_report(comparison: Comparison) -> str:
    """Tables for a paper (package booktabs): summary, tasks, and significance where judged."""
    tables = comparison_tables(comparison)
    names = (comparison.original.model.name, comparison.pruned.model.name)
    original, pruned = (escape_latex(name) for name in names)
    significance = significance_table(comparison.analysis)
    parts = [
        f"% {_comment(names[1])} against {_comment(names[0])}; needs \\usepackage{{booktabs}}",
        latex_table(tables.summary, f"{pruned} against {original}.", "summary"),
        latex_table(tables.tasks, f"Zero-shot accuracy of {original} and {pruned}.", "tasks"),
    ]
    if significance is not None:
        caption = escape_latex(significance.caption)
        parts.append(latex_table(significance, caption, "significance"))
    parts.extend(f"% [{n}] {_comment(reason)}" for n, reason in enumerate(tables.footnotes, 1))
    parts.extend(f"% {_comment(note)}" for note in tables.notes)
    return "\n".join(parts) + "\n"


def latex_table(table: Table, caption: str, label: str) -> str:
    """One table in booktabs style; the caption is LaTeX already."""
    columns = "l" * table.words + "r" * (len(table.header) - table.words)
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{caption}}}",
        rf"\label{{tab:prunescope-{label}}}",
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
    return "\n".join(lines)


def _latex_row(texts: tuple[str, ...]) -> str:
    # A row that begins with [ would be read as the optional argument of the \\ before it.
    cells = [escape_latex(text) for text in texts]
    first = "{}" + cells[0] if cells[0].startswith("[") else cells[0]
    return " & ".join([first, *cells[1:]]) + r" \\"


def _comment(text: str) -> str:
    return re.sub(r"[\s\x00-\x1f\x7f]+", " ", text)


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
    judged = _judged(comparison)
    for section, rows in sections:
        for row in rows:
            writer.writerow(
                [
                    section,
                    spreadsheet_safe(row.label),
                    spreadsheet_safe(row.key),
                    *_figures(row),
                    *(judged.get(row.label, _NOTHING) if section == "task" else _NOTHING),
                    spreadsheet_safe(row.reason or ""),
                ]
            )
    return out.getvalue()


_HEADER = (
    "section", "label", "key", "original", "pruned", "difference", "relative", "original_stderr",
    "pruned_stderr", "low", "high", "p", "p_holm", "lost", "gained", "verdict", "reason",
)  # fmt: skip
_NOTHING = [""] * 7


def _figures(row: Row) -> list[str]:
    values = (
        row.original,
        row.pruned,
        row.difference,
        row.relative,
        row.original_stderr,
        row.pruned_stderr,
    )
    return ["" if value is None else repr(value) for value in values]


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
