"""Plots in the terminal: heat maps as shades, charts and amounts as bars, tables as aligned text.

Contract: rich's colours, which NO_COLOR switches off; characters show the same as colours. As wide as the console.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.console import Console
from rich.style import Style
from rich.text import Text

from mixq.chat.heat_map import COLOURS, shade_of
from mixq.measure.plots.figure import Bars, Chart, Figure, HeatMap

BAR = " ▏▎▍▌▋▊▉█"
_DIM = Style(dim=True)
_LABEL = 5
_MOST_ROWS = 12
"""Most points of a series that are shown; of longer ones every second, third and so on."""


def show(figure: Figure, console: Console) -> None:
    """Print a figure."""
    console.print(figure.title, style="bold", soft_wrap=False)
    for line in _lines(figure, console.width):
        line.rstrip()
        console.print(line, no_wrap=True, crop=True)
    console.print()


def _lines(figure: Figure, width: int) -> Iterator[Text]:
    if isinstance(figure, HeatMap):
        return _heat_map(figure, width)
    if isinstance(figure, Chart):
        return _chart(figure, width)
    if isinstance(figure, Bars):
        return _bars(figure, width)
    return (Text(line, _DIM if figure.head and not number else "") for number, line in enumerate(figure.lines(width)))


def _heat_map(figure: HeatMap, width: int) -> Iterator[Text]:
    columns = len(figure.values[0])
    room = max(width - 1 - _LABEL, 1)
    cell = 5 if columns * 5 <= room else max(1, min(4, room // columns))
    band = max(1, room // cell)
    low, top = figure.bounds
    for first in range(0, columns, band):
        shown = range(first, min(first + band, columns))
        ruler = ""
        for place, column in enumerate(shown):
            if len(ruler) <= place * cell:
                ruler = ruler.ljust(place * cell) + f"{column} "
        yield Text(" " * _LABEL + ruler + f" {figure.columns}", _DIM)
        for number, row in enumerate(figure.values):
            line = Text(f"{number:>{_LABEL - 1}} ", _DIM)
            for column in shown:
                line.append_text(_cell(row[column], low, top, cell, figure.unit))
            if not number:
                line.append(f" {figure.rows}", _DIM)
            yield line
    unit = f"{100 * top:.0f} %" if figure.unit == "%" else f"{top:.3g} {figure.unit}"
    yield Text(f"{' ' * _LABEL}darkest: {unit}", _DIM)


def _cell(value: float | None, low: float, top: float, width: int, unit: str) -> Text:
    if value is None:
        return Text("-".ljust(width), _DIM)
    level = min(max((value - low) / (top - low), 0.0), 1.0)
    style, shade = shade_of(level)
    if width < 5:
        return Text.assemble((shade * (width - (width > 2)), style), " " * (width > 2))
    number = f"{100 * value:>3.0f}" if unit == "%" else f"{value:>3.2g}"
    return Text.assemble((shade, style), (number, _DIM if not level else style), " ")


def _bars(figure: Bars, width: int) -> Iterator[Text]:
    labels = max((len(label) for label, _, _ in figure.bars), default=0)
    room = max(width - labels - 2 - max((len(note) for _, _, note in figure.bars), default=0), 8)
    largest = max((amount for _, amount, _ in figure.bars), default=0.0) or 1.0
    for label, amount, note in figure.bars:
        bar = _bar(amount / largest * room)
        yield Text.assemble((f"{label:>{labels}} ", _DIM), (bar, Style(color=COLOURS[2])), f" {note}")


def _chart(figure: Chart, width: int) -> Iterator[Text]:
    ys = [y for series in figure.series for _, y in series.points] + [level for _, level in figure.levels]
    low, top = _scale(figure, ys)
    labels = max((len(_number(x, figure.whole)) for series in figure.series for x, _ in series.points), default=1)
    room = max(width - labels - 12, 8)
    yield Text(f"{figure.y} by {figure.x}", _DIM)
    for number, series in enumerate(figure.series):
        style = Style(color=COLOURS[(2 * number + 2) % len(COLOURS)])
        if len(figure.series) > 1:
            yield Text(series.name, style)
        step = -(-len(series.points) // _MOST_ROWS)
        for x, y in series.points[::step]:
            value = f"{100 * y:.0f} %" if figure.percent else f"{y:.4g}"
            share = 0.0 if top <= low else (_position(figure, y) - low) / (top - low)
            bar = _bar(share * room)
            yield Text.assemble((f"{_number(x, figure.whole):>{labels}} ", _DIM), (bar, style), f" {value}")
    for name, level in figure.levels:
        yield Text(f"{name}: {100 * level:.0f} %" if figure.percent else f"{name}: {level:.4g}", _DIM)


def _scale(figure: Chart, ys: list[float]) -> tuple[float, float]:
    if figure.logarithmic:
        positions = [_position(figure, y) for y in ys]
        return min(positions) - 0.3, max(positions)
    return 0.0, 1.0 if figure.percent else max(ys, default=1.0)


def _position(figure: Chart, y: float) -> float:
    return math.log10(max(y, 1e-12)) if figure.logarithmic else y


def _bar(cells: float) -> str:
    whole = int(max(cells, 0.0))
    eighth = int((max(cells, 0.0) - whole) * 8)
    return "█" * whole + (BAR[eighth] if eighth else "")


def _number(x: float, whole: bool) -> str:
    return f"{x:.0f}" if whole else f"{x:.4g}"
