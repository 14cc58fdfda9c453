"""Routing: the experts of each token and layer, synthetic or recorded, for benches and replays.

Contract: `choose` returns a layer's experts for the next token, instead of the model's routers: routers with random
weights use all experts equally, unlike those of a trained model. Random numbers come from a seed, separately per layer.

* `uniform`: random experts for each token.
* `sticky:P`: each expert of the last token is used again with probability P, the others are drawn among the rest.
* `mixtral`: popularity that falls as 1 / rank, another order in each layer, and 0.09 of reuse besides; with 0.03 of the
  tokens one expert moves to another rank, as popularity changes with the subject. It gives the per-layer hit rates that
  Mixtral is reported to have: LRU .22 .39 .53 .66 .77 .86 .93 with 1 to 7 of 8 slots, and LFU close to it (fixed
  popularity would put LFU .06 above). The three numbers were found by a search.
* `trace FILE`: a recording, repeated; the function that reads the file is an argument.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from mixq.errors import UsageError, did_you_mean, printable

NAMES = ("uniform", "sticky:P", "mixtral", "trace FILE")
MIXTRAL_REUSE = 0.09
MIXTRAL_FALL = 1.0
MIXTRAL_DRIFT = 0.03

Token = list[tuple[int, ...]]
"""The experts of one token in each layer, the most likely first."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Routing of a run."""

    # layers, experts, active: of the model: every layer has `experts`, of which a token uses `active`
    layers: int
    experts: int
    active: int
    tokens: list[Token]  # in their order


class Routing(Protocol):
    """Chooses experts."""

    def choose(self, layer: int) -> tuple[int, ...]:
        """Return the experts of the next token in a layer."""


class _Drawn:
    """Reuses each expert of the last token with some probability, and draws the others by popularity.

    Args:
        drift: probability that an expert moves to another rank of popularity.
        fresh: whether an expert that was not reused may be drawn again for the same token.
    """

    def __init__(
        self,
        layers: int,
        experts: int,
        active: int,
        seed: int,
        *,
        reuse: float,
        fall: float = 0.0,
        drift: float = 0.0,
        fresh: bool = False,
    ) -> None:
        self._active, self._reuse, self._drift, self._fresh = active, reuse, drift, fresh
        self._random = [random.Random(f"{seed} {layer}") for layer in range(layers)]
        self._order = [draw.sample(range(experts), experts) for draw in self._random]
        self._sums = list(accumulate((rank + 1) ** -fall for rank in range(experts)))
        self._last: list[tuple[int, ...]] = [tuple(order[:active]) for order in self._order]

    def choose(self, layer: int) -> tuple[int, ...]:
        draw, order, last = self._random[layer], self._order[layer], self._last[layer]
        if self._drift and draw.random() < self._drift:
            order.insert(draw.randrange(len(order)), order.pop(draw.randrange(len(order))))
        chosen = [expert for expert in last if draw.random() < self._reuse]
        while len(chosen) < self._active:
            expert = draw.choices(order, cum_weights=self._sums)[0]
            if expert not in chosen and not (self._fresh and expert in last):
                chosen.append(expert)
        draw.shuffle(chosen)
        self._last[layer] = tuple(chosen)
        return self._last[layer]


class _Recorded:
    """A trace from start to end, repeated."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._next = [0] * trace.layers

    def choose(self, layer: int) -> tuple[int, ...]:
        token = self._trace.tokens[self._next[layer] % len(self._trace.tokens)]
        self._next[layer] += 1
        return token[layer]


def parse_routing(
    text: str,
    *,
    layers: int,
    experts: int,
    active: int,
    seed: int = 0,
    read_trace: Callable[[Path], Trace] | None = None,
) -> Routing:
    """Return the routing for a flag.

    Args:
        text: `uniform`, `sticky:0.39`, `mixtral` or `trace FILE`.
        layers, experts, active: of the model.
        read_trace: reads the file of `trace FILE`, and raises its errors; None: files are not supported.

    Raises:
        UsageError: another name, a probability outside 0 .. 1, or a trace of another model's shape.
    """
    name, _, rest = text.strip().partition(" " if text.startswith("trace ") else ":")
    if name == "uniform" and not rest:
        return _Drawn(layers, experts, active, seed, reuse=0.0)
    if name == "mixtral" and not rest:
        return _Drawn(layers, experts, active, seed, reuse=MIXTRAL_REUSE, fall=MIXTRAL_FALL, drift=MIXTRAL_DRIFT)
    if name == "sticky":
        if 2 * active > experts:
            raise UsageError(f"sticky routing needs at least {2 * active} experts; the model has {experts}.")
        return _Drawn(layers, experts, active, seed, reuse=_probability(rest), fresh=True)
    if name == "trace" and rest and read_trace is not None:
        trace = read_trace(Path(rest.strip()))
        if (trace.layers, trace.experts, trace.active) != (layers, experts, active):
            raise UsageError(
                f"{printable(rest)} has {trace.layers} layers of {trace.experts} experts and uses {trace.active} per "
                f"token; the model has {layers} layers of {experts} and uses {active}."
            )
        return _Recorded(trace)
    raise UsageError(
        f"routing {printable(repr(text))} is unknown; choose from {', '.join(NAMES)}."
        + did_you_mean(name, [known.split(":")[0].split(" ")[0] for known in NAMES])
    )


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UsageError(f"sticky:{printable(text)} needs a probability from 0 to 1, such as sticky:0.39.")
    return value


def draw_trace(routing: Routing, tokens: int, *, layers: int, experts: int, active: int) -> Trace:
    """Return a trace of `tokens` tokens."""
    return Trace(layers, experts, active, [[routing.choose(layer) for layer in range(layers)] for _ in range(tokens)])
