"""How well the next layers' routers, asked on today's hidden state, name the experts that are then used.

Contract: counts alone. A prediction made `ahead` layers before is compared with what the layer's own router chose; the
router products themselves are done where the hidden state is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class _Count:
    named: int = 0
    used: int = 0
    first_named: int = 0
    passes: int = 0


class Recall:
    """Recall of predictions, by layer and look-ahead."""

    def __init__(self) -> None:
        self._counts: dict[tuple[int, int], _Count] = {}

    def record(self, layer: int, ahead: int, predicted: Sequence[int], actual: Sequence[int]) -> None:
        """Compare a prediction with the experts that a pass used; the first of each is the router's favourite."""
        count = self._counts.setdefault((layer, ahead), _Count())
        count.named += len(set(predicted) & set(actual))
        count.used += len(set(actual))
        count.first_named += bool(actual) and actual[0] in predicted
        count.passes += 1

    def by_lookahead(self) -> dict[int, float]:
        """Return the share of used experts that had been named, by how many layers ahead."""
        sums: dict[int, tuple[int, int]] = {}
        for (_, ahead), count in sorted(self._counts.items()):
            named, used = sums.get(ahead, (0, 0))
            sums[ahead] = named + count.named, used + count.used
        return {ahead: named / used for ahead, (named, used) in sums.items() if used}

    def by_layer(self, ahead: int) -> dict[int, float]:
        """Return the same for each layer."""
        return {
            layer: count.named / count.used
            for (layer, distance), count in sorted(self._counts.items())
            if distance == ahead and count.used
        }

    def favourites(self, ahead: int) -> float | None:
        """Return how often the router's first choice had been named; None before the first prediction."""
        counts = [count for (_, distance), count in self._counts.items() if distance == ahead]
        passes = sum(count.passes for count in counts)
        return sum(count.first_named for count in counts) / passes if passes else None

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        distances = sorted({ahead for _, ahead in self._counts})
        return {
            str(ahead): {
                "recall": self.by_lookahead().get(ahead),
                "first_choice": self.favourites(ahead),
                "by_layer": self.by_layer(ahead),
            }
            for ahead in distances
        }
