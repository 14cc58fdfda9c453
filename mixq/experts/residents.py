"""Decides which experts stay in RAM and which are released: the policy of the RAM tier.

Contract: bookkeeping only; nothing is read here. All layers share the budget. A forward pass uses each layer once, so
an expert's age is the number of passes between its last use and the next use of its layer: the oldest is released
first, and of equals the one whose layer comes last. (Plain LRU would evict the experts of the next layers, which were
used longest ago.) An expert expected in its layer's next use has age 0. An expert is read piece by piece and released
as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable

Key = tuple[int, int]
"""Layer and expert."""


class Residents:
    """The experts in memory, with at most `budget` bytes together."""

    def __init__(self, layers: int, budget: int) -> None:
        self.budget = budget
        self.taken = 0
        self._layers = layers
        self._held: dict[Key, int] = {}  # bytes
        self._used: dict[Key, int] = {}  # pass of the last use
        self._expected: dict[Key, int] = {}  # pass in which it is expected to be used
        self._in_use: frozenset[Key] = frozenset()
        self._pass = 0
        self._layer = -1

    def __contains__(self, key: Key) -> bool:
        return key in self._held

    def __len__(self) -> int:
        return len(self._held)

    def use(self, layer: int, experts: Iterable[int]) -> list[Key]:
        """Record that a layer uses these; return those that were expected there and are not used."""
        if layer <= self._layer:
            self._pass += 1
        self._layer = layer
        self._in_use = frozenset((layer, expert) for expert in experts)
        self._used |= dict.fromkeys(self._in_use, self._pass)
        over = [key for key in self._expected if key[0] == layer]
        for key in over:
            del self._expected[key]
        return [key for key in over if key not in self._in_use]

    def expect(self, layer: int, experts: Iterable[int]) -> None:
        """Record that the layer will probably use these next."""
        self._expected |= {(layer, expert): self._next_pass(layer) for expert in experts}

    def admit(self, key: Key, nbytes: int, *, demanded: bool) -> list[Key] | None:
        """Add bytes of an expert, and return the experts to release for them.

        A demanded expert is added even beyond the budget, since it is read in any case. For an expected one, the result
        is None and nothing changes if every resident is equally important.
        """
        missing = self.taken + nbytes - self.budget
        leaving: list[Key] = []
        if missing > 0:
            lowest = 0 if demanded else 1
            able = [other for other in self._held if other not in self._in_use and self._age(other) >= lowest]
            for other in sorted(able, key=self._rank, reverse=True):
                if other != key:
                    leaving.append(other)
                    missing -= self._held[other]
                    if missing <= 0:
                        break
            if missing > 0 and not demanded:
                return None
        for other in leaving:
            self.remove(other)
        self._held[key] = self._held.get(key, 0) + nbytes
        self.taken += nbytes
        return leaving

    def remove(self, key: Key) -> None:
        """Record that an expert is no longer in memory."""
        self.taken -= self._held.pop(key)

    def _next_pass(self, layer: int) -> int:
        return self._pass if layer > self._layer else self._pass + 1

    def _age(self, key: Key) -> int:
        """Return the passes between the last and the next possible use."""
        comes = self._next_pass(key[0])
        return 0 if self._expected.get(key) == comes else comes - self._used.get(key, -1)

    def _rank(self, key: Key) -> tuple[int, int]:
        return self._age(key), (key[0] - self._layer - 1) % self._layers
