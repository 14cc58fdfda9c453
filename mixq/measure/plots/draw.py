"""Figures drawn by matplotlib, as PNG or SVG.

Contract: colours that colour-blind people tell apart (cividis; Okabe and Ito's palette) with different markers, axes
with names, titles that say what is seen. matplotlib is an extra; without it there is one clear message.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mixq.errors import MixqError
from mixq.measure.plots.figure import Chart, Figure, HeatMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8B8000")
MARKERS = "osD^vP*X"
_SIZE = (6.4, 4.0)
_INK = "#202020"
_PALE = "#d9d9d9"
_WRITTEN = 120  # cells up to which values are written out


def picture(figure: Figure, format: str) -> bytes:
    """Return a figure as the bytes of a file: png or svg.

    Raises:
        MixqError: matplotlib is not installed.
    """
    drawing = _drawing(_size_of(figure))
    axes = drawing.subplots()
    draw(figure, axes)
    return _saved(drawing, format)


def sheet(figures: Sequence[Figure], columns: int = 2) -> bytes:
    """Return several figures as one PNG."""
    rows = -(-len(figures) // columns)
    drawing = _drawing((_SIZE[0] * columns, _SIZE[1] * rows))
    grid = drawing.subplots(rows, columns, squeeze=False).flatten()
    for axes, figure in zip(grid, figures, strict=False):
        draw(figure, axes)
    for axes in grid[len(figures) :]:
        axes.set_visible(False)
    return _saved(drawing, "png")


def _drawing(size: tuple[float, float]) -> Drawing:
    try:
        from matplotlib.figure import Figure as Drawing
    except ImportError as error:
        raise MixqError("Pictures need matplotlib.", hint="pip install 'mixq[plots]'") from error
    return Drawing(figsize=size, layout="constrained")


def _size_of(figure: Figure) -> tuple[float, float]:
    if isinstance(figure, HeatMap):
        columns, rows = len(figure.values[0]), len(figure.values)
        return max(4.5, 1.8 + 0.32 * columns), max(2.8, 1.4 + 0.34 * rows)
    return _SIZE


def _saved(drawing: Drawing, format: str) -> bytes:
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "mixq", "svg.fonttype": "path"}):
        metadata = {"Software": None} if format == "png" else {"Date": None}
        drawing.savefig(file, format=format, dpi=110, metadata=metadata)
    return file.getvalue()


def draw(figure: Figure, axes: Axes) -> None:
    """Draw a figure on axes."""
    width = max(30, int(axes.figure.get_size_inches()[0] / _columns(axes) * 11))  # type: ignore[union-attr]
    axes.set_title(_plain("\n".join(textwrap.wrap(figure.title, width))), fontsize=10, color=_INK, loc="left")
    axes.tick_params(labelsize=8, colors=_INK)
    if isinstance(figure, HeatMap):
        _draw_heat_map(figure, axes)
    else:
        _draw_chart(figure, axes)


def _columns(axes: Axes) -> int:
    spec = axes.get_subplotspec()
    return 1 if spec is None else spec.get_gridspec().ncols


def _plain(text: str) -> str:
    """Return text in which matplotlib sees no formulas."""
    return text.replace("$", r"\$")


def _draw_heat_map(figure: HeatMap, axes: Axes) -> None:
    factor = 100 if figure.unit == "%" else 1
    values = [[factor * value for value in row] for row in figure.values]
    top = max((value for row in values for value in row), default=1.0) or 1.0
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=top, aspect="auto")
    axes.set_xlabel(figure.columns, fontsize=9)
    axes.set_ylabel(figure.rows, fontsize=9)
    _whole_ticks(axes.xaxis)
    _whole_ticks(axes.yaxis)
    rows, columns = len(values), len(values[0])
    if rows * columns <= _WRITTEN:
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                colour = "white" if value < 0.55 * top else "black"
                axes.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    bar = axes.figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label(figure.unit, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    if figure.middle is not None:
        bar.ax.axhline(factor * figure.middle, color="white", linewidth=1.5)


def _draw_chart(figure: Chart, axes: Axes) -> None:
    factor = 100 if figure.percent else 1
    for number, series in enumerate(figure.series):
        colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
        xs, ys = [x for x, _ in series.points], [factor * y for _, y in series.points]
        dense = len(xs) > 16
        axes.plot(
            xs,
            ys,
            color=colour,
            marker="" if dense and series.line else marker,
            markersize=6 if not series.line else 4,
            linestyle="-" if series.line else "",
            linewidth=1.6,
            label=_plain(series.name),
        )
    for name, level in figure.levels:
        axes.axhline(factor * level, color="#707070", linestyle="--", linewidth=1, label=_plain(name))
    if figure.logarithmic:
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            _plain_ticks(axis)
    else:
        low = min((factor * y for series in figure.series for _, y in series.points), default=0.0)
        axes.set_ylim(bottom=0 if low >= 0 else None, top=102 if figure.percent else None)
    if figure.whole:
        _whole_ticks(axes.xaxis)
    axes.set_xlabel(_plain(figure.x), fontsize=9)
    axes.set_ylabel(_plain(f"{figure.y}, %" if figure.percent else figure.y), fontsize=9)
    axes.grid(color=_PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if len(figure.series) + len(figure.levels) > 1:
        if len(figure.series) > 5:  # beside the chart: there is no room inside
            axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        else:
            axes.legend(fontsize=8, frameon=False)


def _plain_ticks(axis: Any) -> None:
    """Write 20 and 50 on a logarithmic axis, no powers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _whole_ticks(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, nbins=17))
