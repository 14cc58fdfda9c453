"""Figures of bench results (`mixq bench --save`): the roofline, and speed against GPU memory.

Contract: lines are read and checked by `mixq.measure.speed.compare`; a figure ignores lines without its fields.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mixq.errors import is_number, printable
from mixq.measure.plots.figure import Chart, Figure, Series, by_size
from mixq.measure.speed.compare import Measured

_STEPS = 24


def figures(lines: Sequence[Measured]) -> list[Figure]:
    """Return the figures for which the lines have numbers."""
    return [figure for figure in (_roofline(lines), _memory(lines)) if figure is not None]


def _roofline(lines: Sequence[Measured]) -> Chart | None:
    """Return operations per second against operations per byte, for the last line of each test on the CPU."""
    points: dict[str, tuple[float, float]] = {}
    bandwidth = 0.0
    for line in lines:
        operations, nbytes = _number(line.facts, "operations_per_token"), _number(line.facts, "read_per_token")
        on_cpu = _plan(line).get("device") in (None, "cpu")
        if not on_cpu or not operations or not nbytes or operations / nbytes > 1e12:
            continue
        points[f"{printable(line.model, 30)} {line.test}"] = operations / nbytes, operations * line.mean / 1e9
        bandwidth = max(bandwidth, _number(line.facts, "bandwidth_bytes_per_second") or 0.0)
    if not points or not bandwidth:
        return None
    xs, top = [x for x, _ in points.values()], max(y for _, y in points.values())
    low, high = min(xs) / 3, max(max(xs) * 3, top / bandwidth * 1e9 * 1.5)
    steps = [low * (high / low) ** (step / _STEPS) for step in range(_STEPS + 1)]
    roof = tuple((x, min(x * bandwidth / 1e9, top)) for x in steps)
    tests = tuple(Series(name, (point,), line=False) for name, point in points.items())
    return Chart(
        "roofline",
        f"Arithmetic speed of each test against the limits of memory ({bandwidth / 1e9:.0f} GB/s) and arithmetic",
        "operations per byte read",
        "GFLOPS",
        (Series("limit: memory, then the best measured", roof), *tests),
        logarithmic=True,
    )


def _memory(lines: Sequence[Measured]) -> Chart | None:
    """Return decode speed against the GPU memory limit, by model and device."""
    series: dict[str, dict[float, list[float]]] = {}
    for line in lines:
        plan = _plan(line)
        vram = _number(plan, "vram_bytes")
        if vram and line.test.startswith("tg"):
            name = f"{printable(line.model, 30)} {line.test}, {printable(plan.get('device'), 10)}"
            series.setdefault(name, {}).setdefault(vram, []).append(line.mean)
    measured = {
        name: [(vram, statistics.median(speeds)) for vram, speeds in sorted(found.items())]
        for name, found in series.items()
        if len(found) > 1
    }
    if not measured:
        return None
    axis, of_sizes = by_size("GPU memory", measured)
    return Chart("speed-memory", "Decode speed against GPU memory, measured", axis, "tokens/s", of_sizes)


def _plan(line: Measured) -> Mapping[str, Any]:
    plan = line.facts.get("plan")
    return plan if isinstance(plan, Mapping) else {}


def _number(facts: Mapping[str, Any], name: str) -> float | None:
    value = facts.get(name)
    return float(value) if is_number(value, 1e-6, 1e18) else None
