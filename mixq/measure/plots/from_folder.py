"""The figure of a quantized folder: what quantizing cost, by layer and part.

Contract: mixq.json has the relative squared error of each Linear; the figure has the mean over a layer's Linears of a
part, times 1000.
"""

from __future__ import annotations

import re
import statistics
from pathlib import Path

from mixq.errors import ModelFileError, printable
from mixq.formats.manifest import FILE_NAME, Manifest
from mixq.measure.plots.figure import Chart, Figure, Series

_LINEAR = re.compile(r"model\.layers\.(\d{1,4})\.(?:self_attn|block_sparse_moe\.experts\.\d{1,3}|mlp)\.(\w{1,20})")
_PARTS = {"w1": "gate", "w2": "down", "w3": "up"}


def figures(folder: Path) -> list[Figure]:
    """Return the figure of a folder.

    Raises:
        ModelFileError: it is no quantized folder of mixq.
    """
    if not (folder / FILE_NAME).is_file():
        raise ModelFileError(
            f"{printable(folder)} has no {FILE_NAME}: it was not quantized by mixq.",
            hint="Make one with: mixq quantize",
        )
    errors: dict[str, dict[int, list[float]]] = {}
    for name, error in Manifest.read(folder).errors.items():
        match = _LINEAR.fullmatch(name)
        if match is not None and 0 <= error < 1e6:
            part = _PARTS.get(match[2], match[2].removesuffix("_proj"))
            errors.setdefault(part, {}).setdefault(int(match[1]), []).append(1000 * error)
    if not errors:
        raise ModelFileError(f"{printable(folder)}: {FILE_NAME} has no errors of layers.")
    series = tuple(
        Series(part, tuple((float(layer), statistics.fmean(found)) for layer, found in sorted(layers.items())))
        for part, layers in errors.items()
    )
    return [
        Chart(
            "quantization-error",
            f"What quantizing cost, by layer ({printable(folder.name, 40)})",
            "layer",
            "relative squared error x 1000",
            series,
            whole=True,
        )
    ]
