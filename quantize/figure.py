"""`--report FILE`: what a job lost and how large it became, as a picture (.png) or a page (.html).

Contract: `check_figure` refuses before a job begins what `draw` could not do after it; `draw` writes the file whole or
not at all. Names come from files and are shown as they are, never as markup. A page is one file without scripts that
loads nothing. matplotlib is imported here alone, and only when it is needed; no window, no global state.
"""

from __future__ import annotations

import importlib.util
import io
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixq.config import format_size
from mixq.errors import UsageError, printable
from mixq.formats.atomic import atomic_write_bytes
from mixq.quantize.error_grid import ErrorGrid, Panel
from mixq.quantize.figure_page import page
from mixq.quantize.report import ErrorRow, SizeTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import SubFigure

SUFFIXES = (".html", ".png")
COLOURS = "viridis_r"
"""Its lightness falls throughout, so that a grey print says the same: the darker, the more was lost."""

BELOW = "#ffffff"
MISSING = "#00000000"
"""Transparent: behind the map all is hatched, which no error is, in grey or in colours."""

BARS = 12
"""Parts that get a bar of their own; a recipe can make many more."""

INCHES = 13.0
LABELS = 42
"""Numbers of experts that have room side by side in all panels together."""

RC: Any = {
    "text.parse_math": False,  # a name may hold a $
    "svg.fonttype": "path",  # a page looks alike whatever fonts its reader has
    "svg.hashsalt": "mixq",
    "font.family": "DejaVu Sans",
    "font.size": 9,
}


def check_figure(path: Path) -> None:
    """Refuse a file that could not be drawn.

    Raises:
        UsageError: another ending than .html or .png, no such folder, or no matplotlib.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"a report is drawn into a {' or '.join(SUFFIXES)} file, not {printable(path.name)!r}.")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {printable(path.parent)} to draw the report into.")
    if path.is_dir():
        raise UsageError(f"{printable(path)} is a folder; give the name of a file.")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("drawing a report needs matplotlib.", hint="Install it: pip install matplotlib")


def draw(
    path: Path,
    *,
    title: str,
    errors: Mapping[str, float],
    sizes: SizeTable,
    facts: Sequence[tuple[str, str]],
    worst: Sequence[ErrorRow],
) -> None:
    """Draw a report.

    Args:
        path: of the file; its ending says which form.
        errors: relative squared error by Linear name.
        facts: what else to say, as pairs of a name and a text: source, settings, time taken.
        worst: the Linears that lost most, the worst first.

    Raises:
        UsageError: see `check_figure`.
        StorageError: the file cannot be written.
    """
    check_figure(path)
    import matplotlib
    from matplotlib.figure import Figure

    grid = ErrorGrid.of(errors)
    written = io.BytesIO()
    with warnings.catch_warnings(), matplotlib.rc_context(RC):
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a box in its place will do
        heights = [_map_height(grid), _bars_height(sizes)]
        if path.suffix.lower() == ".html":
            figure = Figure(figsize=(INCHES, sum(heights)), layout="constrained")
            above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
            _draw_map(above, grid)
            _draw_bars(below, sizes)
            figure.savefig(written, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
            svg = written.getvalue().decode()
            content = page(title, facts, sizes, worst, grid.others, svg[svg.index("<svg") :]).encode()
        else:
            lines = [line for fact in facts for line in _wrapped(*fact)]
            heights = [0.5 + 0.19 * len(lines), *heights]
            figure = Figure(figsize=(INCHES, sum(heights)), layout="constrained")
            top, above, below = figure.subfigures(3, 1, squeeze=False, height_ratios=heights)[:, 0]
            _draw_head(top, title, lines, heights[0])
            _draw_map(above, grid)
            left, right = below.subfigures(1, 2, squeeze=False)[0]
            _draw_bars(left, sizes)
            _draw_worst(right, worst, heights[2])
            figure.savefig(written, format="png", dpi=144, metadata={"Software": None})
            content = written.getvalue()
    atomic_write_bytes(path, content)


def _wrapped(name: str, text: str) -> list[str]:
    """Return lines of a fact, the name in a column of its own."""
    lines = textwrap.wrap(printable(text, 1000), 130, max_lines=4, placeholder=" …") or [""]
    return [f"{printable(name, 14) if i == 0 else '':<15}{line}" for i, line in enumerate(lines)]


def _draw_head(part: SubFigure, title: str, lines: Sequence[str], height: float) -> None:
    part.text(0.012, 1 - 0.12 / height, _short(title, 90), fontsize=15, weight="bold", va="top")
    for i, line in enumerate(lines):
        part.text(0.012, 1 - (0.5 + 0.19 * i) / height, line, family="DejaVu Sans Mono", fontsize=8.5, va="top")


def _map_height(grid: ErrorGrid) -> float:
    return 1.3 + min(8.0, max(2.0, 0.19 * len(grid.layers)))


def _draw_map(part: SubFigure, grid: ErrorGrid) -> None:
    """Draw the errors: a row a layer; a panel for attention, and one for each matrix of the experts."""
    caption = "Error by layer"
    others = ", ".join(f"{_short(name, 40)} {error:#.3g}" for name, error in grid.others[:4])
    part.suptitle(caption + (f"   (beside the layers: {others})" if others else ""), fontsize=11, weight="bold")
    if not grid.panels:
        part.text(0.5, 0.5, "no Linear of a layer was quantized", ha="center", va="center")
        return
    import matplotlib
    import numpy as np
    from matplotlib.colors import LogNorm, Normalize

    low, high = grid.bounds()
    norm = LogNorm(low, high) if high > 4 * low else Normalize(low, high)
    colours = matplotlib.colormaps[COLOURS].with_extremes(under=BELOW, bad=MISSING)
    widest = max(len(panel.columns) for panel in grid.panels)
    widths = [max(len(panel.columns), 3, 0.1 * widest) for panel in grid.panels]
    all_axes = part.subplots(1, len(grid.panels), squeeze=False, width_ratios=widths)[0]
    for axes, panel, width in zip(all_axes, grid.panels, widths, strict=True):
        values = np.maximum(np.array(panel.values, dtype=float), low * 1e-9)  # a 0 has no logarithm
        image = axes.imshow(values, norm=norm, cmap=colours, aspect="auto", interpolation="nearest")
        _label(axes, panel, grid.layers, int(LABELS * width / sum(widths)), leftmost=axes is all_axes[0])
    _colour_bar(part, list(all_axes), image, grid, low, high)


def _label(axes: Axes, panel: Panel, layers: Sequence[int], labels: int, *, leftmost: bool) -> None:
    axes.set_title(panel.title, fontsize=9.5)
    axes.patch.set(facecolor="white", edgecolor="#909090", hatch="////")
    across, down = _every(len(panel.columns), max(4, labels)), _every(len(layers), 34)
    axes.set_xticks(range(0, len(panel.columns), across), panel.columns[::across], fontsize=8)
    axes.set_xlabel(panel.what)
    axes.set_yticks(range(0, len(layers), down), [str(layer) for layer in layers[::down]] if leftmost else [])
    axes.tick_params(length=2, labelsize=8)
    if leftmost:
        axes.set_ylabel("layer")
    if len(panel.columns) <= 64 and len(layers) <= 128:
        axes.set_xticks([i - 0.5 for i in range(1, len(panel.columns))], minor=True)
        axes.set_yticks([i - 0.5 for i in range(1, len(layers))], minor=True)
        axes.grid(which="minor", color="#ececec", linewidth=0.6)
        axes.tick_params(which="minor", length=0)


def _colour_bar(
    part: SubFigure, axes: list[Axes], image: ScalarMappable, grid: ErrorGrid, low: float, high: float
) -> None:
    bar = part.colorbar(image, ax=axes, extend="min" if grid.is_below(low) else "neither", pad=0.012, aspect=25)
    ticks = [low * (high / low) ** (i / 5) if high > 4 * low else low + (high - low) * i / 5 for i in range(6)]
    bar.set_ticks(ticks, labels=[f"{tick:#.3g}" for tick in ticks])
    bar.minorticks_off()
    notes = ["white: far below the others"] * grid.is_below(low) + ["hatched: not quantized"] * grid.is_missing()
    bar.set_label("\n".join(["squared error / squared weights", *notes]))


def _every(count: int, most: int) -> int:
    """Return how many steps to go from one label to the next, so that at most `most` are shown."""
    return next(step for step in (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100, 1 << 30) if count <= step * most)


def _bars_height(sizes: SizeTable) -> float:
    return max(3.0, 1.0 + 0.28 * min(len(sizes.rows), BARS + 1))


def _draw_bars(part: SubFigure, sizes: SizeTable) -> None:
    """Draw how many bytes each part takes, with bits per weight beside."""
    bars = [(f"{row.part} {row.scheme}", row.nbytes, row.weights) for row in sizes.rows[:BARS]]
    if rest := sizes.rows[BARS:]:
        bars.append((f"{len(rest)} more", sum(row.nbytes for row in rest), sum(row.weights for row in rest)))
    scale, unit = next((s, u) for s, u in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if sizes.nbytes >= s or s == 1e3)
    axes = part.subplots()
    largest = max((nbytes for _, nbytes, _ in bars), default=1) / scale
    for place, (_, nbytes, weights) in enumerate(bars):
        axes.barh(place, nbytes / scale, color="#4c72b0", height=0.72)
        text = f"{format_size(nbytes)}, {nbytes * 8 / max(1, weights):.2f} bits a weight"
        inside = nbytes / scale > 0.55 * largest
        axes.annotate(
            text,
            (nbytes / scale, place),
            (-5 if inside else 5, 0),
            textcoords="offset points",
            ha="right" if inside else "left",
            va="center",
            color="white" if inside else "black",
            fontsize=8,
        )
    axes.set_yticks(range(len(bars)), [_short(label, 34) for label, _, _ in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, largest * 1.02 or 1)
    axes.set_xlabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    total = f"Sizes: {format_size(sizes.nbytes)}; a token reads {format_size(sizes.token_bytes)}"
    axes.set_title(total, fontsize=11, weight="bold", loc="left")


def _draw_worst(part: SubFigure, worst: Sequence[ErrorRow], height: float) -> None:
    part.text(0.03, 1 - 0.08 / height, "Lost most", fontsize=11, weight="bold", va="top")
    lines = [f"{'Linear':<46}{'scheme':<9}{'error':>9}{'by group':>10}"]
    for row in worst:
        figures = f"{row.relative_squared_error:>#9.3g}{row.group_error:>#10.3g}"
        lines.append(f"{_short(row.linear.removeprefix('model.'), 45):<46}{_short(row.scheme, 8):<9}{figures}")
    for i, line in enumerate(lines):
        weight = "bold" if i == 0 else "normal"
        place = 1 - (0.42 + 0.2 * i) / height
        part.text(0.03, place, line, family="DejaVu Sans Mono", fontsize=7.5, va="top", weight=weight)


def _short(text: str, length: int) -> str:
    """Return a name with what is too long of it taken out of the middle."""
    shown = printable(text)
    half = (length - 1) // 2
    return shown if len(shown) <= length else f"{shown[:half]}…{shown[-half:]}"
