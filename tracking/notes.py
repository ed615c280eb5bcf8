"""The notes that MLflow shows on a run's and an experiment's page."""

from __future__ import annotations

from collections.abc import Mapping

from prunescope.plain import plain_line
from prunescope.tracking.links import experiment_path, redact

__all__ = [
    "MAX_NOTE",
    "compose_note",
    "cut_note",
    "experiment_note",
    "is_ours",
    "merge_note",
    "plain_line",
]

MAX_NOTE = 8000
"""Longest note, characters: it is stored as a tag."""

_OUR_LINKS = ("[baseline](", "[The original's run](")
"""How the line of links begins, in a run's short note and in that with a comparison."""
_RULE = "---"
_LEAST = 1000
"""Where somebody's own note leaves fewer characters than this, it stands alone."""
_MARK = "Evaluations by prunescope"


def compose_note(text: str, links: Mapping[str, str], *, first_line: str) -> str:
    """A run's note: a plain first line, then the links, then the rest in Markdown.

    Args:
        text: the note as the caller has it; its first line is the note's first line.
        links: what a link says -> its address.
        first_line: what to begin with where ``text`` is empty.
    """
    head, _, rest = (text.strip() or plain_line(first_line)).partition("\n")
    line = " · ".join(f"[{title}]({address})" for title, address in links.items())
    parts = [plain_line(head), line, rest.strip("\n")]
    return cut_note("\n\n".join(part for part in parts if part.strip()))


def cut_note(note: str) -> str:
    """A note that MLflow stores: without credentials, cut at the end of a line if too long."""
    return _cut_to(redact(note), MAX_NOTE)


def _cut_to(note: str, longest: int) -> str:
    if len(note) <= longest:
        return note
    whole_lines = note[: longest - 2].rpartition("\n")[0] or note[: longest - 2]
    return f"{whole_lines}\n…"


def merge_note(current: str, wanted: str, run_name: str) -> str:
    """The note that a run gets when it is written anew: what people added to the old one stays.

    The old note is ours where it is the short one that every run gets, or holds links that only
    we write; below a line ``---`` it is somebody's own, as is any other note. What somebody added
    below a note that is still right changes nothing.

    Args:
        current: the note as it is; empty where there is none.
        wanted: what we have to say, already cut.
        run_name: how the short note begins, the line of figures of a run without a comparison.
    """
    if current.startswith(wanted):
        return current
    head, _, own = current.partition(f"\n{_RULE}\n")
    lines = [line for line in head.split("\n") if line.strip()]
    linked = any(line.startswith(_OUR_LINKS) for line in lines)
    name = plain_line(run_name)
    short = len(lines) == 1 and (lines[0] == name or lines[0].startswith(f"{name} · "))
    if not (linked or short or not lines):
        own = current
    if not own.strip():
        return wanted
    tail = f"\n\n{_RULE}\n{own}"
    room = MAX_NOTE - len(tail)
    return current if room < _LEAST else _cut_to(wanted, room) + tail


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
