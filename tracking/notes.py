"""The notes that MLflow shows on a run's and an experiment's page."""

from __future__ import annotations

from collections.abc import Mapping

from prunescope.tracking.links import experiment_path, redact

__all__ = ["MAX_NOTE", "compose_note", "cut_note", "experiment_note", "is_ours", "plain_line"]

MAX_NOTE = 8000
"""Longest note, characters: it is stored as a tag."""

_MARK = "Evaluations by prunescope"


def plain_line(text: str) -> str:
    """One line that means the same as plain text, Markdown and HTML.

    The run table shows a note's first line raw, the run's page renders it: what would be markup
    there is replaced.
    """
    line = " ".join(text.split())
    return line.translate(str.maketrans("<>[]`*|", "()()'·/"))


def compose_note(text: str, links: Mapping[str, str], *, first_line: str) -> str:
    """A run's note: a plain first line, then the links, then the rest in Markdown.

    Args:
        text: the note as the caller has it; its first line is the note's first line.
        links: what a link says -> its address.
        first_line: what to begin with where ``text`` is empty.
    """
    head, _, rest = (text.strip() or first_line).partition("\n")
    line = " · ".join(f"[{title}]({address})" for title, address in links.items())
    parts = [plain_line(head), line, rest.strip("\n")]
    return cut_note("\n\n".join(part for part in parts if part.strip()))


def cut_note(note: str) -> str:
    """A note that MLflow stores: without credentials, cut at the end of a line if too long."""
    note = redact(note)
    if len(note) <= MAX_NOTE:
        return note
    whole_lines = note[: MAX_NOTE - 2].rpartition("\n")[0] or note[: MAX_NOTE - 2]
    return f"{whole_lines}\n…"


def experiment_note(experiment_id: str, view: str) -> str:
    """An experiment's note: its first line leads to the preset table and charts."""
    table = experiment_path(experiment_id, view=view)
    charts = experiment_path(experiment_id, view=view, charts=True)
    return (
        f"{_MARK}: [table of runs]({table}) · [charts]({charts})\n\n"
        "One run is one evaluation. `record.json` among a run's artifacts holds everything; "
        "params, metrics and tags are an index over it."
    )


def is_ours(note: str | None) -> bool:
    """Whether an experiment's note may be replaced: there is none, or prunescope wrote it."""
    return not note or note.startswith(_MARK)
