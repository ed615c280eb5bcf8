"""A comparison for the terminal: plain text, or with rich's colours."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, replace

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from prunescope.compare.delta import Comparison
from prunescope.compare.layout import Cell, Table
from prunescope.compare.tables import (
    ReportTables,
    comparison_tables,
    degradation,
    task_table,
)
from prunescope.plain import printable

__all__ = [
    "fitting_table",
    "plain_report",
    "plain_table",
    "plain_text",
    "terminal_report",
    "wide_table",
]

_FIRST_WIDTH = 21
_WIDTH = 16
_NAME_WIDTH = 24
_LEAST_NAME_WIDTH = 8


def plain_table(comparison: Comparison) -> str:
    """The table of the tasks in plain text, with AVERAGE and the footnotes.

    Columns are 21 and 16 characters wide, the first one wider where a task's name needs it.
    """
    table, footnotes = task_table(comparison)
    lines = _aligned((table.header, *_texts(table)))
    notes = [f"[{n}] {reason}" for n, reason in enumerate(footnotes, 1)]
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def plain_report(comparison: Comparison) -> str:
    """Everything that the terminal shows, in plain text without colour or wrapping."""
    tables = comparison_tables(comparison)
    parts = [_aligned((("", "Original", "Pruned"), *_head(comparison, tables)))]
    for table in (tables.tasks, tables.groups):
        if table.rows:
            parts.append(_aligned((table.header, *_texts(table))))
    for table in _judging(tables):
        lines = _aligned((table.header, *_texts(table)), least=(0, 0))
        parts.append([*lines, table.caption])
    if tables.protocol.rows:
        parts.append(_aligned((tables.protocol.header, *_texts(tables.protocol))))
    if remarks := _remarks(tables):
        parts.append(remarks)
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def terminal_report(comparison: Comparison) -> RenderableType:
    """Everything that the terminal shows, for a rich console.

    Green is better, red is worse; what is neither keeps the terminal's colour.
    """
    tables = comparison_tables(comparison)
    parts: list[RenderableType] = [_rich_head(comparison, tables)]
    parts.extend(_rich_table(t) for t in (tables.tasks, tables.groups) if t.rows)
    parts.extend(_Fitting(table) for table in _judging(tables))
    if tables.protocol.rows:
        parts.append(_rich_table(tables.protocol))
    if remarks := _remarks(tables):
        parts.append(Text("\n".join(remarks), style="dim"))
    return Group(*(line for part in parts for line in (part, Text(""))))


def plain_text(table: Table) -> str:
    """One table with its caption in plain text, as wide as it needs to be."""
    lines = _aligned((table.header, *_texts(table)), least=(0, 0))
    return "\n".join([*lines, *([table.caption] if table.caption else [])]) + "\n"


def wide_table(table: Table) -> tuple[RenderableType, int]:
    """One table with its caption for a rich console, and the columns that it needs unbroken.

    Since nothing has to be broken, the lines are laid out here: a thousand rows cost rich's own
    table a second.
    """
    texts = [tuple(_one_line(text) for text in row) for row in (table.header, *_texts(table))]
    widths = [max(map(cell_len, column)) for column in zip(*texts, strict=True)]
    lines: list[RenderableType] = []
    for number, row in enumerate(texts, -1):
        bold = "bold" if number < 0 or number in table.strong else ""
        line = Text(style=bold, no_wrap=True, end="\n")
        for column, text in enumerate(row):
            style = _style(table.rows[number][column].better) if number >= 0 else ""
            space = " " * (widths[column] - cell_len(text))
            line.append(space if column >= table.words else "")
            line.append(text, style)
            if column + 1 < len(row):
                line.append("  " if column >= table.words else space + "  ")
        lines.append(line)
    return Group(*lines, Text(table.caption, style="dim")), sum(widths) + 2 * len(widths)


def fitting_table(table: Table, room: int) -> tuple[RenderableType, int]:
    """One table with its caption for a rich console that is too narrow for it.

    Spare columns are left out, which the caption says; then the names are broken.

    Args:
        table: what to show.
        room: the console's columns.

    Returns:
        The table, and the columns that it needs at least so that no figure is cut.
    """
    titles = tuple(_broken_title(table, column) for column in range(len(table.header)))
    table = replace(table, header=titles)
    left_out: list[str] = []
    while table.spare and _natural_width(table, _NAME_WIDTH) > room:
        left_out.insert(0, _one_line(table.header[table.spare[0]]))
        table = table.without(table.spare[0])
    caption = table.caption
    if left_out:
        caption += f" Left out, as the terminal is narrow: {', '.join(left_out)}."
    least = _natural_width(table, _LEAST_NAME_WIDTH)
    return Group(_rich_table(table), Text(caption, style="dim")), least


# --- what is shown ------------------------------------------------------------------------------


def _head(comparison: Comparison, tables: ReportTables) -> list[tuple[str, ...]]:
    """The models, their sparsity and perplexity, and the perplexity's increase."""
    models = (comparison.original.model, comparison.pruned.model)
    rows: list[tuple[str, ...]] = [("Model", *(_one_line(model.name) for model in models))]
    figures = tables.summary.rows[: len(comparison.sparsity) + len(comparison.perplexity)]
    marks = {row[0].text: row[4].text.rpartition(" ")[2] for row in figures}
    for row in figures:
        rows.append((row[0].text, row[1].text, row[2].text))
    several = len(comparison.perplexity) > 1
    for figure in comparison.perplexity:
        label = f"PPL Degradation ({figure.label})" if several else "PPL Degradation"
        mark = marks[figure.label] if figure.reason else ""
        rows.append((label, "", f"{degradation(figure)} {mark}".strip()))
    return rows


def _judging(tables: ReportTables) -> list[Table]:
    """Tables with a caption: whether the differences are real, and how far the models diverge."""
    first = [] if tables.significance is None else [tables.significance]
    return [*first, *tables.divergences]


def _remarks(tables: ReportTables) -> list[str]:
    """Footnotes of the tables that are shown, and notes."""
    shown = tables.footnotes[: tables.first_footnotes]
    told = [f"[{n}] {reason}" for n, reason in enumerate(shown, 1)]
    return [_one_line(text) for text in (*told, *(f"! {note}" for note in tables.notes))]


# --- plain --------------------------------------------------------------------------------------


def _texts(table: Table) -> list[tuple[str, ...]]:
    return [tuple(cell.text for cell in row) for row in table.rows]


def _aligned(
    rows: tuple[tuple[str, ...], ...], least: tuple[int, int] = (_FIRST_WIDTH, _WIDTH)
) -> list[str]:
    """Columns padded to their width in terminal cells (CJK characters take two).

    ``least`` is the smallest width of the first column and of the others.
    """
    rows = tuple(tuple(_one_line(text) for text in row) for row in rows)
    columns = range(len(rows[0]))
    widths = [
        max(least[1] if column else least[0], *(cell_len(row[column]) + 2 for row in rows))
        for column in columns
    ]
    return [
        "".join(text + " " * (widths[c] - cell_len(text)) for c, text in enumerate(row)).rstrip()
        for row in rows
    ]


def _one_line(text: str) -> str:
    """Text without line breaks and control characters, which would break the table."""
    return printable(re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", text))


# --- rich ---------------------------------------------------------------------------------------


def _rich_head(comparison: Comparison, tables: ReportTables) -> RichTable:
    grid = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("", "Original", "Pruned"):
        grid.add_column(title, overflow="fold")
    better = {row.label: row.better for row in comparison.perplexity}
    for label, *values in _head(comparison, tables):
        style = ""
        if label.startswith("PPL Degradation"):
            only = next(iter(better.values()))
            name = label.removeprefix("PPL Degradation (").removesuffix(")")
            style = _style(better.get(name, only))
        grid.add_row(Text(label), *(Text(value, style=style) for value in values))
    return grid


def _rich_table(table: Table) -> RichTable:
    drawn = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column, title in enumerate(table.header):
        drawn.add_column(
            Text(title),
            justify="left" if column < table.words else "right",
            overflow="fold",
            no_wrap=column >= table.words,
        )
    for number, row in enumerate(table.rows):
        style = "bold" if number in table.strong else ""
        drawn.add_row(*(_rich_cell(cell) for cell in row), style=style)
    return drawn


@dataclass(frozen=True)
class _Fitting:
    """A table with its caption that leaves out its spare columns where the console is narrow."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = self.table
        caption = table.caption
        while table.spare and _natural_width(table) > options.max_width:
            caption = _without_sentence(caption, table.header[table.spare[0]])
            table = table.without(table.spare[0])
        yield _rich_table(table)
        yield Text(caption, style="dim")


def _natural_width(table: Table, names: int | None = None) -> int:
    """Terminal columns that the table needs so that nothing is broken but names above ``names``."""
    needed = 0
    for column, texts in enumerate(zip(*_texts(table), strict=True)):
        lines = (*table.header[column].split("\n"), *map(_one_line, texts))
        width = max(map(cell_len, lines))
        needed += 2 + (width if names is None or column >= table.words else min(width, names))
    return needed


def _broken_title(table: Table, column: int) -> str:
    """A column's title in several lines, no wider than its cells where words allow it."""
    title = table.header[column]
    room = max((cell_len(row[column].text) for row in table.rows), default=0)
    return "\n".join(textwrap.wrap(title, max(room, *map(len, title.split())))) or title


def _without_sentence(text: str, word: str) -> str:
    """Text without the sentence that begins with ``word``."""
    return re.sub(rf"(^|(?<=\. )){re.escape(word)} [^.]*\.( |$)", "", text)


def _rich_cell(cell: Cell) -> Text:
    return Text(cell.text, style=_style(cell.better))


def _style(better: bool | None) -> str:
    return {True: "green", False: "red", None: ""}[better]
