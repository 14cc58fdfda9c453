"""Tables and facts for the terminal; rich is imported when one is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mixq.config import format_size

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from rich.table import Table

    from mixq.quantize.report import SizeTable


def size_table(sizes: SizeTable) -> Table:
    """Return one row for each part of a model and its scheme, and the sum."""
    made = table("part", "scheme", "tensors", "weights", "size", "bits/weight", left=("part", "scheme"))
    for row in sizes.rows:
        made.add_row(
            row.part,
            row.scheme,
            f"{row.tensors:,}",
            f"{row.weights:,}",
            format_size(row.nbytes),
            f"{row.bits_per_weight:.2f}",
        )
    tensors = sum(row.tensors for row in sizes.rows)
    bits = sizes.nbytes * 8 / sizes.weights
    made.add_row(
        "all", "", f"{tensors:,}", f"{sizes.weights:,}", format_size(sizes.nbytes), f"{bits:.2f}", style="bold"
    )
    return made


def fact_grid(facts: Iterable[tuple[str, str]]) -> Table:
    """Return one line for each fact: its label and its value."""
    from rich.table import Table

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for label, value in facts:
        grid.add_row(label, value)
    return grid


def table(*columns: str, left: Collection[str]) -> Table:
    """Return an empty table without lines; the columns named in `left` are left-justified, the others right."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in columns:
        if name in left:
            made.add_column(name, overflow="fold")
        else:
            made.add_column(name, justify="right", no_wrap=True)
    return made
