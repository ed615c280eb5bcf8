"""Text of strangers, made safe to show: names come from records and servers of anybody's."""

from __future__ import annotations

import re

__all__ = ["begins_block", "picture_label", "plain_line", "printable", "visible_json"]

_BREAKS = re.compile("[\r\x0b\x0c\x1c-\x1f\x85\u2028\u2029]+")
"""What ends a line, somewhere, besides a line feed."""
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
    "\ufffe\uffff]"
)
"""Controls of terminals and of the direction of writing, halves of characters, no characters."""
_MARKUP = str.maketrans("<>[]`*|~\\", "()()'\u00b7/\u223c/")
_OUTER_UNDERSCORE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
_BLOCK = re.compile(r"(?:[+*-]|#{1,6}|\d{1,9}[.)])(?:\s|$)|=+\s*$|(?:-\s*)+$|(?:_\s*){3,}$")


def printable(text: str) -> str:
    """Text without what a terminal, a browser or LaTeX would obey instead of showing it.

    That is: control characters but tab and line feed, marks that turn the direction of writing,
    and halves of characters (of a file name that is not UTF-8), which no encoding takes. What
    breaks lines becomes a space.
    """
    return _UNSEEN.sub("", _BREAKS.sub(" ", text))


def visible_json(text: str) -> str:
    """JSON text that means the same, where what is not printable stands as ``\\uXXXX``."""
    return _UNSEEN.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def begins_block(line: str) -> bool:
    """Whether Markdown takes a line for a heading, an item of a list, or a rule."""
    return _BLOCK.match(line) is not None


def picture_label(text: str, longest: int = 40) -> str:
    """A label for matplotlib, which takes ``$`` for mathematics and leaves out ``_names``."""
    line = " ".join(printable(text).split())
    shown = line if len(line) <= longest else line[: longest - 1] + "\u2026"
    return shown.replace("$", r"\$").replace("_", " _", 1 if shown.startswith("_") else 0)


def plain_line(text: str) -> str:
    """One line that means the same as plain text, Markdown and HTML.

    MLflow's table of runs shows a note's first line raw, the run's page renders it: what would be
    markup there is replaced.
    """
    line = " ".join(printable(text).split()).translate(_MARKUP)
    line = _OUTER_UNDERSCORE.sub("-", line)
    return f"\u2060{line}" if begins_block(line) else line  # a word joiner, which nobody sees
