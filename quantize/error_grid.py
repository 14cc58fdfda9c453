"""Errors by Linear name, laid out as a map: a row for each layer, a panel for each kind of matrix.

Contract: names may come from a file; what is not the Linear of a layer is listed beside the map, and numbers of layers
and experts are bounded as a config's are, so that no name makes a large map. Nothing is drawn here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

MOST = 1024
"""Layers, and experts, that a config can have."""

FAR_BELOW = 0.2
"""Values below this share of the median are not on the colour scale: 8 bits lose a hundredth of what 4 bits lose, and
would leave one colour to all else."""

ATTENTION = re.compile(r"model\.layers\.(\d{1,4})\.self_attn\.([qkvo])_proj")
EXPERT = re.compile(r"model\.layers\.(\d{1,4})\.block_sparse_moe\.experts\.(\d{1,4})\.(w[123])")
MLP = re.compile(r"model\.layers\.(\d{1,4})\.mlp\.(gate|up|down)_proj")
MATRICES = {"attention": ["q", "k", "v", "o"], "feed-forward": ["gate", "up", "down"]}
TITLES = {"w1": "w1 (gate)", "w2": "w2 (down)", "w3": "w3 (up)"}


@dataclass(frozen=True, slots=True)
class Panel:
    """One part of the map; `values` [layers][columns], NaN where there is none."""

    title: str
    what: str
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class ErrorGrid:
    """The map: the layers' numbers, its panels from left to right, and what is beside it, the worst first."""

    layers: tuple[int, ...]
    panels: tuple[Panel, ...]
    others: tuple[tuple[str, float], ...]

    @classmethod
    def of(cls, errors: Mapping[str, float]) -> ErrorGrid:
        """Lay out relative squared errors by Linear name."""
        panels: dict[tuple[str, str], dict[tuple[int, str], float]] = {}
        others: list[tuple[str, float]] = []
        for name, error in errors.items():
            place = _place(name)
            if place is None or not math.isfinite(error):
                others.append((name, error))
                continue
            layer, title, what, column = place
            panels.setdefault((title, what), {})[layer, column] = error
        layers = tuple(sorted({layer for cells in panels.values() for layer, _ in cells}))
        experts = sorted({column for cells in panels.values() for _, column in cells if column.isdigit()}, key=int)
        laid_out = []
        for (title, what), cells in sorted(panels.items()):
            columns = MATRICES.get(title, experts)
            values = tuple(tuple(cells.get((layer, column), math.nan) for column in columns) for layer in layers)
            laid_out.append(Panel(title, what, tuple(columns), values))
        others.sort(key=lambda pair: (-pair[1] if math.isfinite(pair[1]) else -math.inf, pair[0]))
        return cls(layers, tuple(laid_out), tuple(others))

    def bounds(self) -> tuple[float, float]:
        """Return the least and the largest error on the colour scale, both positive, the second larger."""
        found = [value for value in self._values() if value > 0]
        if not found:
            return 1e-6, 1e-5
        middle = median(found)
        low, high = min(value for value in found if value >= FAR_BELOW * middle), max(found)
        return (low, high) if high > low * 1.05 else (high / 1.05, high)

    def is_below(self, low: float) -> bool:
        """Whether there are errors below the colour scale."""
        return any(value < low for value in self._values())

    def is_missing(self) -> bool:
        """Whether a place of the map has no error."""
        return any(math.isnan(value) for panel in self.panels for row in panel.values for value in row)

    def _values(self) -> list[float]:
        return [v for panel in self.panels for row in panel.values for v in row if not math.isnan(v)]


def _place(name: str) -> tuple[int, str, str, str] | None:
    """Return (layer, panel's title, what its columns are, column) of a Linear, or None for one outside the layers."""
    if match := ATTENTION.fullmatch(name):
        place = (int(match[1]), "attention", "matrix", match[2])
    elif match := EXPERT.fullmatch(name):
        if int(match[2]) >= MOST:
            return None
        place = (int(match[1]), TITLES[match[3]], "expert", str(int(match[2])))
    elif match := MLP.fullmatch(name):
        place = (int(match[1]), "feed-forward", "matrix", match[2])
    else:
        return None
    return place if place[0] < MOST else None
