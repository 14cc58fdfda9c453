"""Cache policies: which expert of a layer to evict when another needs its slot.

Contract: an object per layer, which is notified of every use, load and eviction; `victim` chooses among experts that
can be evicted. `mixq.experts.own_policy` shows how to write a policy.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from itertools import chain
from typing import Protocol


class Policy(Protocol):
    """The interface of a layer's policy; by default it records nothing and admits every expert."""

    def used(self, expert: int) -> None:
        """Called when a token needs an expert, whether it is in a slot or not."""
        return

    def loaded(self, expert: int) -> None:
        """Called when an expert gets a slot."""
        return

    def evicted(self, expert: int) -> None:
        """Called when an expert loses its slot."""
        return

    def admits(self, expert: int) -> bool:
        """Return whether an expert may get a slot."""
        return True

    def victim(self, candidates: Collection[int]) -> int:
        """Return the expert to evict, one of these (at least one)."""


class Lru(Policy):
    """Evicts the least recently used expert."""

    def __init__(self) -> None:
        self._clock = 0
        self._last: dict[int, int] = {}

    def used(self, expert: int) -> None:
        self._clock += 1
        self._last[expert] = self._clock

    def loaded(self, expert: int) -> None:
        """Count as used now: an expert loaded before its first use would otherwise be evicted first."""
        self.used(expert)

    def victim(self, candidates: Collection[int]) -> int:
        return min(candidates, key=self.last_use)

    def last_use(self, expert: int) -> int:
        """Return when it was last used or loaded: a growing number, 0 for never."""
        return self._last.get(expert, 0)


class Lfu(Lru):
    """Evicts the least frequently used expert; of equals, the least recently used."""

    def __init__(self) -> None:
        super().__init__()
        self._count: dict[int, int] = {}

    def used(self, expert: int) -> None:
        super().used(expert)
        self._count[expert] = self._count.get(expert, 0) + 1

    def loaded(self, expert: int) -> None:
        super().used(expert)

    def victim(self, candidates: Collection[int]) -> int:
        return min(candidates, key=lambda expert: (self._count.get(expert, 0), self.last_use(expert)))


class Static(Policy):
    """Keeps the most popular experts, and does not admit the others.

    Args:
        keep: how many; the cache changes it with the quota.
        popular: experts, most popular first.
    """

    def __init__(self, popular: Sequence[int], keep: int) -> None:
        self._rank = {expert: rank for rank, expert in enumerate(popular)}
        self.keep = keep

    def admits(self, expert: int) -> bool:
        return self._rank.get(expert, len(self._rank)) < self.keep

    def victim(self, candidates: Collection[int]) -> int:
        return max(candidates, key=lambda expert: self._rank.get(expert, len(self._rank)))


class Random(Policy):
    """Evicts a random expert, from a seed."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)

    def victim(self, candidates: Collection[int]) -> int:
        return self._draw.choice(sorted(candidates))


class Belady(Policy):
    """Evicts the expert whose next use is furthest ahead: the optimal policy (Belady, 1966). For replays.

    Args:
        future: the layer's experts, token by token, from a recording.
    """

    def __init__(self, future: Sequence[Sequence[int]]) -> None:
        self._uses: dict[int, list[int]] = {}  # moments, the next one last
        # counts uses, not tokens, so that no two are equal
        for moment, expert in enumerate(chain.from_iterable(future)):
            self._uses.setdefault(expert, []).append(moment)
        for moments in self._uses.values():
            moments.reverse()

    def used(self, expert: int) -> None:
        if moments := self._uses.get(expert):
            moments.pop()

    def victim(self, candidates: Collection[int]) -> int:
        return max(candidates, key=self._next)

    def _next(self, expert: int) -> float:
        moments = self._uses.get(expert)
        return moments[-1] if moments else float("inf")


PolicyOfLayer = Callable[[int, int], Policy]
"""Creates the policy of a layer, given its number and its number of slots."""


def policies(
    name: str, experts: int, *, seed: int = 0, popular: Sequence[Sequence[int]] | None = None
) -> PolicyOfLayer:
    """Return a function that creates each layer's policy: lru, lfu, static or random.

    Args:
        experts: of a layer.
        seed: of `random`.
        popular: by layer, experts most popular first, for `static`; None orders them by number.
    """
    makers: dict[str, PolicyOfLayer] = {
        "lru": lambda layer, quota: Lru(),
        "lfu": lambda layer, quota: Lfu(),
        "static": lambda layer, quota: Static(range(experts) if popular is None else popular[layer], quota),
        "random": lambda layer, quota: Random(seed * 1_000_003 + layer),
    }
    return makers[name]
