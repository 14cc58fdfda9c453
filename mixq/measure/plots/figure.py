"""What a picture shows, as numbers: a heat map or a chart, before anything is drawn.

Contract: plain data. The same figure is drawn by matplotlib (`draw`), in the terminal (`mixq.cli.plot_terminal`), and
printed by `--json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Values of rows and columns.

    Attributes:
        name: for files, such as expert-use.
        title: what is seen, a sentence.
        rows, columns: what they are; the first of each stands at the top and at the left.
        values: [rows][columns].
        unit: of a value; shares are given from 0 to 1, with the unit %.
        middle: the value that stands for nothing special, such as chance; None where there is none.
    """

    name: str
    title: str
    rows: str
    columns: str
    values: tuple[tuple[float, ...], ...]
    unit: str = "%"
    middle: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"kind": "heat map", **asdict(self)}


@dataclass(frozen=True, slots=True)
class Series:
    """A line of points, or points alone.

    Attributes:
        points: (x, y), x ascending.
        line: whether they are joined.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    line: bool = True


@dataclass(frozen=True, slots=True)
class Chart:
    """Series over an axis.

    Attributes:
        name, title: as of `HeatMap`.
        x, y: what the axes are, with their units.
        levels: horizontal lines with a name, such as chance.
        percent: whether y are shares from 0 to 1.
        whole: whether x are whole numbers (layers, slots).
        logarithmic: both axes.
    """

    name: str
    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    levels: tuple[tuple[str, float], ...] = field(default=())
    percent: bool = False
    whole: bool = False
    logarithmic: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"kind": "chart", **asdict(self)}


Figure = HeatMap | Chart


def by_size(what: str, found: Mapping[str, Sequence[tuple[float, float]]]) -> tuple[str, tuple[Series, ...]]:
    """Return an axis of sizes with a fitting unit, and the series over it; x are given in bytes."""
    largest = max((x for points in found.values() for x, _ in points), default=0.0)
    unit, size = ("GB", 1e9) if largest >= 1e9 else ("MB", 1e6)
    series = (Series(name, tuple(sorted((x / size, y) for x, y in points))) for name, points in found.items())
    return f"{what}, {unit}", tuple(series)
