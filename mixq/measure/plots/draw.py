"""Draws figures with matplotlib, as PNG or SVG.

Contract: colours that colour-blind people can distinguish (cividis; Okabe and Ito's palette) with different markers,
named axes, and titles that describe the plot. The same figure gives the same bytes. Texts are shown literally: a $ does
not start a formula. matplotlib is an extra, imported only here; without it there is a clear message.
"""

from __future__ import annotations

import importlib.util
import io
import textwrap
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mixq.errors import MixqError
from mixq.measure.plots.figure import Bars, Chart, Figure, HeatMap, Table, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8B8000")
MARKERS = "osD^vP*X"
_SIZE = (6.4, 4.0)
_LARGEST = 24.0  # inches
_INK = "#202020"
_PALE = "#d9d9d9"
_WRITTEN = 120  # most cells for which values are written


def check_matplotlib() -> None:
    """Raise MixqError if matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MixqError("Plots need matplotlib.", hint="pip install 'mixq[plots]'")


def picture(figure: Figure, format: str) -> bytes:
    """Return a figure as the bytes of a file: png or svg.

    Raises:
        MixqError: matplotlib is not installed.
    """
    drawing = _drawing(_size_of(figure))
    draw(figure, drawing.subplots())
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
    check_matplotlib()
    from matplotlib.figure import Figure as Drawing

    return Drawing(figsize=size, layout="constrained")


def _size_of(figure: Figure) -> tuple[float, float]:
    if isinstance(figure, HeatMap):
        columns, rows = len(figure.values[0]), len(figure.values)
        width, height = max(4.5, 1.8 + 0.32 * columns), max(2.8, 1.4 + 0.34 * rows)
        return min(width, _LARGEST), min(height, _LARGEST)
    return _SIZE


def _saved(drawing: Drawing, format: str) -> bytes:
    import matplotlib

    file = io.BytesIO()
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "mixq", "svg.fonttype": "path"}):
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a box is drawn in its place
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
    elif isinstance(figure, Chart):
        _draw_chart(figure, axes)
    elif isinstance(figure, Bars):
        _draw_bars(figure, axes)
    else:
        _draw_table(figure, axes, width * 6 // 5)


def _columns(axes: Axes) -> int:
    spec = axes.get_subplotspec()
    return 1 if spec is None else spec.get_gridspec().ncols


def _plain(text: str) -> str:
    """Return text without formulas for matplotlib."""
    return text.replace("$", r"\$")


def _draw_heat_map(figure: HeatMap, axes: Axes) -> None:
    import matplotlib
    import numpy as np
    from matplotlib.colors import LogNorm, Normalize

    factor = 100 if figure.unit == "%" else 1
    values = factor * np.array(figure.values, dtype=float)  # None becomes NaN, which is not drawn
    low, top = (factor * bound for bound in figure.bounds)
    norm = LogNorm(low, top) if low and top > 4 * low else Normalize(low, top)
    colours = matplotlib.colormaps["cividis"].with_extremes(under="white", bad="#00000000")
    image = axes.imshow(np.maximum(values, low * 1e-9), norm=norm, cmap=colours, aspect="auto", interpolation="nearest")
    axes.patch.set(facecolor="white", edgecolor="#909090", hatch="////")
    axes.set_xlabel(figure.columns, fontsize=9)
    axes.set_ylabel(figure.rows, fontsize=9)
    _whole_ticks(axes.xaxis)
    _whole_ticks(axes.yaxis)
    if values.size <= _WRITTEN:
        for (y, x), value in np.ndenumerate(values):
            colour = "white" if low <= value < low + 0.55 * (top - low) else "black"
            text = "" if np.isnan(value) else f"{value:.0f}" if factor == 100 else f"{value:.2g}"
            axes.text(x, y, text, ha="center", va="center", fontsize=7, color=colour)
    below, missing = bool((values < low).any()), bool(np.isnan(values).any())
    bar = axes.figure.colorbar(image, ax=axes, pad=0.02, extend="min" if below else "neither")
    notes = ["white: far below the others"] * below + ["hatched: not quantized"] * missing
    bar.set_label("\n".join((figure.unit, *notes)), fontsize=8)
    bar.ax.tick_params(labelsize=8)
    if figure.middle is not None:
        bar.ax.axhline(factor * figure.middle, color="white", linewidth=1.5)


def _draw_bars(figure: Bars, axes: Axes) -> None:
    amounts = [amount for _, amount, _ in figure.bars]
    axes.barh(range(len(amounts)), amounts, color=PALETTE[0], height=0.72)
    largest = max(amounts, default=1.0) or 1.0
    for place, (_, amount, note) in enumerate(figure.bars):
        inside = amount > 0.55 * largest
        side, shift, colour = ("right", -5, "white") if inside else ("left", 5, "black")
        at: dict[str, Any] = {"xytext": (shift, 0), "textcoords": "offset points", "ha": side, "va": "center"}
        axes.annotate(_plain(note), (amount, place), color=colour, fontsize=8, **at)
    axes.set_yticks(range(len(amounts)), [_plain(shortened(label, 34)) for label, _, _ in figure.bars])
    axes.invert_yaxis()
    axes.set_xlim(0, largest * 1.02)
    axes.set_xlabel(_plain(figure.x), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_table(figure: Table, axes: Axes, width: int) -> None:
    axes.set_axis_off()
    text = _plain("\n".join(figure.lines(width)))
    place: dict[str, Any] = {"va": "top", "transform": axes.transAxes, "in_layout": False}
    axes.text(0, 1, text, family="DejaVu Sans Mono", fontsize=7, linespacing=1.6, **place)


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
    axes.spines[["top", "right"]].set_visible(False)
    if len(figure.series) + len(figure.levels) > 1:
        if len(figure.series) > 5:  # next to the chart, which has no room
            axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        else:
            axes.legend(fontsize=8, frameon=False)


def _plain_ticks(axis: Any) -> None:
    """Write 20 and 50 on a logarithmic axis, not powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _whole_ticks(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, nbins=17))
