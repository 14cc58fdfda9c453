"""Each policy names the expert that its definition names, and keeps the cache's invariants over a long run."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache as remembered
from itertools import combinations

import pytest

from mixq.experts.cache import ExpertCache
from mixq.experts.policies import Belady, Lfu, Lru, Policy, PolicyOfLayer, Random, Static, policies
from tests.experts.invariants import check_cache

NAMES = ("lru", "lfu", "static", "random")
STEPS = 62_500
"""Of each policy with each number of slots: a million in all."""


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


def test_static_gives_up_the_least_popular_when_its_quota_has_shrunk() -> None:
    cache = ExpertCache([3], 4, "static", popular=[[3, 1, 0, 2]])
    for expert in (0, 1, 3):  # slots 0, 1, 2
        place = cache.begin_load(0, expert)
        assert place is not None
        cache.finish_load(0, place)
    assert cache.resize(0, 2) == [2]
    assert cache.begin_load(0, 2) is None
    assert cache.begin_load(0, 3) == 0, "in the place of 0, which may not stay"
    assert cache.state(0, 1) is not None


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


def played(trace: Sequence[Sequence[int]], slots: int, policy: str | PolicyOfLayer, *, seed: int = 3) -> list[bool]:
    """Whether each use was a hit, with every miss loaded at once; invariants kept."""
    cache = ExpertCache([slots], 8, policy, seed=seed)
    loads, found = 0, []
    for step, needed in enumerate(trace):
        for expert in needed:
            found.append(bool(cache.request(0, [expert])))
            if not found[-1]:
                place = cache.begin_load(0, expert)
                if place is not None:
                    loads += 1
                    cache.finish_load(0, place)
        if step % 1000 == 0:
            check_cache(cache)
    check_cache(cache)
    counters = cache.counters[0]
    assert counters.hits + counters.misses == sum(map(len, trace))
    assert counters.loads == loads
    assert counters.hits == sum(found)
    return found


def made_up(steps: int, experts: int, seed: int) -> list[tuple[int, ...]]:
    """One expert a pass; some are wanted more than others."""
    draw = random.Random(seed)
    return [(min(draw.randrange(experts), draw.randrange(experts)),) for _ in range(steps)]


@pytest.mark.parametrize("slots", [0, 1, 3, 8])
@pytest.mark.parametrize("name", NAMES)
def test_a_long_run_keeps_the_invariants(name: str, slots: int) -> None:
    hits = sum(played(made_up(STEPS, 8, seed=2), slots, name))
    if slots == 0:
        assert hits == 0
    if slots == 8:
        assert hits == STEPS - 8


@pytest.mark.parametrize("name", NAMES)
def test_a_long_run_with_copies_in_flight_and_a_quota_that_changes(name: str) -> None:
    """Loads end some passes late or are given up, hits are read for a pass, and the quota is never long the same."""
    draw = random.Random(7)
    cache = ExpertCache([3, 8], 8, name, seed=3)
    loading: list[tuple[int, int]] = []
    reading: list[tuple[int, int]] = []
    for step in range(20_000):
        layer = step % 2
        needed = draw.sample(range(8), 2)
        hits = cache.request(layer, needed)
        for slot in hits.values():
            cache.acquire(layer, slot)
            reading.append((layer, slot))
        for expert in needed:
            if cache.state(layer, expert) is None and (place := cache.begin_load(layer, expert)) is not None:
                assert (layer, place) not in loading + reading
                loading.append((layer, place))
        while len(loading) > 3:
            (cache.finish_load if draw.random() < 0.9 else cache.cancel_load)(*loading.pop(draw.randrange(4)))
        while len(reading) > 4:
            cache.release(*reading.pop(0))
        if step % 50 == 0:
            cache.resize(layer, draw.randrange(9))
            check_cache(cache)
    for key in loading:
        cache.finish_load(*key)
    for key in reading:
        cache.release(*key)
    check_cache(cache)
    assert tuple(len(cache.slots(layer)) for layer in range(2)) == cache.quotas
    assert sum(counters.hits + counters.misses for counters in cache.counters) == 2 * 20_000
    assert all(counters.hits for counters in cache.counters)


def lru_model(trace: Sequence[int], slots: int) -> list[bool]:
    recent: list[int] = []
    found = []
    for expert in trace:
        found.append(expert in recent[:slots])
        recent = [expert, *(other for other in recent if other != expert)]
    return found


def lfu_model(trace: Sequence[int], slots: int) -> list[bool]:
    present: set[int] = set()
    found = []
    for step, expert in enumerate(trace):
        found.append(expert in present)
        past = trace[: step + 1]
        if not found[-1] and len(present) == slots:
            present.remove(min(present, key=lambda e: (past.count(e), max(i for i, f in enumerate(past) if f == e))))
        present.add(expert)
    return found


def static_model(trace: Sequence[int], slots: int) -> list[bool]:
    return [expert < slots and expert in trace[:step] for step, expert in enumerate(trace)]


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 7])
@pytest.mark.parametrize(("name", "model"), [("lru", lru_model), ("lfu", lfu_model), ("static", static_model)])
def test_every_single_hit_is_that_of_a_few_lines_that_know_nothing_of_the_cache(
    name: str, model: Callable[[Sequence[int], int], list[bool]], slots: int
) -> None:
    for seed in range(5):
        trace = made_up(200, 8, seed)
        assert played(trace, slots, name) == model([expert for (expert,) in trace], slots)


def test_the_hits_of_random_depend_on_the_seed_and_on_nothing_else() -> None:
    trace = made_up(500, 8, seed=4)
    runs = [played(trace, 4, "random", seed=seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    beside = ExpertCache([4, 4], 8, "random", seed=1)
    found = []
    for (expert,) in trace:
        for layer in (0, 1):  # what happens in another layer draws from another seed
            hit = bool(beside.request(layer, [expert]))
            if not hit and (place := beside.begin_load(layer, expert)) is not None:
                beside.finish_load(layer, place)
            if layer == 0:
                found.append(hit)
    assert found == runs[0]


def test_random_names_everybody_equally_often_and_in_any_order() -> None:
    policy, other = Random(5), Random(5)
    drawn = [policy.victim([2, 3, 5, 7]) for _ in range(8000)]
    assert drawn == [other.victim([7, 5, 3, 2]) for _ in range(8000)], "in whatever order the candidates come"
    assert all(drawn.count(expert) == pytest.approx(2000, rel=0.1) for expert in (2, 3, 5, 7))


def best_hits(trace: Sequence[int], slots: int, *, passing: bool = False) -> int:
    """The most hits that any choice of victims could have, by trying all of them.

    Every miss is let in, or with `passing` may pass by.
    """

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
        after = [frozenset((*some, expert)) for some in kept] + [present] * passing
        return max(hits(step + 1, choice) for choice in after)

    return hits(0, frozenset())


@pytest.mark.parametrize("seed", range(20))
def test_belady_has_the_most_hits_that_can_be_had(seed: int) -> None:
    trace = made_up(25, 5, seed)
    slots = 1 + seed % 3
    assert sum(played(trace, slots, lambda layer, quota: Belady(trace))) == best_hits([e for (e,) in trace], slots)


@pytest.mark.parametrize("name", NAMES)
def test_nobody_has_more_hits_than_can_be_had(name: str) -> None:
    for seed in range(20):
        trace, slots = made_up(25, 5, seed), 1 + seed % 3
        most = best_hits([expert for (expert,) in trace], slots, passing=name == "static")
        assert sum(played(trace, slots, name)) <= most


def test_layers_draw_apart_and_a_seed_repeats() -> None:
    def draws(seed: int, layer: int) -> list[int]:
        policy = policies("random", 8, seed=seed)(layer, 4)
        return [policy.victim(range(8)) for _ in range(20)]

    assert draws(1, 0) == draws(1, 0)
    assert draws(1, 0) != draws(1, 1)
    assert draws(1, 0) != draws(2, 0)
    assert draws(1, 1) != draws(2, 0), "the next seed is not the next layer"
