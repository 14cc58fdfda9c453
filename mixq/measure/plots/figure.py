"""The content of a plot, as numbers: a heat map, a chart, bars or a table.

Contract: plain data. The same figure is drawn by matplotlib (`draw`), in the terminal (`mixq.cli.plot_terminal`), and
printed by `--json`. Every figure has a `name` for files, such as expert-use, and a descriptive `title`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from textwrap import wrap
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class _Named:
    """The common part of figures; see this module's contract."""

    kind: ClassVar[str]
    name: str
    title: str

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True, slots=True)
class HeatMap(_Named):
    """Values of rows and columns."""

    kind: ClassVar = "heat map"
    # rows, columns: their meaning; the first row is at the top, the first column at the left
    rows: str
    columns: str
    values: tuple[tuple[float | None, ...], ...]  # [rows][columns]; None if there is no value
    unit: str = "%"  # of a value; shares are from 0 to 1, with the unit %
    middle: float | None = None  # the value expected by chance; None without
    # the values at the two ends of the colours, both above 0; None for 0 and the largest value
    scale: tuple[float, float] | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """The values at the two ends of the colours."""
        largest = max((value for row in self.values for value in row if value is not None), default=0.0)
        return self.scale or (0.0, largest or 1.0)


@dataclass(frozen=True, slots=True)
class Series:
    """Points, joined by a line or not."""

    name: str
    points: tuple[tuple[float, float], ...]  # (x, y), x ascending
    line: bool = True  # whether they are joined


@dataclass(frozen=True, slots=True)
class Chart(_Named):
    """Series over an axis."""

    kind: ClassVar = "chart"
    # x, y: meanings of the axes, with their units
    x: str
    y: str
    series: tuple[Series, ...]
    levels: tuple[tuple[str, float], ...] = field(default=())  # horizontal lines with a name, such as chance
    percent: bool = False  # whether y are shares from 0 to 1
    whole: bool = False  # whether x are whole numbers (layers, slots)
    logarithmic: bool = False  # both axes


@dataclass(frozen=True, slots=True)
class Bars(_Named):
    """Amounts, one bar each."""

    kind: ClassVar = "bars"
    x: str  # meaning of a bar's length, with its unit
    bars: tuple[tuple[str, float, str], ...]  # label, amount, and a text next to the bar


@dataclass(frozen=True, slots=True)
class Table(_Named):
    """Rows of text; `head` names the columns and may be empty."""

    kind: ClassVar = "table"
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def lines(self, width: int) -> list[str]:
        """Return aligned lines of at most `width` characters, the head first."""
        rows = [(*(shortened(text, 60) for text in row[:-1]), row[-1]) for row in (self.head, *self.rows) if row]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(f"{text:<{size}}" for text, size in zip(row, widths, strict=True)) for row in rows)
        return [part for line in lines for part in wrap(line, width, subsequent_indent=" " * (widths[0] + 2))]


Figure = HeatMap | Chart | Bars | Table


def shortened(text: str, length: int) -> str:
    """Return a text of limited length, shortened in the middle."""
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[:half]}…{text[-half:]}"


def by_size(what: str, found: Mapping[str, Sequence[tuple[float, float]]]) -> tuple[str, tuple[Series, ...]]:
    """Return an axis of sizes with a suitable unit, and the series over it; x are in bytes."""
    unit, size = size_unit(max((x for points in found.values() for x, _ in points), default=0.0))
    series = (Series(name, tuple(sorted((x / size, y) for x, y in points))) for name, points in found.items())
    return f"{what}, {unit}", tuple(series)


def size_unit(largest: float) -> tuple[str, float]:
    """Return the unit for sizes up to `largest` bytes, and its bytes."""
    return ("GB", 1e9) if largest >= 1e9 else ("MB", 1e6)
