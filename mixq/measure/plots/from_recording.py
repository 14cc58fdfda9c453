"""Figures of a recording (`mixq trace`): expert use and reuse, cache hit rates by size, recall of predictions.

Contract: only decode tokens count; each token of a reply follows the previous one of the recording. Hits are those of
`mixq.plan.hit_curves`.

Axes: T tokens, L layers, A active experts, E experts, H layers ahead.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mixq.errors import ModelFileError, printable
from mixq.measure.plots.figure import Chart, Figure, HeatMap, Series
from mixq.plan.hit_curves import POLICIES, hit_curves
from mixq.plan.recording import NOTHING, Recording


def figures(recording: Recording) -> list[Figure]:
    """Return the figures of a recording.

    Raises:
        ModelFileError: it has fewer than two tokens of replies.
    """
    replies = ~recording.is_prompt
    experts = recording.experts[replies]
    if len(experts) < 2:
        raise ModelFileError("The recording has fewer than two tokens of replies.", hint="Record more: mixq trace")
    facts = recording.facts
    made: list[Figure] = [
        _use(experts, facts.experts, facts.model),
        _reuse(experts, facts.experts),
        _hits(experts, facts.experts),
    ]
    if facts.lookahead:
        recall = _recall(experts, recording.predicted[replies])
        made += [recall] if recall.series else []
    return made


def _use(experts: NDArray[np.uint8], count: int, model: str) -> HeatMap:
    T, L, A = experts.shape
    shares = [[float((experts[:, layer] == expert).sum() / T) for layer in range(L)] for expert in range(count)]
    return HeatMap(
        "expert-use",
        f"Share of tokens routed to each expert ({printable(model, 40)}, {T} tokens)",
        "expert",
        "layer",
        tuple(map(tuple, shares)),
        middle=A / count,
    )


def _reuse(experts: NDArray[np.uint8], count: int) -> Chart:
    A = experts.shape[2]
    again = (experts[1:, :, :, None] == experts[:-1, :, None, :]).any(axis=3).mean(axis=(0, 2))  # [L]
    points = tuple((float(layer), float(share)) for layer, share in enumerate(again))
    return Chart(
        "expert-reuse",
        f"Probability that an expert was used by the previous token: {again.mean():.0%} on average",
        "layer",
        "probability",
        (Series("recorded", points),),
        levels=(("even routing", A / count),),
        percent=True,
        whole=True,
    )


def _hits(experts: NDArray[np.uint8], count: int) -> Chart:
    T, L, A = experts.shape
    series = []
    for policy in POLICIES:
        rates = hit_curves(experts, count, policy).sum(axis=0) / (T * L * A)  # [E + 1]
        series.append(Series(policy, tuple((float(slots), float(rate)) for slots, rate in enumerate(rates))))
    return Chart(
        "hit-rates",
        "Hit rate of the expert cache by slots per layer (Belady: the optimal policy, which knows all later requests)",
        "slots per layer",
        "hits",
        tuple(series),
        percent=True,
        whole=True,
    )


def _recall(experts: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> Chart:
    H, L = predicted.shape[1:3]
    series = []
    for ahead in range(H):
        points = []
        for layer in range(L):
            known = (predicted[:, ahead, layer] != NOTHING).all(axis=1)  # [T]
            if known.any():
                used, named = experts[known, layer], predicted[known, ahead, layer]
                recall = (used[:, :, None] == named[:, None, :]).any(axis=2).mean()
                points.append((float(layer), float(recall)))
        if points:
            series.append(Series(f"{ahead + 1} ahead", tuple(points)))
    return Chart(
        "recall",
        "Share of used experts that the routers of earlier layers predicted",
        "layer",
        "predicted",
        tuple(series),
        percent=True,
        whole=True,
    )
