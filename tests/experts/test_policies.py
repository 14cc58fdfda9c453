"""Each policy names the expert that its definition names, and keeps the cache's invariants over a long run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache as remembered
from itertools import combinations

import pytest

from mixq.experts.cache import ExpertCache
from mixq.experts.policies import Belady, Lfu, Lru, Policy, PolicyOfLayer, Random, Static, policies

STEPS = 20_000


def told(policy: Policy, uses: Sequence[int]) -> Policy:
    for expert in uses:
        policy.used(expert)
    return policy


def test_lru_names_the_one_whose_use_lies_furthest_back() -> None:
    policy = told(Lru(), [0, 1, 2, 0])
    assert policy.victim([0, 1, 2]) == 1
    assert policy.victim([0, 2]) == 2


@pytest.mark.parametrize("kind", [Lru, Lfu])
def test_what_was_loaded_ahead_of_its_use_is_not_the_first_of_its_equals_to_go(kind: type[Lru]) -> None:
    policy = told(kind(), [0, 1])
    policy.used(2)
    policy.loaded(0)
    assert policy.victim([0, 1, 2]) == 1


def test_lfu_names_the_least_used_and_of_equals_the_least_recent() -> None:
    policy = told(Lfu(), [0, 0, 0, 1, 2, 2, 1])
    assert policy.victim([0, 1, 2]) == 2
    assert told(policy, [2]).victim([0, 1, 2]) == 1


def test_lfu_counts_uses_and_not_loads() -> None:
    policy = told(Lfu(), [0, 0, 1])
    for _ in range(5):
        policy.loaded(1)
    assert policy.victim([0, 1]) == 1


def test_static_lets_in_the_popular_ones_alone() -> None:
    policy = Static([3, 1, 0, 2], keep=2)
    assert [policy.admits(expert) for expert in range(5)] == [False, True, False, True, False]


def test_random_is_seeded_and_names_everybody() -> None:
    draws = [
        [Random(seed).victim(range(8))] + [Random(seed + i).victim(range(8)) for i in range(50)] for seed in (1, 1)
    ]
    assert draws[0] == draws[1]
    assert set(draws[0]) == set(range(8))


def test_belady_names_the_one_that_is_wanted_last() -> None:
    policy = Belady([[0, 1], [2, 0], [1, 0]])
    policy.used(0)
    policy.used(1)
    assert policy.victim([0, 1]) == 1
    assert policy.victim([0, 1, 7]) == 7, "it is never wanted again"


def played(trace: Sequence[Sequence[int]], slots: int, policy: str | PolicyOfLayer) -> int:
    """Hits with every miss loaded at once, invariants kept."""
    cache = ExpertCache([slots], 8, policy, seed=3)
    loads = 0
    for step, needed in enumerate(trace):
        for expert in needed:
            if not cache.request(0, [expert]):
                place = cache.begin_load(0, expert)
                if place is not None:
                    loads += 1
                    cache.finish_load(0, place)
        if step % 1000 == 0:
            cache.check()
    cache.check()
    counters = cache.counters[0]
    assert counters.hits + counters.misses == sum(map(len, trace))
    assert counters.loads == loads
    return counters.hits


def made_up(steps: int, experts: int, seed: int) -> list[tuple[int, ...]]:
    """One expert a pass; some are wanted more than others."""
    draw = random.Random(seed)
    return [(min(draw.randrange(experts), draw.randrange(experts)),) for _ in range(steps)]


@pytest.mark.parametrize("slots", [0, 1, 3, 8])
@pytest.mark.parametrize("name", ["lru", "lfu", "static", "random"])
def test_a_long_run_keeps_the_invariants(name: str, slots: int) -> None:
    hits = played(made_up(STEPS, 8, seed=2), slots, name)
    if slots == 0:
        assert hits == 0
    if slots == 8:
        assert hits == STEPS - 8


def best_hits(trace: Sequence[int], slots: int) -> int:
    """The most hits that any choice of victims could have, by trying all of them; every miss is let in."""

    @remembered
    def hits(step: int, present: frozenset[int]) -> int:
        if step == len(trace):
            return 0
        expert = trace[step]
        if expert in present:
            return 1 + hits(step + 1, present)
        if len(present) < slots:
            return hits(step + 1, present | {expert})
        kept = combinations(sorted(present), slots - 1)
        return max(hits(step + 1, frozenset((*some, expert))) for some in kept)

    return hits(0, frozenset())


@pytest.mark.parametrize("seed", range(20))
def test_belady_has_the_most_hits_that_can_be_had(seed: int) -> None:
    trace = made_up(25, 5, seed)
    slots = 1 + seed % 3
    assert played(trace, slots, lambda layer, quota: Belady(trace)) == best_hits([e for (e,) in trace], slots)


def test_layers_draw_apart_and_a_seed_repeats() -> None:
    def draws(seed: int, layer: int) -> list[int]:
        policy = policies("random", 8, seed=seed)(layer, 4)
        return [policy.victim(range(8)) for _ in range(20)]

    assert draws(1, 0) == draws(1, 0)
    assert draws(1, 0) != draws(1, 1)
    assert draws(1, 0) != draws(2, 0)
