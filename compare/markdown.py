"""Comparisons and single runs as Markdown (GitHub's tables), every text escaped."""

from __future__ import annotations

import re

from prunescope.compare.delta import Comparison, delta_metrics
from prunescope.compare.layout import Table
from prunescope.compare.run_tables import run_tables
from prunescope.compare.tables import comparison_tables
from prunescope.metrics import format_percent, format_ratio
from prunescope.plain import begins_block, plain_line, printable
from prunescope.records import EvalRecord, RunRef

__all__ = [
    "escape_markdown",
    "headline",
    "is_comparison_report",
    "markdown_report",
    "markdown_table",
    "run_note",
    "run_report_markdown",
]

NOTE_LIMIT = 7500
"""Characters of a run's note; MLflow tags are cut at 8,000."""

_TITLE = "# Model comparison: "
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, in a table's cell too.

    Newlines become spaces; an underscore inside a word (``arc_easy``) needs no escape and
    stays readable.
    """
    text = re.sub(r"\s*\n+\s*", " ", printable(text))
    text = re.sub(r"[&<>]", lambda match: _ENTITIES[match.group()], text)
    text = re.sub(r"[\\`*\[\]|~$]", r"\\\g<0>", text)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\_", text)


def _remark(text: str) -> str:
    """Escaped text that begins no heading, list or rule where it stands first in its line."""
    escaped = escape_markdown(text.strip())
    if not begins_block(escaped):
        return escaped
    return re.sub(r"^\d*", r"\g<0>\\", escaped)


def markdown_table(table: Table) -> str:
    """A table with its figures aligned right; AVERAGE and its like in bold."""
    columns = len(table.header)
    align = ["---"] * table.words + ["---:"] * (columns - table.words)
    lines = ["| " + " | ".join(escape_markdown(text) for text in table.header) + " |"]
    lines.append("| " + " | ".join(align) + " |")
    for number, row in enumerate(table.rows):
        cells = [escape_markdown(cell.text) for cell in row]
        if number in table.strong:
            cells = [f"**{cell}**" if cell else cell for cell in cells]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def markdown_report(comparison: Comparison) -> str:
    """The whole comparison: Models, Summary, Task Results, then everything else there is."""
    tables = comparison_tables(comparison)
    names = (comparison.original.model.name, comparison.pruned.model.name)
    original, pruned = (escape_markdown(name) for name in names)
    parts = [
        f"{_TITLE}{pruned} against {original}",
        f"{comparison.created_at.strftime('%Y-%m-%d %H:%M:%S %Z').strip()}. "
        f"{escape_markdown(headline(comparison))}.",
        _section(tables.models),
        _section(tables.summary),
        _section(tables.tasks),
        *([_section(tables.significance)] if tables.significance is not None else []),
        *(_section(t) for t in (tables.groups, tables.further, tables.protocol) if t.rows),
        *(_section(table) for table in tables.details),
    ]
    remarks = [
        f"- \\[{n}\\] {escape_markdown(reason)}" for n, reason in enumerate(tables.footnotes, 1)
    ] + [f"- {_remark(note)}" for note in tables.notes]
    if remarks:
        parts.append("## Notes\n\n" + "\n".join(remarks))
    parts.append(_READING)
    return "\n\n".join(parts) + "\n"


def is_comparison_report(text: str) -> bool:
    """Whether a report is :func:`markdown_report`'s, and not a single run's."""
    return text.startswith(_TITLE)


def run_report_markdown(record: EvalRecord, run: RunRef | None = None) -> str:
    """A single run: the model, its figures, its tasks, how it was evaluated."""
    tables = run_tables(record, run)
    parts = [f"# Evaluation of {escape_markdown(record.model.name)}"]
    parts.extend(_section(table) for table in tables.sections)
    if tables.notes:
        notes = "\n".join(f"- {_remark(note)}" for note in tables.notes)
        parts.append("## Notes\n\n" + notes)
    return "\n\n".join(parts) + "\n"


def headline(comparison: Comparison) -> str:
    """The comparison in a line: change of the mean accuracy, perplexity ratio, sparsity."""
    parts = []
    points = comparison.average.difference
    if points is not None:
        parts.append(f"{100 * points:+.1f} points mean accuracy".replace("-", "\u2212"))
    ratio = delta_metrics(comparison).get("delta/ppl_ratio")
    if ratio is not None:
        parts.append(f"perplexity {format_ratio(ratio, 2)}")
    if comparison.pruned.sparsity is not None:
        share = format_percent(comparison.pruned.sparsity.linear.fraction, 1)
        parts.append(f"{share.removesuffix('%')} % sparse")
    if comparison.pruned.broken:
        parts.append("BROKEN (NaN or infinity)")
    if not parts:
        parts.append("nothing comparable")
    name = re.sub(r"\s+", " ", comparison.original.model.name)
    return ", ".join([*parts, f"against {name}"])


def run_note(
    comparison: Comparison, baseline_url: str | None = None, compare_url: str | None = None
) -> str:
    """The note of the pruned run (``mlflow.note.content``).

    The first line is plain text, as MLflow's table of runs shows it raw; links and the delta
    table in Markdown follow. No HTML. At most :data:`NOTE_LIMIT` characters.
    """
    tables = comparison_tables(comparison)
    first = plain_line(headline(comparison))
    links = [
        f"[{text}]({_url(url)})"
        for text, url in (("The original's run", baseline_url), ("Both runs compared", compare_url))
        if url
    ]
    head = [first, *([" · ".join(links)] if links else [])]
    footnotes = tables.footnotes[: tables.first_footnotes]
    tail = [f"\\[{n}\\] {escape_markdown(reason)}" for n, reason in enumerate(footnotes, 1)]
    tail += [_remark(note) for note in tables.notes]
    summary, tasks = markdown_table(tables.summary), markdown_table(tables.tasks)
    # MLflow draws tables without space between them.
    above = [summary, f"**{escape_markdown(tables.tasks.title)}**"] if tables.summary.rows else []
    blocks = [*head, *above, tasks, *tail]
    note = "\n\n".join(blocks)
    return note if len(note) <= NOTE_LIMIT else _cut(blocks)


def _cut(blocks: list[str]) -> str:
    """Whole lines up to the limit, so that no table row is torn."""
    room, lines = NOTE_LIMIT - 40, []
    for line in "\n\n".join(blocks).split("\n"):
        room -= len(line) + 1
        if room < 0:
            break
        lines.append(line)
    return "\n".join([*lines, "", "(cut; the run's report has the rest)"])


def _url(url: str) -> str:
    return url.replace(" ", "%20").replace("(", "%28").replace(")", "%29").replace("<", "%3C")


def _section(table: Table) -> str:
    body = markdown_table(table) if table.rows else "Nothing was evaluated."
    caption = f"\n\n{escape_markdown(table.caption)}" if table.caption else ""
    return f"## {escape_markdown(table.title)}\n\n{body}{caption}"


_READING = """## How to read this

- Difference is pruned \u2212 original; relative is the difference divided by the original.
- A perplexity is better when it is lower, an accuracy when it is higher.
- AVERAGE is the plain mean of the tasks' primary metric over the comparable tasks."""
