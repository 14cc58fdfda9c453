"""Tables of sizes and errors, drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from mixq.config import format_size
from mixq.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mixq.formats.store import Entry
    from mixq.measure.speed.measure import Row
    from mixq.quantize.report import ErrorReport, ErrorRow, SizeTable


def size_table(sizes: SizeTable) -> Table:
    """Return one row for each part of a model and its scheme, and the sum."""
    table = _table("part", "scheme", right=("tensors", "weights", "size", "bits/weight"))
    for row in sizes.rows:
        table.add_row(
            row.part,
            row.scheme,
            f"{row.tensors:,}",
            f"{row.weights:,}",
            format_size(row.nbytes),
            f"{row.bits_per_weight:.2f}",
        )
    tensors = sum(row.tensors for row in sizes.rows)
    bits = sizes.nbytes * 8 / sizes.weights
    table.add_row(
        "all", "", f"{tensors:,}", f"{sizes.weights:,}", format_size(sizes.nbytes), f"{bits:.2f}", style="bold"
    )
    return table


def mean_errors(errors: ErrorReport) -> Table:
    """Return the mean relative squared error of each scheme."""
    table = _table("scheme", right=("mean relative squared error",))
    for scheme, error in errors.mean.items():
        table.add_row(scheme, f"{error:.3g}")
    return table


def error_rows(rows: Sequence[ErrorRow]) -> Table:
    """Return one row for each Linear: its error, and how many times what normally distributed weights would lose."""
    table = _table("worst", "scheme", right=("error", "x normal"))
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        table.add_row(printable(row.linear), row.scheme, f"{row.relative_squared_error:.3g}", ratio)
    return table


def speed_table(rows: Sequence[Row]) -> Table:
    """Return one row for each test of a bench: tokens a second, and how far from the limit."""
    from mixq.measure.speed.table import FIGURES, figures

    table = _table("test", right=FIGURES)
    for row in rows:
        table.add_row(row.workload.name, *figures(row))
    return table


MODEL_FIGURES = ("size", "scheme", "layers", "experts", "context")


def model_table(entries: Iterable[Entry], ago: Callable[[float], str]) -> Table:
    """Return one row for each model of the store; `ago` says how long ago a moment was."""
    table = _table("name", right=MODEL_FIGURES)
    table.add_column("from", no_wrap=True)
    table.add_column("changed", no_wrap=True)
    for entry in entries:
        figures = _model_figures(entry).values()
        changed = ago(entry.modified) if entry.modified else ""
        style = "" if entry.state == "ready" else "yellow"
        table.add_row(printable(entry.name), *figures, _origin(entry), changed, style=style)
    return table


def model_lines(entry: Entry, ago: Callable[[float], str]) -> tuple[str, str, str]:
    """Return what a row of `model_table` says, for a narrow terminal: the name, where it is from, and the figures."""
    units = dict(zip(MODEL_FIGURES, ("{}", "{}", "{} layers", "{} experts", "context {}"), strict=True))
    figures = [units[name].format(value) for name, value in _model_figures(entry).items() if value]
    figures += [ago(entry.modified)] if entry.modified else []
    return printable(entry.name), _origin(entry), " · ".join(figures)


def _origin(entry: Entry) -> str:
    return printable(entry.source.get("name", "") if entry.link is None else f"a link to {entry.link}")


def _model_figures(entry: Entry) -> dict[str, str]:
    if entry.state != "ready":
        return dict.fromkeys(MODEL_FIGURES, "") | {"size": format_size(entry.nbytes), "scheme": entry.state}
    facts = entry.as_dict()
    values = (
        format_size(entry.nbytes),
        entry.scheme,
        printable(facts["layers"], 6),
        f"{printable(facts['experts_per_token'], 6)} of {printable(facts['experts'], 6)}" if facts["experts"] else "",
        printable(facts["max_context"], 8),
    )
    return dict(zip(MODEL_FIGURES, values, strict=True))


def fact_grid(facts: Iterable[tuple[str, str]]) -> Table:
    """Return one line for each fact: its label, and what is so."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for label, value in facts:
        grid.add_row(label, value)
    return grid


def _table(*left: str, right: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in left:
        table.add_column(name, overflow="fold")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table
