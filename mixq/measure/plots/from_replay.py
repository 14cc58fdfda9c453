"""Figures of a replay (`mixq replay --json`): speed and hits against GPU memory, for each policy and quota.

Contract: every number is checked; deviations from the output of `mixq replay` are errors that name the place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixq.errors import Fields, ModelFileError, printable
from mixq.measure.plots.figure import Chart, Figure, by_size

MOST = 10_000


def is_replay(content: Mapping[str, Any]) -> bool:
    """Return whether a document looks like a replay's."""
    return "combinations" in content and "hit_rate_by_slots" in content


def figures(content: Mapping[str, Any], where: str) -> list[Figure]:
    """Return the figures of a replay's document.

    Raises:
        ModelFileError: a field that is missing or of another type.
    """
    rows = content.get("combinations")
    if not isinstance(rows, list) or not 0 < len(rows) <= MOST or not all(isinstance(row, dict) for row in rows):
        raise ModelFileError(f"{printable(where)}: combinations must be a list of objects.")
    hardware = content.get("hardware")
    name = printable(hardware.get("name"), 60) if isinstance(hardware, dict) else "a computer"
    speeds: dict[str, list[tuple[float, float]]] = {}
    hits: dict[str, list[tuple[float, float]]] = {}
    for number, row in enumerate(rows):
        key = ", ".join(printable(row.get(field), 20) for field in ("policy", "quotas", "miss"))
        vram = _number(row, "vram", where, number)
        speeds.setdefault(key, []).append((vram, _number(row, "tokens_per_second", where, number)))
        hits.setdefault(key, []).append((vram, _number(row, "hit_rate", where, number)))
    axis, of_speed = by_size("GPU memory", speeds)
    _, of_hits = by_size("GPU memory", hits)
    fast, found = "Decode speed against GPU memory, by the cost model", "Expert cache hit rate against GPU memory"
    return [
        Chart("replay-speed", f"{fast} ({name})", axis, "tokens/s", of_speed),
        Chart("replay-hits", f"{found} ({name})", axis, "hits", of_hits, percent=True),
    ]


def _number(row: Mapping[str, Any], field: str, where: str, number: int) -> float:
    return Fields(row, f"{printable(where)}: combination {number + 1}: ").number(field, 0, 1e18)
