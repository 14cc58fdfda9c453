"""How many slots each layer gets: the same number, or as recorded hit curves say.

Contract: arithmetic alone. A curve has the hits of a layer with 0, 1, ... E slots.
"""

from __future__ import annotations

from collections.abc import Sequence


def even(total: int, layers: int, experts: int) -> list[int]:
    """Share `total` slots among the layers, the first ones getting what does not divide; none more than `experts`."""
    total = min(total, layers * experts)
    share, rest = divmod(total, layers)
    return [share + (layer < rest) for layer in range(layers)]


def fit(curves: Sequence[Sequence[float]], total: int) -> list[int]:
    """Return the slots of each layer that give the most hits in all, by dynamic programming.

    Args:
        curves: by layer, the hits with 0, 1, ... E slots.
        total: slots to share.
    """
    best: list[float] = [0.0] * (total + 1)  # with t slots for the layers so far
    choices: list[list[int]] = []
    for curve in curves:
        most = len(curve) - 1
        chosen = [
            max(range(min(most, t) + 1), key=lambda k, t=t: best[t - k] + curve[k])  # type: ignore[misc]
            for t in range(total + 1)
        ]
        best = [best[t - k] + curve[k] for t, k in enumerate(chosen)]
        choices.append(chosen)
    quotas, left = [], total
    for chosen in reversed(choices):
        quotas.append(chosen[left])
        left -= quotas[-1]
    return quotas[::-1]
