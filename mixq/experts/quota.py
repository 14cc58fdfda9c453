"""How many slots each layer gets: the same number, or as recorded hit curves say.

Contract: arithmetic alone. A curve has the hits of a layer with 0, 1, ... E slots; `hit_curve` makes one of what was
recorded. What a slot costs, and how many there are, is not known here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, chain

from mixq.experts.cache import ExpertCache
from mixq.experts.policies import PolicyOfLayer


def even(total: int, layers: int, experts: int) -> list[int]:
    """Share `total` slots among the layers, the first ones getting what does not divide; none more than `experts`."""
    total = min(total, layers * experts)
    share, rest = divmod(total, layers)
    return [share + (layer < rest) for layer in range(layers)]


def fit(curves: Sequence[Sequence[float]], total: int) -> list[int]:
    """Return the slots of each layer that give the most hits in all, by dynamic programming.

    Slots that give none are handed out as well: the memory is there, and the next run is not the recorded one.

    Args:
        curves: by layer, the hits with 0, 1, ... E slots; more slots have no fewer hits.
        total: slots to share.
    """
    best: list[float] = [0.0] * (total + 1)  # with t slots for the layers so far
    choices: list[list[int]] = []
    for curve in curves:
        most = len(curve) - 1
        chosen = [
            max(range(min(most, t) + 1), key=lambda k, t=t: (best[t - k] + curve[k], k))  # type: ignore[misc]
            for t in range(total + 1)
        ]
        best = [best[t - k] + curve[k] for t, k in enumerate(chosen)]
        choices.append(chosen)
    quotas, left = [], total
    for chosen in reversed(choices):
        quotas.append(chosen[left])
        left -= quotas[-1]
    return quotas[::-1]


def hit_curve(trace: Sequence[Sequence[int]], experts: int, policy: str | PolicyOfLayer = "lru") -> list[int]:
    """Return the hits with 0, 1, ... E slots, every miss being loaded before the next pass.

    With fewer slots than a pass has experts, what is read cannot be replaced, and the cache's own LRU may have a hit or
    two of a hundred more than its curve.

    Args:
        trace: the experts of one layer, pass by pass.
        policy: see `ExpertCache`; `static` keeps those that the trace uses most.
    """
    if policy == "lru":
        return _stack_distances(trace, experts)
    uses = Counter(chain.from_iterable(trace))
    popular = sorted(range(experts), key=lambda expert: -uses[expert])
    return [_hits(trace, ExpertCache([slots], experts, policy, popular=[popular])) for slots in range(experts + 1)]


def _stack_distances(trace: Sequence[Sequence[int]], experts: int) -> list[int]:
    """LRU's hits for every number of slots in one go (Mattson, Gecsei, Slutz and Traiger, 1970).

    An expert is a hit with as many slots as its place in the order of last uses, or more.
    """
    recent: list[int] = []  # the most recent first
    found = [0] * (experts + 1)
    for needed in trace:
        for expert in needed:
            if expert in recent:
                found[recent.index(expert) + 1] += 1
        for expert in needed:
            if expert in recent:
                recent.remove(expert)
            recent.insert(0, expert)
    return list(accumulate(found))


def _hits(trace: Sequence[Sequence[int]], cache: ExpertCache) -> int:
    for needed in trace:
        hits = cache.request(0, needed)
        for slot in hits.values():
            cache.acquire(0, slot)
        for expert in needed:
            if expert not in hits and (place := cache.begin_load(0, expert)) is not None:
                cache.finish_load(0, place)
        for slot in hits.values():
            cache.release(0, slot)
    return cache.counters[0].hits
