"""Arrange requests so that tokens they begin with in common go through the model once.

The inputs of all requests, sorted, are a prefix tree written out: an input shares with its
predecessor as many tokens as the two have in common (``shared``), and only the rest is new.
:func:`plan` cuts the sorted inputs into units, neighbours that share much, and packs the units
into rows. A row is a tree: its tokens are laid out one after the other, and each may look only
at its ancestors (see :func:`lay_out`). Where many rows begin with the same long prefix, the
prefix is computed once for all of them (:class:`Group`).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

__all__ = [
    "Cluster",
    "Group",
    "Inputs",
    "Layout",
    "Reading",
    "Request",
    "Row",
    "common_length",
    "find_clusters",
    "lay_out",
    "plan",
]

Tokens = tuple[int, ...]

SHARE_FROM = 64
"""A prefix of fewer tokens is not worth a pass of its own: rows repeat it instead."""


UNITS_A_ROW = 4
"""How finely rows of neighbours are cut: a unit has at most this part of a row."""


@dataclass(frozen=True, slots=True)
class Request:
    """One loglikelihood to compute."""

    index: int
    """Its place among all requests."""
    input: Tokens
    """What the model reads."""
    targets: Tokens
    """What is predicted by the last ``len(targets)`` tokens of the input, one each."""

    @classmethod
    def encoded(
        cls, index: int, context: Sequence[int], continuation: Sequence[int], max_length: int
    ) -> Request:
        """The request as lm-eval reads it: too long ones lose tokens on the left."""
        whole = (*context, *continuation)[-(max_length + 1) :]
        return cls(index, whole[:-1], tuple(continuation))

    @property
    def start(self) -> int:
        """Position that predicts the first target."""
        return len(self.input) - len(self.targets)


class Inputs:
    """The distinct inputs of some requests in sorted order.

    Attributes:
        tokens: the inputs.
        requests: for each input the requests that read it.
        shared: for each input how many tokens it has in common with the one before.
        start: for each input the first position that predicts a target.
    """

    def __init__(self, requests: Iterable[Request]) -> None:
        readers: dict[Tokens, list[Request]] = {}
        for request in requests:
            readers.setdefault(request.input, []).append(request)
        self.tokens = sorted(readers)
        self.requests = [readers[tokens] for tokens in self.tokens]
        self.start = [min(request.start for request in group) for group in self.requests]
        self.shared = [0] * len(self.tokens)
        for i in range(1, len(self.tokens)):
            self.shared[i] = common_length(self.tokens[i - 1], self.tokens[i])

    def __len__(self) -> int:
        return len(self.tokens)

    def size(self, first: int, last: int, offset: int) -> int:
        """Tokens of the tree over inputs ``first`` to ``last`` (exclusive), beyond ``offset``."""
        rest = sum(
            len(self.tokens[i]) - max(self.shared[i], offset) for i in range(first + 1, last)
        )
        return len(self.tokens[first]) - offset + rest


def common_length(left: Tokens, right: Tokens) -> int:
    """Number of tokens that both begin with."""
    limit = min(len(left), len(right))
    if left[:limit] == right[:limit]:
        return limit
    return next(i for i in range(limit) if left[i] != right[i])


@dataclass(frozen=True, slots=True)
class Row:
    """Inputs that go through the model as one sequence."""

    members: tuple[int, ...]
    """Indices into :class:`Inputs`, ascending."""
    size: int
    """Tokens in the row, without the group's prefix."""


@dataclass(frozen=True)
class Group:
    """Rows behind one prefix, which is computed once."""

    prefix: Tokens
    rows: tuple[Row, ...]
    """Longest first."""


@dataclass(frozen=True, slots=True)
class _Unit:
    """Neighbouring inputs that stay together."""

    first: int
    last: int
    size: int


def plan(inputs: Inputs, width: int, *, sequential: bool = False) -> list[Group]:
    """Groups of rows of about ``width`` tokens; longer only where an input itself is longer.

    A unit that does not fit a row is split where its members share least, so that little is
    computed twice; if all of it shares a long prefix and the rest fills more than a row, it
    becomes a group of its own.

    Args:
        inputs: what is to be scored.
        width: tokens in a row.
        sequential: fill each row with neighbours, which share most. Otherwise rows are filled to
            the brim, so that little is lost when several are padded to one length.
    """
    unit = width // UNITS_A_ROW if sequential else width
    pack = _fill if sequential else _pack
    loose: list[_Unit] = []
    groups: list[Group] = []
    stack = [(0, len(inputs))] if len(inputs) else []
    while stack:
        first, last = stack.pop()
        size = inputs.size(first, last, 0)
        if size <= unit or last - first == 1:
            loose.append(_Unit(first, last, size))
            continue
        shared = min(inputs.shared[first + 1 : last])
        # What a prefix predicts is not read, so it must end before the first target.
        prefix = min(shared, *inputs.start[first:last])
        if prefix >= SHARE_FROM and size - prefix > width:
            units = _units(inputs, first, last, prefix, unit)
            groups.append(Group(inputs.tokens[first][:prefix], pack(inputs, units, prefix, width)))
        elif prefix >= SHARE_FROM:
            loose.append(_Unit(first, last, size))
        else:
            stack.extend(_split(inputs, first, last, shared))
    if loose:
        groups.append(Group((), pack(inputs, loose, 0, width)))
    return groups


def _units(inputs: Inputs, first: int, last: int, offset: int, limit: int) -> list[_Unit]:
    units: list[_Unit] = []
    stack = [(first, last)]
    while stack:
        first, last = stack.pop()
        size = inputs.size(first, last, offset)
        if size <= limit or last - first == 1:
            units.append(_Unit(first, last, size))
        else:
            shared = min(inputs.shared[first + 1 : last])
            stack.extend(_split(inputs, first, last, shared))
    return units


def _split(inputs: Inputs, first: int, last: int, shared: int) -> Iterator[tuple[int, int]]:
    start = first
    for i in range(first + 1, last):
        if inputs.shared[i] == shared:
            yield start, i
            start = i
    yield start, last


def _pack(inputs: Inputs, units: list[_Unit], offset: int, width: int) -> tuple[Row, ...]:
    """Rows by best fit, largest unit first; what all units begin with is counted once a row."""
    first = min(unit.first for unit in units)
    last = max(unit.last for unit in units)
    common = min([len(inputs.tokens[first]), *inputs.shared[first + 1 : last]])
    overhead = max(common - offset, 0)
    open_rows: list[tuple[int, int]] = []  # (room, row), sorted
    rows: list[list[_Unit]] = []
    for unit in sorted(units, key=lambda unit: (-unit.size, unit.first)):
        needed = unit.size - overhead
        place = bisect_left(open_rows, (needed, -1))
        if place < len(open_rows):
            room, row = open_rows.pop(place)
            rows[row].append(unit)
        else:
            room, row = max(width - overhead, needed), len(rows)
            rows.append([unit])
        if room > needed:
            insort(open_rows, (room - needed, row))
    packed = [_row(inputs, row, offset) for row in rows]
    return tuple(sorted(packed, key=lambda row: (-row.size, row.members)))


def _fill(inputs: Inputs, units: list[_Unit], offset: int, width: int) -> tuple[Row, ...]:
    """Rows of neighbouring units."""
    rows: list[list[_Unit]] = []
    size = 0
    for unit in sorted(units, key=lambda unit: unit.first):
        shared = max(inputs.shared[unit.first] - offset, 0)
        neighbour = bool(rows) and rows[-1][-1].last == unit.first
        added = unit.size - shared if neighbour else unit.size
        if rows and size + added <= width:
            rows[-1].append(unit)
            size += added
        else:
            rows.append([unit])
            size = unit.size
    packed = [_row(inputs, row, offset) for row in rows]
    return tuple(sorted(packed, key=lambda row: (-row.size, row.members)))


def _row(inputs: Inputs, units: list[_Unit], offset: int) -> Row:
    members = tuple(sorted(i for unit in units for i in range(unit.first, unit.last)))
    size = len(inputs.tokens[members[0]]) - offset
    for before, member in pairwise(members):
        shared = (
            inputs.shared[member]
            if before + 1 == member
            else common_length(inputs.tokens[before], inputs.tokens[member])
        )
        size += len(inputs.tokens[member]) - max(shared, offset)
    return Row(members, size)


@dataclass(frozen=True, slots=True)
class Reading:
    """One target token of one request."""

    node: int
    """The place in the row that predicts it."""
    target: int
    request: int


@dataclass
class Layout:
    """A row written out, its places counted without the group's prefix."""

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    """Position of each token in its own sequence, the prefix included."""
    branches: list[tuple[int, int, list[int]]] = field(default_factory=list)
    """(from, to, ancestors): tokens that follow one another, and the places before them that
    they may look at besides the prefix and one another."""
    readings: list[Reading] = field(default_factory=list)
    """Sorted by place."""


def lay_out(inputs: Inputs, row: Row, offset: int) -> Layout:
    """Write out a row behind a prefix of ``offset`` tokens."""
    layout = Layout()
    path: list[int] = []  # places of the present input's tokens, from offset on
    before: Tokens | None = None
    for member in row.members:
        tokens = inputs.tokens[member]
        shared = offset if before is None else max(common_length(before, tokens), offset)
        del path[shared - offset :]
        start = len(layout.tokens)
        layout.branches.append((start, start + len(tokens) - shared, path.copy()))
        path.extend(range(start, start + len(tokens) - shared))
        layout.tokens.extend(tokens[shared:])
        layout.depths.extend(range(shared, len(tokens)))
        for request in inputs.requests[member]:
            places = path[request.start - offset :]
            layout.readings.extend(
                Reading(place, target, request.index)
                for place, target in zip(places, request.targets, strict=True)
            )
        before = tokens
    layout.readings.sort(key=lambda reading: reading.node)
    return layout


@dataclass(frozen=True, slots=True)
class Cluster:
    """Neighbouring inputs that branch off one prefix."""

    prefix: int
    """Its length; it ends before any target is predicted."""
    members: tuple[int, ...]


def find_clusters(inputs: Inputs) -> list[Cluster]:
    """Neighbours joined as long as computing their common prefix once saves tokens."""
    clusters: list[Cluster] = []
    first, prefix = 0, 0
    for i in range(len(inputs) + 1):
        count = i - first
        if i < len(inputs):
            longest = min(len(inputs.tokens[i]) - 1, inputs.start[i])
            joined = min(prefix, inputs.shared[i], longest)
            # Every member so far repeats what the prefix loses; the new one saves what is left.
            if count and (count - 1) * (prefix - joined) < joined:
                prefix = joined
                continue
        if count:
            clusters.append(Cluster(prefix if count > 1 else 0, tuple(range(first, i))))
        if i < len(inputs):
            first, prefix = i, longest
    return clusters
