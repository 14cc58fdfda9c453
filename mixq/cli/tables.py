"""Tables of sizes, errors, speeds and models for the terminal; rich is imported when one is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mixq.config import format_size
from mixq.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from rich.table import Table

    from mixq.formats.store import Entry
    from mixq.measure.speed.measure import Row
    from mixq.quantize.report import ErrorReport, ErrorRow, SizeTable


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


def mean_errors(errors: ErrorReport) -> Table:
    """Return the mean relative squared error of each scheme."""
    made = table("scheme", "mean relative squared error", left=("scheme",))
    for scheme, error in errors.mean.items():
        made.add_row(scheme, f"{error:.3g}")
    return made


def error_rows(rows: Sequence[ErrorRow]) -> Table:
    """Return one row for each Linear: its error, and that error over the error of normally distributed weights."""
    made = table("worst", "scheme", "error", "x normal", left=("worst", "scheme"))
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        made.add_row(printable(row.linear), row.scheme, f"{row.relative_squared_error:.3g}", ratio)
    return made


def speed_table(rows: Sequence[Row]) -> Table:
    """Return one row for each test of a bench: tokens per second, and the share of the limit."""
    from mixq.measure.speed.table import FIGURES, figures

    made = table("test", *FIGURES, left=("test",))
    for row in rows:
        made.add_row(row.workload.name, *figures(row))
    return made


MODEL_FIGURES = ("size", "scheme", "layers", "experts", "context")


def model_table(entries: Iterable[Entry], ago: Callable[[float], str]) -> Table:
    """Return one row for each model of the store; `ago` formats the time since a moment."""
    made = table("name", *MODEL_FIGURES, left=("name",))
    made.add_column("from", no_wrap=True)
    made.add_column("changed", no_wrap=True)
    for entry in entries:
        figures = _model_figures(entry).values()
        changed = ago(entry.modified) if entry.modified else ""
        style = "" if entry.state == "ready" else "yellow"
        made.add_row(printable(entry.name), *figures, _origin(entry), changed, style=style)
    return made


def model_lines(entry: Entry, ago: Callable[[float], str]) -> tuple[str, str, str]:
    """Return a row of `model_table` for a narrow terminal: the name, the source, and the figures."""
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
