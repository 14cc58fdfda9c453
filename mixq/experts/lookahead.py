"""Predicts experts with the routers of the next layers on the current hidden state, and counts how often they are
right.

Contract: `Lookahead` computes router products on the device of the hidden state; `Recall` only counts.

Axes: T tokens, A active experts, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from mixq.kernels.dispatch import Kernels


@dataclass(frozen=True, slots=True)
class Lookahead:
    """The routers of the layers that follow one."""

    kernels: Kernels
    # post-attention norm and gate of each following layer, on the device of `kernels`
    routers: Sequence[tuple[Tensor, Tensor]]
    eps: float  # of the norms
    active: int  # experts that a router chooses

    def predict(self, residual: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield how many layers ahead, and the experts [T, A] predicted from hidden states [T, D]."""
        for ahead, (norm, gate) in enumerate(self.routers, 1):
            yield ahead, self.kernels.route(self.kernels.rms_norm(residual, norm, self.eps), gate, self.active)[1]


@dataclass(slots=True)
class _Count:
    predicted: int = 0  # of those used
    used: int = 0
    first_predicted: int = 0
    passes: int = 0


class Recall:
    """Recall of predictions, by layer and by the number of layers ahead."""

    def __init__(self) -> None:
        self._counts: dict[tuple[int, int], _Count] = {}

    def record(self, layer: int, ahead: int, predicted: Sequence[int], actual: Sequence[int]) -> None:
        """Compare a prediction with the experts that a token used; the first is the router's first choice."""
        count = self._counts.setdefault((layer, ahead), _Count())
        count.predicted += len(set(predicted) & set(actual))
        count.used += len(set(actual))
        count.first_predicted += bool(actual) and actual[0] in predicted
        count.passes += 1

    def by_lookahead(self) -> dict[int, float]:
        """Return the share of used experts that were predicted, by the number of layers ahead."""
        sums: dict[int, tuple[int, int]] = {}
        for (_, ahead), count in sorted(self._counts.items()):
            predicted, used = sums.get(ahead, (0, 0))
            sums[ahead] = predicted + count.predicted, used + count.used
        return {ahead: predicted / used for ahead, (predicted, used) in sums.items() if used}

    def by_layer(self, ahead: int) -> dict[int, float]:
        """Return the same for each layer."""
        return {
            layer: count.predicted / count.used
            for (layer, distance), count in sorted(self._counts.items())
            if distance == ahead and count.used
        }

    def first_choices(self, ahead: int) -> float | None:
        """Return how often the router's first choice had been predicted; None before the first prediction."""
        counts = [count for (_, distance), count in self._counts.items() if distance == ahead]
        passes = sum(count.passes for count in counts)
        return sum(count.first_predicted for count in counts) / passes if passes else None
