"""What is gained by admitting an expert to the accelerator's memory, measured on the routing as it comes.

Contract: a newcomer is compared with the resident that it would evict. Which expert a router chooses does not depend on
where it lies, so the uses of both can be counted over the next passes whether or not anything is copied; `Ledger` does
that all the time. Two figures follow: how many uses it gains to have been chosen just now, and how much of a lead in
popularity lasts. Even routing has neither, whatever the noise of its counts. Times are not known here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from mixq.experts.cache import ExpertCache, SlotState

WATCHED = 8
"""Passes over which a pair is compared. What a choice says about the next ones is over by then: Mixtral uses an expert
again with probability 0.39, 0.25 by chance, and of the difference 4 % are left after three passes."""

SOON = 2
"""Passes that a lead in popularity counts for if copies cost nothing: an evicted expert comes back when next used."""

STAY = 32
"""Passes that it counts for if a copy has a cost."""

MEMORY = 64
"""Passes that popularity goes back; it begins as if the first `EVEN` had been even."""

EVEN = 16

COMPARISONS = 4096
"""Comparisons that the two figures go back: 128 tokens of 32 layers. Their noise is 0.03 uses then."""

GUESS = 256
"""Comparisons that the first guess counts as. It is Mixtral's: a choice brings 0.2 uses, a quarter of a lead lasts."""


@dataclass(frozen=True, slots=True)
class Worth:
    """What is gained by admitting an expert in place of another.

    Attributes:
        expert: the newcomer.
        soon: uses gained over the next `SOON` passes.
        lasting: over `STAY` passes.
    """

    expert: int
    soon: float
    lasting: float


@dataclass(slots=True)
class _Pair:
    due: int
    newcomer: int
    victim: int
    lead: float  # in popularity, when the pair was formed
    uses: int  # of the newcomer less those of the victim, then


class _Layer:
    def __init__(self, experts: int) -> None:
        self.passes = 0
        self.uses = [0] * experts
        self.last = [0] * experts
        self.popularity = [0.0] * experts  # uses a pass
        self.victim: int | None = None
        self.pairs: deque[_Pair] = deque()


class Ledger:
    """Popularity of each layer's experts, and what admissions gain."""

    def __init__(self, layers: int, experts: int) -> None:
        self._layers = [_Layer(experts) for _ in range(layers)]
        self._line = _Line(level=0.2, slope=0.25 * WATCHED, spread=0.1)

    def note(self, cache: ExpertCache, layer: int, needed: Sequence[int]) -> None:
        """Note the experts that a pass uses in a layer."""
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
        """Return what it gains to let each newcomer in, the most first.

        The resident that goes is taken to be the one that was used least recently.
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
    """A straight line through points that are forgotten in time: gained uses over the lead in popularity."""

    def __init__(self, level: float, slope: float, spread: float) -> None:
        """Begin as if `GUESS` points of such a spread around 0 had been seen on a line."""
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
