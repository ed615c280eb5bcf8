"""Sparsity and drift as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from prunescope.evaluate.sparsity.aggregate import (
    TIERS,
    Part,
    block_count,
    differing_shapes,
    layer_spread,
    linear_tensors,
    order_kinds,
    parts_by,
    tier_title,
)
from prunescope.evaluate.sparsity.drift import CheckpointDrift, Overlap
from prunescope.evaluate.sparsity.patterns import PATTERNS
from prunescope.metrics import format_percent
from prunescope.records import Alarm, LayerSparsity, SparsityResult, ZeroCount

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table

__all__ = ["alarm_lines", "drift_report", "sparsity_report"]


def sparsity_report(
    result: SparsityResult, *, title: str = "", alarms: Sequence[Alarm] = ()
) -> Group:
    """The whole picture: totals, module kinds, N:M groups, block tiers, decoder blocks.

    Args:
        result: with its tensors.
        title: the model's name.
        alarms: of :func:`prunescope.evaluate.sparsity.find_alarms`.
    """
    from rich.console import Group

    parts: list[RenderableType] = [_totals(result, title)]
    tensors = linear_tensors(result)
    if tensors:
        kinds = parts_by(tensors, lambda tensor: tensor.kind or "other")
        kinds = {kind: kinds[kind] for kind in order_kinds(set(kinds))}
        whole = parts_by(tensors, lambda _: "all")
        parts += ["", _groups_table(kinds | whole), "", _empty_table(kinds | whole)]
        parts += ["", _blocks_table(kinds | whole)]
        parts += ["", _layers_table(result, list(kinds))]
        parts += [*_shape_lines(result)]
    if alarms:
        parts += ["", *alarm_lines(alarms)]
    return Group(*parts)


def alarm_lines(alarms: Sequence[Alarm]) -> list[RenderableType]:
    """One line an alarm."""
    from rich.text import Text

    return [Text(f"ALARM {a.code}: {a.message}", style="bold yellow") for a in alarms]


def drift_report(drift: CheckpointDrift, *, first: str, second: str) -> Group:
    """What became of the zeros of ``first`` in ``second``, by module kind and decoder block."""
    from rich.console import Group
    from rich.text import Text

    answer = {
        True: f"The mask is kept: every zero of {first} is a zero of {second}.",
        False: f"The mask is not kept: {drift.total.returned:,} zeros of {first} are weights "
        f"in {second}.",
        None: "No zero came back in the layers that could be compared, but some could not be.",
    }[drift.mask_kept]
    style = {True: "bold green", False: "bold red", None: "bold yellow"}[drift.mask_kept]
    parts: list[RenderableType] = [Text(answer, style=style)]
    kinds = drift.by_kind()
    if kinds:
        rows = {kind: kinds[kind] for kind in order_kinds(set(kinds))}
        parts += ["", _drift_table("Module", rows | {"all": drift.total})]
        parts += [
            "",
            _drift_table("Block", {str(n): overlap for n, overlap in drift.by_layer().items()}),
        ]
    parts += [
        f"{name}: {_shape(before)} in {first}, {_shape(after)} in {second}"
        for name, before, after in drift.shapes
    ]
    for label, names in ((first, drift.only_first), (second, drift.only_second)):
        if names:
            more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
            parts.append(f"only in {label}: {names[0]}{more}")
    return Group(*parts)


# --- sparsity -----------------------------------------------------------------------------------


def _totals(result: SparsityResult, title: str) -> Table:
    table = _table(title, ("Sparsity", "", "Zeros", "Parameters"), first_left=1)
    for name, count in (
        ("linear layers of the decoder blocks", result.linear),
        ("all parameters", result.total),
    ):
        table.add_row(name, *_count_cells(count))
    spread = layer_spread(result)
    if spread is not None:
        table.add_row("lowest block", *_layer_cells(spread.lowest))
        table.add_row("median block", format_percent(spread.median), "", "")
        table.add_row("highest block", *_layer_cells(spread.highest))
        for layer in spread.standing_out:
            table.add_row("stands out", *_layer_cells(layer))
    table.add_row("N:M pattern of the pruned layers", result.pattern or "none", "", "")
    return table


def _groups_table(parts: Mapping[str, Part]) -> Table:
    table = _table("N:M groups that comply", ("Module", "Sparsity", *PATTERNS))
    for name, part in parts.items():
        table.add_row(
            name,
            format_percent(part.count.fraction),
            *(_of(part.groups[name].complying, part.groups[name].total) for name in PATTERNS),
            end_section=name == list(parts)[-2],
        )
    return table


def _empty_table(parts: Mapping[str, Part]) -> Table:
    heads = ("Module", "Groups of 2", "Groups of 4", "Groups of 8", "Rows", "Columns", "Heads")
    table = _table("All zero", heads)
    for name, part in parts.items():
        groups = (part.groups[pattern] for pattern in ("1:2", "2:4", "4:8"))
        table.add_row(
            name,
            *(_of(group.empty, group.total) for group in groups),
            _of(part.empty_rows, part.rows),
            _of(part.empty_columns, part.columns),
            _of(part.empty_heads, part.heads),
            end_section=name == list(parts)[-2],
        )
    return table


def _blocks_table(parts: Mapping[str, Part]) -> Table:
    first = next(part.blocks for part in parts.values() if part.blocks)
    heads = (*(tier_title(tier, first.topk) for tier in TIERS), "Blocks", "Ragged")
    size = f"{first.block[0]}x{first.block[1]}"
    table = _table(f"Blocks of {size}, each in the first tier that fits", ("Module", *heads))
    for name, part in parts.items():
        if part.blocks is not None:
            total = block_count(part.blocks)
            table.add_row(
                name,
                *(_of(getattr(part.blocks, tier), total) for tier in TIERS),
                f"{total:,}",
                f"{part.blocks.ragged:,}",
                end_section=name == list(parts)[-2],
            )
    return table


def _layers_table(result: SparsityResult, kinds: Sequence[str]) -> Table:
    placed = [t for t in linear_tensors(result) if t.layer is not None]
    cells = parts_by(placed, lambda tensor: (tensor.layer, tensor.kind or "other"))
    table = _table("Sparsity of each decoder block", ("Block", "All", *kinds))
    for layer in result.layers:
        parts = [cells.get((layer.layer, kind)) for kind in kinds]
        table.add_row(
            str(layer.layer),
            format_percent(_zeros(layer).fraction),
            *("" if part is None else format_percent(part.count.fraction) for part in parts),
        )
    return table


def _shape_lines(result: SparsityResult) -> list[str]:
    lines = []
    for kind, shapes in differing_shapes(result).items():
        sizes = ", ".join(
            f"{_shape(shape)} ({len(layers)} {'block' if len(layers) == 1 else 'blocks'})"
            for shape, layers in shapes.items()
        )
        lines.append(f"{kind} differs in shape between blocks: {sizes}")
    return ["", *lines] if lines else []


# --- drift --------------------------------------------------------------------------------------


def _drift_table(first: str, rows: Mapping[str, Overlap]) -> Table:
    heads = (first, "Zeros kept", "Came back", "New zeros", "Before", "After")
    table = _table("", heads)
    for name, overlap in rows.items():
        table.add_row(
            name,
            f"{overlap.kept:,}",
            f"{overlap.returned:,}",
            f"{overlap.new:,}",
            _of(overlap.kept + overlap.returned, overlap.parameters),
            _of(overlap.kept + overlap.new, overlap.parameters),
            style="bold red" if overlap.returned else None,
        )
    return table


# --- cells --------------------------------------------------------------------------------------


def _table(title: str, heads: Sequence[str], first_left: int = 1) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
    )
    for index, head in enumerate(heads):
        table.add_column(head, justify="left" if index < first_left else "right")
    return table


def _zeros(layer: LayerSparsity) -> ZeroCount:
    return ZeroCount(zeros=layer.zeros, parameters=layer.parameters)


def _count_cells(count: ZeroCount) -> tuple[str, str, str]:
    return format_percent(count.fraction), f"{count.zeros:,}", f"{count.parameters:,}"


def _layer_cells(layer: LayerSparsity) -> tuple[str, str, str]:
    percent, zeros, parameters = _count_cells(_zeros(layer))
    return f"{percent} (block {layer.layer})", zeros, parameters


def _of(part: int, whole: int) -> str:
    """A share in percent that says 0% or 100% only where it is exactly that."""
    if not whole:
        return ""
    if part in (0, whole):
        return "0%" if part == 0 else "100%"
    return f"{min(max(100 * part / whole, 0.01), 99.99):.2f}%"


def _shape(shape: Sequence[int]) -> str:
    return "x".join(str(size) for size in shape)
