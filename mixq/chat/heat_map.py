"""The experts that each layer used, counted and drawn.

Contract: `ExpertUse` counts the experts of a reply's tokens; `heat_map` draws the shares as text with one column per
layer and one row per expert, folded into bands where a window is narrow. A cell shows its share by a block character as
well as by its colour, so that the map reads the same without colour. The scale ends at the largest share.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.style import Style
from rich.text import Text

SHADES = " ░▒▓█"
ASCII_SHADES = " .:*#"
COLOURS = ("#5470a0", "#3f7fb5", "#2f9f9f", "#7fb04a", "#d9b13b", "#e8743b")
WRITTEN = 8
"""Cells of at least this width show the share as a number."""

_LABEL = 4  # cells in front of a row
_DIM = Style(dim=True)


@dataclass(slots=True)
class ExpertUse:
    """How often each expert of each layer was used."""

    experts: int  # in each layer
    tokens: int = 0  # counted
    counts: list[list[int]] = field(default_factory=list)  # by layer, then expert

    def add(self, layers: Sequence[Sequence[int]]) -> None:
        """Count one token's experts, layer by layer."""
        while len(self.counts) < len(layers):
            self.counts.append([0] * self.experts)
        for count, chosen in zip(self.counts, layers, strict=True):
            for expert in chosen:
                count[expert] += 1
        self.tokens += 1

    def share(self, layer: int, expert: int) -> float:
        """Return the share of the tokens that used this expert."""
        return self.counts[layer][expert] / self.tokens

    @property
    def busiest(self) -> tuple[float, int, int]:
        """Return the largest share, its layer and expert."""
        return max(
            ((self.share(layer, expert), layer, expert) for layer, expert in self._cells()),
            key=lambda found: (found[0], -found[1], -found[2]),
        )

    @property
    def unused(self) -> int:
        """Return how many experts were not used."""
        return sum(not self.counts[layer][expert] for layer, expert in self._cells())

    def _cells(self) -> Iterator[tuple[int, int]]:
        return ((layer, expert) for layer in range(len(self.counts)) for expert in range(self.experts))


def heat_map(use: ExpertUse, width: int, *, unicode: bool = True) -> list[Text]:
    """Return the lines of the map for a window with this many columns; at least one token was counted."""
    layers = len(use.counts)
    room = max(width - 1 - _LABEL, 1)
    cell = WRITTEN if room >= layers * WRITTEN else max(1, min(WRITTEN - 1, room // layers))
    band = max(1, room // cell)
    top, layer, expert = use.busiest
    dot, mark = ("·", "×") if unicode else ("-", "x")
    lines = [Text(f"{use.tokens} tokens {dot} {layers} layers {mark} {use.experts} experts: columns are layers")]
    for first in range(0, layers, band):
        shown = range(first, min(first + band, layers))
        lines.append(Text(" " * _LABEL + _ruler(shown, cell), _DIM))
        for number in range(use.experts):
            line = Text.assemble((f"{number:>{_LABEL - 1}} ", _DIM))
            for column in shown:
                line.append_text(_cell(use.share(column, number), top, cell, unicode))
            line.rstrip()
            lines.append(line)
    lines.append(_legend(top, unicode))
    lines.append(Text(f"busiest: expert {expert} of layer {layer}, for {top:.0%} of the tokens"))
    if use.unused:
        lines.append(Text(f"{use.unused} of {layers * use.experts} experts were not used"))
    return lines


def _cell(share: float, top: float, width: int, unicode: bool) -> Text:
    """Return one cell: shade and colour, and the number if there is room."""
    colour, shade = shade_of(share / top, unicode)
    if width < WRITTEN:
        gap = 1 if width > 2 else 0
        return Text.assemble((shade * (width - gap), colour), " " * gap)
    return Text.assemble((shade * 2, colour), (f"{share:>5.0%} ", _DIM) if share else " " * (width - 2))


def shade_of(level: float, unicode: bool = True) -> tuple[Style, str]:
    """Return colour and character of a level from 0 to 1; only level 0 is empty."""
    shades = SHADES if unicode else ASCII_SHADES
    colour = COLOURS[min(len(COLOURS) - 1, int(level * len(COLOURS)))]
    return Style(color=colour), shades[min(len(shades) - 1, math.ceil(level * (len(shades) - 1)))]


def _ruler(layers: range, cell: int) -> str:
    """Return the line of layer numbers above the columns, as many as fit."""
    line = ""
    for column, layer in enumerate(layers):
        if len(line) <= column * cell and (cell > 2 or layer % 4 == 0):
            line = line.ljust(column * cell) + f"{layer} "
    return line.rstrip()


def _legend(top: float, unicode: bool) -> Text:
    line = Text(" " * _LABEL)
    for step in range(len(COLOURS)):
        colour, shade = shade_of((step + 0.5) / len(COLOURS), unicode)
        line.append(shade * 2, colour)
    return line.append(f"  up to {top:.0%} of the tokens", _DIM)
