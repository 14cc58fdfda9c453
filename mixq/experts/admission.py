"""Estimates the gain of admitting an expert to the accelerator's memory, from the routing so far.

Contract: a new expert is compared with the resident that it would evict. A router's choice does not depend on the place
of an expert, so the uses of both can be counted over the next tokens whether or not anything is copied; `Ledger` does
this all the time. It yields two numbers: the uses gained because an expert was chosen just now, and the share of a lead
in popularity that lasts. With uniform routing both are zero, whatever the noise of the counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from mixq.experts.cache import ExpertCache, SlotState

WATCHED = 8
"""Tokens over which a pair is compared. A choice has no influence on later ones: Mixtral uses an expert again with
probability 0.39 (0.25 by chance), and 4 % of the difference are left after three tokens."""

SOON = 2
"""Tokens for which a lead in popularity counts if copies cost nothing: an evicted expert returns when it is used
next."""

STAY = 32
"""Tokens for which it counts if a copy has a cost."""

MEMORY = 64
"""Tokens over which popularity is averaged; it starts as if the first `EVEN` had been uniform."""

EVEN = 16

COMPARISONS = 4096
"""Comparisons over which the two numbers are averaged: 128 tokens of 32 layers. Their noise is then 0.03 uses."""

GUESS = 256
"""Weight of the initial guess, in comparisons. The guess is Mixtral's: a choice gains 0.2 uses, a quarter of a lead
lasts."""


@dataclass(frozen=True, slots=True)
class Worth:
    """The gain of admitting an expert in place of another."""

    expert: int  # the new expert
    soon: float  # uses gained over the next `SOON` tokens
    lasting: float  # uses gained over `STAY` tokens


@dataclass(slots=True)
class _Pair:
    due: int
    newcomer: int
    victim: int
    lead: float  # in popularity, when the pair was formed
    uses: int  # of the new expert minus those of the victim, since then


class _Layer:
    def __init__(self, experts: int) -> None:
        self.passes = 0
        self.uses = [0] * experts
        self.last = [0] * experts
        self.popularity = [0.0] * experts  # uses a pass
        self.victim: int | None = None
        self.pairs: deque[_Pair] = deque()


class Ledger:
    """Popularity of each layer's experts, and the gain of admissions."""

    def __init__(self, layers: int, experts: int) -> None:
        self._layers = [_Layer(experts) for _ in range(layers)]
        self._line = _Line(level=0.2, slope=0.25 * WATCHED, spread=0.1)

    def note(self, cache: ExpertCache, layer: int, needed: Sequence[int]) -> None:
        """Record the experts that a token uses in a layer."""
        book = self._layers[layer]
        if not book.passes:
            book.popularity = [len(needed) / len(book.uses)] * len(book.uses)
        book.passes += 1
        rate = 1 / min(book.passes + EVEN, MEMORY)
        book.popularity = [value - rate * value for value in book.popularity]
        for place, expert in enumerate(needed):
            book.uses[expert] += 1
            book.popularity[expert] += rate
            book.last[expert] = book.passes * len(book.uses) + place
        while book.pairs and book.pairs[0].due <= book.passes:
            pair = book.pairs.popleft()
            self._line.note(pair.lead, book.uses[pair.newcomer] - book.uses[pair.victim] - pair.uses)
        book.victim = _least_recent(cache, layer, book)
        if book.victim is not None and needed and book.victim not in needed:
            newcomer = needed[book.passes % len(needed)]
            lead = book.popularity[newcomer] - book.popularity[book.victim]
            uses = book.uses[newcomer] - book.uses[book.victim]
            book.pairs.append(_Pair(book.passes + WATCHED, newcomer, book.victim, lead, uses))

    def worth(self, cache: ExpertCache, layer: int, newcomers: Sequence[int]) -> list[Worth]:
        """Return the gain of admitting each new expert, the largest first.

        Assumes that the least recently used resident is evicted.
        """
        book = self._layers[layer]
        ranked = sorted(newcomers, key=book.popularity.__getitem__, reverse=True)
        if not ranked or cache.has_free_slot(layer):
            return [Worth(e, SOON * book.popularity[e], STAY * book.popularity[e]) for e in ranked]
        if book.victim is None:
            return [Worth(expert, 0.0, 0.0) for expert in ranked]
        level, slope = self._line.fit()
        leads = [book.popularity[expert] - book.popularity[book.victim] for expert in ranked]
        each = slope / WATCHED  # pass
        return [
            Worth(expert, level + SOON * each * lead, level + STAY * each * lead)
            for expert, lead in zip(ranked, leads, strict=True)
        ]


def _least_recent(cache: ExpertCache, layer: int, book: _Layer) -> int | None:
    places = ((expert, cache.state(layer, expert)) for expert in range(cache.experts))
    residents = [expert for expert, place in places if place is not None and place[1] is SlotState.READY]
    return min(residents, key=book.last.__getitem__) if residents else None


class _Line:
    """A line fitted to points whose weight decays: gained uses over the lead in popularity."""

    def __init__(self, level: float, slope: float, spread: float) -> None:
        """Start as if `GUESS` points with this spread around 0 had been on a line."""
        self._n = float(GUESS)
        self._x, self._y = 0.0, GUESS * level
        self._xx = GUESS * spread**2
        self._xy = slope * self._xx

    def note(self, x: float, y: float) -> None:
        keep = 1 - 1 / COMPARISONS
        self._n = self._n * keep + 1
        self._x = self._x * keep + x
        self._y = self._y * keep + y
        self._xx = self._xx * keep + x * x
        self._xy = self._xy * keep + x * y

    def fit(self) -> tuple[float, float]:
        """Return (value at 0, slope) of least squares."""
        variance = self._xx - self._x**2 / self._n
        slope = (self._xy - self._x * self._y / self._n) / variance if variance > 0 else 0.0
        return (self._y - slope * self._x) / self._n, slope
