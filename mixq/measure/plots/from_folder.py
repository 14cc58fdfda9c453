"""Figures of a quantized folder: its settings, the error of each linear layer, and the bytes of each part.

Contract: errors are mixq.json's relative squared errors of weights, shown times 1000; names are those of the folder's
architecture; others in mixq.json are ignored. Only headers are read.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mixq.config import ModelConfig, format_size
from mixq.errors import ModelFileError, printable
from mixq.formats.architecture import parameters
from mixq.formats.folder import ModelFolder
from mixq.formats.manifest import FILE_NAME, Manifest
from mixq.formats.mix import kind_of
from mixq.measure.plots.figure import Bars, Chart, Figure, HeatMap, Series, Table, size_unit
from mixq.quantize.report import ErrorRow, SizeTable, errors_of_folder, sizes_of_folder

FAR_BELOW = 0.2
"""Values below this share of the median are outside the colour scale: errors of 8-bit layers are a hundredth of those
of 4-bit layers, which would then all have the same colour."""

BARS = 12
"""Most parts with a separate bar; a recipe can have many more."""

_UNIT = "relative squared error x 1000"
_PARTS = {"w1": "gate", "w2": "down", "w3": "up"}


def figures(folder: Path, facts: Iterable[tuple[str, str]] = ()) -> list[Figure]:
    """Return the figures of a folder; `facts`, pairs of name and text, are added to its settings.

    Raises:
        ModelFileError: it is not a quantized folder of mixq, or it is damaged.
    """
    if not (folder / FILE_NAME).is_file():
        raise ModelFileError(
            f"{printable(folder)} has no {FILE_NAME}: it was not quantized by mixq.",
            hint="Write one with: mixq quantize",
        )
    manifest, model = Manifest.read(folder), ModelFolder.open(folder)
    rows = tuple((printable(name, 40), printable(text, 1000)) for name, text in (*_recorded(manifest), *facts))
    return [
        Table("settings", f"Settings of {printable(folder.resolve().name, 60)}", (), rows),
        *error_figures(model.config, manifest.errors),
        size_figure(sizes_of_folder(model)),
        *worst_figures(errors_of_folder(model, manifest).worst),
    ]


def _recorded(manifest: Manifest) -> list[tuple[str, str]]:
    source, settings = manifest.source, manifest.settings
    size = source.get("nbytes")
    parts = [str(source.get("name")), str(source.get("dtype"))] + ([format_size(size)] if type(size) is int else [])
    mix = settings.get("mix")
    return [
        ("source", ", ".join(parts)),
        ("fingerprint", str(source.get("fingerprint"))[:16]),
        ("format", str(settings.get("format"))),
        ("mix", ", ".join(f"{part} {scheme}" for part, scheme in mix.items()) if isinstance(mix, dict) else ""),
    ]


def error_figures(config: ModelConfig, errors: Mapping[str, float]) -> list[Figure]:
    """Return a chart of the mean error by layer and part, and for each matrix of the experts a map by expert."""
    by_layer: dict[str, dict[int, list[float]]] = {}
    maps: dict[str, list[list[float | None]]] = {}
    levels: list[tuple[str, float]] = []
    for parameter in parameters(config):
        error = errors.get(parameter.module)
        if error is None or not parameter.quantizable or not 0 <= error < 1e6:
            continue
        part, layer, expert = kind_of(parameter), parameter.layer, parameter.expert
        if layer is None:
            levels.append((part, 1000 * error))
            continue
        part = _PARTS.get(part, part.removesuffix("_proj"))
        by_layer.setdefault(part, {}).setdefault(layer, []).append(1000 * error)
        if expert is not None:
            empty: list[list[float | None]] = [
                [None] * config.num_local_experts for _ in range(config.num_hidden_layers)
            ]
            maps.setdefault(part, empty)[layer][expert] = 1000 * error
    series = tuple(
        Series(part, tuple((float(layer), statistics.fmean(found)) for layer, found in sorted(layers.items())))
        for part, layers in by_layer.items()
    )
    title = "Quantization error by layer"
    made: list[Figure] = []
    if series:
        made.append(Chart("quantization-error", title, "layer", _UNIT, series, tuple(levels), whole=True))
    scale = colour_scale([value for rows in maps.values() for row in rows for value in row if value is not None])
    for part, rows in maps.items():
        title = f"Quantization error of the experts' {part} matrices"
        made.append(HeatMap(f"error-{part}", title, "layer", "expert", tuple(map(tuple, rows)), _UNIT, scale=scale))
    return made


def colour_scale(values: Sequence[float]) -> tuple[float, float]:
    """Return the least and the largest value on the colour scale, both positive, the second larger."""
    found = [value for value in values if value > 0]
    if not found:
        return 1e-3, 1e-2
    middle, high = statistics.median(found), max(found)
    low = min(value for value in found if value >= FAR_BELOW * middle)
    return (low, high) if high > low * 1.05 else (high / 1.05, high)


def size_figure(sizes: SizeTable) -> Bars:
    """Return a bar for the bytes of each part."""
    parts = [(f"{row.part} {row.scheme}", row.nbytes, row.weights) for row in sizes.rows[:BARS]]
    if rest := sizes.rows[BARS:]:
        parts.append((f"{len(rest)} more", sum(row.nbytes for row in rest), sum(row.weights for row in rest)))
    unit, size = size_unit(sizes.nbytes)
    bars = (
        (
            printable(part, 60),
            nbytes / size,
            f"{format_size(nbytes)}, {nbytes * 8 / max(1, weights):.2f} bits per weight",
        )
        for part, nbytes, weights in parts
    )
    total = f"Size: {format_size(sizes.nbytes)}; one token reads {format_size(sizes.token_bytes)}"
    return Bars("size", total, unit, tuple(bars))


def worst_figures(worst: Sequence[ErrorRow]) -> list[Figure]:
    """Return a table of the linear layers with the largest errors; none if nothing was quantized."""
    rows = tuple(
        (
            printable(row.linear.removeprefix("model."), 200),
            printable(row.scheme, 40),
            f"{row.relative_squared_error:#.3g}",
            f"{row.group_error:#.3g}",
            "" if row.ratio is None else f"{row.ratio:.2f}",
        )
        for row in worst
    )
    title = "Largest errors, of all weights and by group; x normal compares with normally distributed weights"
    return [Table("largest-errors", title, ("layer", "scheme", "error", "by group", "x normal"), rows)] if rows else []
