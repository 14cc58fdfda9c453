"""Cache hits of a whole recording, for every layer and every number of slots at once, in numpy.

Contract: `hit_curves` gives exactly the hits of `ExpertCache` with the policies of `mixq.experts.policies` if its slots
start with the first experts and every miss is loaded before the layer's next use (`replay_hits` with `miss="fetch"`);
tests compare the two. A layer's hits depend on its own choices and slots alone, so layers and numbers of slots are
simulated side by side, and one simulation serves every budget.

A recording is split into parts that are simulated side by side too. Each starts some passes early with a guess of the
cache's content; a part whose guess differs from the end of the previous part is simulated again from there. So the
split changes only the time: 100,000 tokens of 32 layers take about a second per policy.

Axes: T tokens, L layers, A active experts, E experts, K numbers of slots, G parts of layers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

POLICIES = ("lru", "lfu", "static", "belady")

EARLY = 128
"""Passes by which a part starts early, so that its guess can converge."""

_LANES = 8192
"""Approximate number of (slots, part, layer) that are simulated side by side, for efficient numpy calls."""

_ABSENT = np.int64(1) << 62

Ints = NDArray[np.int64]
Choices = NDArray[np.uint8]


def hit_curves(choices: Choices, experts: int, policy: str, *, parts: int | None = None, early: int = EARLY) -> Ints:
    """Return the hits [L, E + 1] of each layer with 0, 1, ... E slots.

    Args:
        choices: of the routers, [T, L, A], in the order of use.
        policy: one of `POLICIES`; `static` keeps the experts that the recording uses most (`most_used`).
        parts, early: how the recording is split; None: chosen by size.
    """
    T, L, A = choices.shape
    curves = np.zeros((L, experts + 1), dtype=np.int64)
    curves[:, experts] = T * A
    if policy == "static":
        curves[:, 1:] = np.sort(_uses(choices, experts), axis=1)[:, ::-1].cumsum(axis=1)
        return curves
    if experts > 1:
        cut = min(max(_LANES // (L * experts), 1), T // (4 * EARLY) + 1) if parts is None else min(parts, T)
        curves[:, 1:experts] = _Player(choices, experts, policy).play(cut, early)
    return curves


def most_used(choices: Choices, experts: int) -> list[list[int]]:
    """Return each layer's experts, the most used first, the lower number first among equals."""
    order: list[list[int]] = np.argsort(-_uses(choices, experts), axis=1, kind="stable").tolist()
    return order


def _uses(choices: Choices, experts: int) -> Ints:
    """Return how often each expert is used, [L, E]."""
    return np.stack([(choices == expert).sum(axis=(0, 2), dtype=np.int64) for expert in range(experts)], axis=1)


class _Player:
    """Simulates all layers with 1, 2, ... E - 1 slots.

    A state is an array [E, G, K] of priorities: of the experts of each group with each number of slots, `_ABSENT` if
    not cached. The lowest is evicted first. Group g is part g // L of layer g % L. A priority is stored times E plus
    the expert's number, so no two are equal and the lowest names its expert.
    """

    def __init__(self, choices: Choices, experts: int, policy: str) -> None:
        T, L, A = choices.shape
        self._choices = choices
        self._E = experts
        self._slots = np.arange(1, experts)  # [K]
        self._at_first = np.tile(np.arange(experts, dtype=np.int64)[:, None] - experts, (1, L))  # [E, L]
        uses = np.arange(T * A, dtype=np.int64).reshape(T, 1, A)  # numbers the uses of a layer, in order
        # The priority after a use: a missed expert counts as used after those that hit (`Lru.loaded`).
        if_hit, if_missed = 2 * uses - uses % A, 2 * uses - uses % A + A
        if policy == "lfu":
            count = _counts(choices, experts) * (2 * T * A + 1)
            if_hit, if_missed = if_hit + count, if_missed + count
        elif policy == "belady":
            following, first = _next_uses(choices, experts)
            if_hit = if_missed = -following
            self._at_first = -first
        self._at_first = self._at_first * experts + np.arange(experts)[:, None]
        self._if_hit = if_hit * experts + choices  # [T, L, A]
        self._if_missed = self._if_hit if if_missed is if_hit else if_missed * experts + choices

    def play(self, parts: int, early: int) -> Ints:
        """Return the hits [L, K]."""
        T, L, _ = self._choices.shape
        length = T // parts
        layers = np.tile(np.arange(L), parts)
        begins = np.repeat(np.arange(parts) * length, L)
        ahead = np.minimum(begins, min(early, length))
        late = np.arange(L, parts * L)  # all groups but those of the first part
        start = self._guess((begins - ahead)[::L])
        if len(late):
            guess, _ = self._advance(start[:, late], layers[late], (begins - ahead)[late], int(ahead[late[0]]))
            start[:, late] = guess
        end, hits = self._advance(start, layers, begins, length)
        while True:
            wrong = late[(start[:, late] != end[:, late - L]).any(axis=(0, 2))]
            if not len(wrong):
                break
            start[:, wrong] = end[:, wrong - L]
            end[:, wrong], hits[wrong] = self._advance(start[:, wrong], layers[wrong], begins[wrong], length)
        last = np.arange((parts - 1) * L, parts * L)
        _, rest = self._advance(end[:, last], layers[last], begins[last] + length, T - parts * length)
        hits[last] += rest
        summed: Ints = hits.reshape(parts, L, -1).sum(axis=0)
        return summed

    def _guess(self, moments: Ints) -> Ints:
        """Return the guessed states of all parts' layers: the experts of highest priority, as if their last use was a
        hit.

        Args:
            moments: the pass of each part's guess, [parts]; at 0 it is the slots' initial content.
        """
        L, A = self._choices.shape[1:]
        priority = np.repeat(self._at_first[:, None], len(moments), axis=1)  # [E, parts, L]
        for layer, expert, uses in _uses_of_each(self._choices, self._E):
            last = np.searchsorted(uses, moments * A) - 1  # [parts]
            row, place = np.divmod(uses[last[last >= 0]], A)
            priority[expert, last >= 0, layer] = self._if_hit[row, layer, place]
        rank = np.argsort(np.argsort(-priority, axis=0), axis=0)[..., None]  # 0: the highest priority
        first = np.arange(self._E)[:, None, None, None]
        there = np.where((moments == 0)[:, None, None], first, rank) < self._slots  # [E, parts, L, K]
        return np.where(there, priority[..., None], _ABSENT).reshape(self._E, len(moments) * L, len(self._slots))

    def _advance(self, state: Ints, layers: Ints, begins: Ints, passes: int) -> tuple[Ints, Ints]:
        """Return the state of each group `passes` passes after its start, and the hits [G, K]."""
        E, G, K = state.shape
        A = self._choices.shape[2]
        groups, lanes = np.arange(G), np.arange(G * K).reshape(G, K)
        priority = np.array(state, order="C")
        flat = priority.reshape(-1)  # a view
        few = np.arange(K) < A - 1  # fewer slots than a token needs: no room for the last misses
        hits = np.zeros((G, K), dtype=np.int64)
        for step in range(passes):
            moments = begins + step
            missing = np.full((G, K), A, dtype=np.int16)
            uses = []
            for place in range(A):
                ids = self._choices[moments, layers, place]  # [G]
                found = priority[ids, groups] != _ABSENT  # [G, K]
                missing -= found
                if_hit, if_missed = (by[moments, layers, place][:, None] for by in (self._if_hit, self._if_missed))
                uses.append((ids, found, np.where(found, if_hit, if_missed)))
                priority[ids, groups] = _ABSENT  # an expert in use is not evicted
            hits += A - missing
            for one in range(A):
                least = priority.min(axis=0)
                flat[least % E * (G * K) + lanes] = np.where(missing > one, _ABSENT, least)
            room = self._slots[few] - A + missing[:, few]
            for ids, found, value in uses:
                if few.any():
                    late = ~found[:, few] & (room <= 0)
                    room -= ~found[:, few]
                    value[:, few] = np.where(late, _ABSENT, value[:, few])
                priority[ids, groups] = value
        return priority, hits


def _uses_of_each(choices: Choices, experts: int) -> Iterator[tuple[int, int, Ints]]:
    """Yield layer, expert, and the numbers of its uses; a layer's uses are numbered t * A + a."""
    for layer in range(choices.shape[1]):
        chosen = choices[:, layer].ravel()
        for expert in range(experts):
            yield layer, expert, np.flatnonzero(chosen == expert)


def _counts(choices: Choices, experts: int) -> Ints:
    """Return at each use how often the expert has been used so far, [T, L, A]."""
    A = choices.shape[2]
    counts = np.empty(choices.shape, dtype=np.int64)
    for layer, _, uses in _uses_of_each(choices, experts):
        counts[uses // A, layer, uses % A] = np.arange(1, len(uses) + 1)
    return counts


def _next_uses(choices: Choices, experts: int) -> tuple[Ints, Ints]:
    """Return at each use the number of the expert's next use [T, L, A], and the number of its first [E, L].

    An expert never used again has a number beyond all others, distinct for each expert.
    """
    A = choices.shape[2]
    following = np.empty(choices.shape, dtype=np.int64)
    first = np.empty((experts, choices.shape[1]), dtype=np.int64)
    for layer, expert, uses in _uses_of_each(choices, experts):
        then = np.append(uses, (1 << 40) + expert)
        first[expert, layer] = then[0]
        following[uses // A, layer, uses % A] = then[1:]
    return following, first
