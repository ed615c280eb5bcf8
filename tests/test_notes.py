"""A run's note: what is ours is written anew, what somebody else wrote stays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunescope.tracking.notes import MAX_NOTE, merge_note

NAME = "tiny · 50% wanda"
OURS = (
    "-3.0 points\n\n[The original's run](#/a) · [Both runs compared](#/b)\n\n| a |\n| --- |\n| 1 |"
)
THEIRS = "Seed 3.\n\nDo not quote."


def merged(current: str, wanted: str = OURS) -> str:
    return merge_note(current, wanted, NAME)


@pytest.mark.parametrize(
    "current",
    [
        "",
        "\n",
        f"{NAME} · sparsity 50.00% · perplexity 12.30",
        f"{NAME} · as an older version wrote it",
        NAME,
        f"{NAME} · sparsity 50%\n\n[baseline](#/a) · [side by side](#/b)",
        OURS.replace("-3.0", "-9.9"),
        OURS,
    ],
)
def test_our_own_notes_are_replaced(current: str) -> None:
    assert merged(current) == OURS


@pytest.mark.parametrize("current", [THEIRS, f"About {NAME}", f"{NAME} · x\n\nmine", "a\n---\nb"])
def test_somebody_elses_note_follows_ours(current: str) -> None:
    assert merged(current) == f"{OURS}\n\n---\n{current}"


def test_what_was_added_below_the_line_stays_when_ours_changes() -> None:
    current = f"{OURS.replace('-3.0', '-9.9')}\n\n---\n{THEIRS}"
    assert merged(current) == f"{OURS}\n\n---\n{THEIRS}"


def test_what_was_added_to_a_note_that_is_right_stays_where_it_is() -> None:
    assert merged(f"{OURS}\n\nmine") == f"{OURS}\n\nmine"


def test_a_long_note_of_somebodys_is_never_cut() -> None:
    for length in (MAX_NOTE - 500, MAX_NOTE - 1500, MAX_NOTE - len(OURS)):
        theirs = "x" * length
        found = merge_note(theirs, OURS + "\nrow" * 500, NAME)
        assert found.endswith(theirs)
        assert len(found) <= MAX_NOTE


@given(st.text(max_size=300), st.text(max_size=60))
def test_merging_twice_changes_nothing_more_and_loses_nothing(current: str, addition: str) -> None:
    once = merged(f"{current}\n---\n{addition}")
    assert merged(once) == once
    assert addition.strip() in once
