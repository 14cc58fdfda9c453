"""Slots of every layer under anything that may happen to them: the invariants hold, and nobody's slot is given away."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mixq.experts.cache import ExpertCache, SlotState
from tests.experts.invariants import check_cache

EXPERTS = 6
LAYERS = 2
POLICIES = ("lru", "lfu", "static", "random")

layers = st.integers(0, LAYERS - 1)
experts = st.integers(0, EXPERTS - 1)
quotas = st.integers(0, EXPERTS)


class Machine(RuleBasedStateMachine):
    """Loads, uses and resizes in any order, beside a record of its own.

    Keys are (layer, slot). `memory` has the slots whose memory has been made and not freed.
    """

    @initialize(quotas=st.lists(quotas, min_size=LAYERS, max_size=LAYERS), policy=st.sampled_from(POLICIES))
    def make(self, quotas: list[int], policy: str) -> None:
        self.cache = ExpertCache(quotas, EXPERTS, policy, seed=1)
        self.policy = policy
        self.quotas = quotas
        self.memory = {(layer, slot) for layer, quota in enumerate(quotas) for slot in range(quota)}
        self.loading: dict[tuple[int, int], int] = {}
        self.users: dict[tuple[int, int], int] = {}
        self.held: dict[tuple[int, int], int] = {}  # slot: expert, whether it is loading or ready
        self.requests = [0] * LAYERS
        self.cancelled = [0] * LAYERS

    @rule(layer=layers, needed=st.lists(experts, max_size=4, unique=True), acquires=st.booleans())
    def request(self, layer: int, needed: list[int], acquires: bool) -> None:
        self.requests[layer] += len(needed)
        late = self.cache.counters[layer].late
        hits = self.cache.request(layer, needed)
        ready = {e: slot for (of, slot), e in self.held.items() if of == layer and (of, slot) not in self.loading}
        assert hits == {expert: ready[expert] for expert in needed if expert in ready}
        on_their_way = {e for (of, _), e in self.loading.items() if of == layer}
        assert self.cache.counters[layer].late - late == len(on_their_way & set(needed))
        for slot in hits.values() if acquires else ():
            self.cache.acquire(layer, slot)
            self.users[layer, slot] = self.users.get((layer, slot), 0) + 1

    @rule(layer=layers, expert=experts)
    def begin_load(self, layer: int, expert: int) -> None:
        if self.cache.state(layer, expert) is not None:
            with pytest.raises(ValueError, match="has a slot"):
                self.cache.begin_load(layer, expert)
            return
        free = self.cache.has_free_slot(layer)
        evictions = self.cache.counters[layer].evictions
        slot = self.cache.begin_load(layer, expert)
        if self.policy == "static":
            assert expert < self.quotas[layer] or slot is None, "static let an unpopular one in"
        if self.policy != "static" or expert < self.quotas[layer]:
            assert slot is not None or not free
            assert slot is not None or not self.idle_and_staying(layer), "a slot that could be given was not"
        if slot is not None:
            assert self.cache.counters[layer].evictions == evictions + (not free)
            key = layer, slot
            assert (key in self.held) == (not free)
            assert key in self.memory, "a slot without memory"
            assert key not in self.loading, "a slot that is loading was given away"
            assert not self.users.get(key), "a slot that is in use was given away"
            self.loading[key] = self.held[key] = expert
            assert self.cache.state(layer, expert) == (slot, SlotState.LOADING)

    @precondition(lambda self: self.loading)
    @rule(data=st.data(), cancels=st.booleans())
    def end_load(self, data: st.DataObject, cancels: bool) -> None:
        layer, slot = key = data.draw(st.sampled_from(sorted(self.loading)))
        del self.loading[key]
        if cancels:
            self.cache.cancel_load(layer, slot)
            self.cancelled[layer] += 1
            del self.held[key]
        else:
            self.cache.finish_load(layer, slot)
        self.forget_what_is_gone()

    @precondition(lambda self: any(self.users.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        layer, slot = key = data.draw(st.sampled_from(sorted(key for key, users in self.users.items() if users)))
        self.cache.release(layer, slot)
        self.users[key] -= 1
        self.forget_what_is_gone()

    @rule(layer=layers, quota=quotas)
    def resize(self, layer: int, quota: int) -> None:
        self.quotas[layer] = quota
        for slot in self.cache.resize(layer, quota):
            self.free(layer, slot)
        self.memory |= {(layer, slot) for slot in self.cache.slots(layer)}  # what a caller allocates
        self.forget_what_is_gone()

    @rule()
    def take_retired(self) -> None:
        for layer, slot in self.cache.retired():
            self.free(layer, slot)

    def free(self, layer: int, slot: int) -> None:
        key = layer, slot
        assert slot not in self.cache.slots(layer), "the memory of a living slot was freed"
        assert key not in self.loading, "memory that is being written was freed"
        assert not self.users.get(key), "memory that is being read was freed"
        self.memory.remove(key)

    def idle_and_staying(self, layer: int) -> set[int]:
        """Slots that an expert could take. While a layer shrinks, its idle slots beyond the quota are gone already."""
        slots = set(self.cache.slots(layer))
        busy = {slot for slot in slots if (layer, slot) in self.loading or self.users.get((layer, slot))}
        return slots - busy

    def forget_what_is_gone(self) -> None:
        """Only with its slot does an expert go unasked."""
        for key in [key for key in self.held if key[1] not in self.cache.slots(key[0])]:
            assert key not in self.loading
            assert not self.users.get(key)
            del self.held[key]

    @invariant()
    def holds(self) -> None:
        check_cache(self.cache)
        assert self.cache.quotas == tuple(self.quotas)
        for layer, counters in enumerate(self.cache.counters):
            assert counters.hits + counters.misses == self.requests[layer]
            here = [self.cache.state(layer, expert) for expert in range(EXPERTS)]
            slots = [place[0] for place in here if place is not None]
            held = {expert: slot for (of, slot), expert in self.held.items() if of == layer}
            assert held == {expert: place[0] for expert, place in enumerate(here) if place is not None}
            assert len(set(slots)) == len(slots), "two experts in a slot"
            assert counters.loads == len(slots) + counters.evictions + self.cancelled[layer]
            living = {(layer, slot) for slot in self.cache.slots(layer)}
            assert living <= self.memory
            busy = {key for key in living if key in self.loading or self.users.get(key)}
            assert len(living) >= self.quotas[layer]
            assert len(living - busy) <= self.quotas[layer], "an idle slot beyond the quota"
            free = living - {(layer, slot) for slot in slots}
            assert self.cache.has_free_slot(layer) == bool(free)
            absent = [expert for expert in range(EXPERTS) if here[expert] is None]
            assert self.cache.warm_up(layer) == absent[: len(free)]
        for (layer, slot), expert in self.loading.items():
            assert self.cache.state(layer, expert) == (slot, SlotState.LOADING)
        for (layer, slot), users in self.users.items():
            assert not users or self.cache.state(layer, self.held[layer, slot]) == (slot, SlotState.READY)


TestAnyOrder = Machine.TestCase
TestAnyOrder.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)


def full(quota: int, policy: str = "lru") -> ExpertCache:
    """One layer of eight experts with the first ones in its slots."""
    cache = ExpertCache([quota], 8, policy)
    for expert in range(quota):
        load(cache, expert)
    return cache


def load(cache: ExpertCache, expert: int) -> int:
    slot = cache.begin_load(0, expert)
    assert slot is not None
    cache.finish_load(0, slot)
    return slot


def test_one_that_is_loading_is_a_late_miss_and_a_hit_once_it_is_there() -> None:
    cache = ExpertCache([2], 8)
    slot = cache.begin_load(0, 5)
    assert slot is not None
    assert cache.request(0, [5, 6]) == {}
    cache.finish_load(0, slot)
    assert cache.request(0, [5]) == {5: slot}
    counters = cache.counters[0]
    assert (counters.hits, counters.misses, counters.late) == (1, 2, 1)


def test_with_every_slot_busy_there_is_none_to_give() -> None:
    cache = full(2)
    cache.acquire(0, 0)
    cache.acquire(0, 0)
    assert cache.begin_load(0, 7) == 1
    assert cache.begin_load(0, 6) is None
    cache.release(0, 0)
    assert cache.begin_load(0, 6) is None, "one of two users is left"
    cache.release(0, 0)
    assert cache.begin_load(0, 6) == 0


def test_what_was_in_a_slot_is_gone_from_the_moment_its_load_begins() -> None:
    cache = full(1)
    assert cache.begin_load(0, 3) == 0
    assert cache.state(0, 0) is None
    cache.cancel_load(0, 0)
    assert cache.state(0, 3) is None
    assert cache.has_free_slot(0)


def test_a_busy_slot_leaves_when_that_ends() -> None:
    cache = full(2)
    cache.acquire(0, 1)
    assert cache.resize(0, 0) == [0]
    assert cache.retired() == []
    cache.release(0, 1)
    assert cache.retired() == [(0, 1)]
    assert cache.retired() == []


def test_free_slots_go_first_then_idle_ones_then_busy_ones() -> None:
    cache = full(4)
    cache.acquire(0, 3)
    cache.resize(0, 6)
    cache.begin_load(0, 7)  # slot 4; 5 is free
    gone = [slot for quota in range(5, -1, -1) for slot in cache.resize(0, quota)]
    assert gone == [5, 2, 1, 0], "of equals the highest first"
    assert cache.slots(0) == [3, 4]
    cache.finish_load(0, 4)
    cache.release(0, 3)
    assert cache.retired() == [(0, 4), (0, 3)]


def test_a_free_slot_goes_before_what_somebody_may_ask_for() -> None:
    cache = full(4)
    assert cache.begin_load(0, 7) == 0
    cache.cancel_load(0, 0)
    assert cache.resize(0, 3) == [0]
    assert cache.request(0, [1, 2, 3]) == {1: 1, 2: 2, 3: 3}


def test_a_slot_is_free_though_one_that_leaves_is_still_read() -> None:
    cache = full(2)
    cache.acquire(0, 0)
    cache.acquire(0, 1)
    assert cache.resize(0, 1) == []
    cache.release(0, 0)
    assert cache.begin_load(0, 5) == 0
    assert not cache.has_free_slot(0)
    cache.cancel_load(0, 0)
    assert cache.has_free_slot(0)
    assert cache.warm_up(0) == [0]


def test_an_expert_keeps_its_slot_whatever_leaves_and_comes_around_it() -> None:
    cache = full(4)
    cache.acquire(0, 2)
    assert sorted(cache.resize(0, 1)) == [0, 1, 3]
    assert cache.slots(0) == [2]
    cache.resize(0, 3)
    assert cache.slots(0) == [0, 1, 2]
    assert cache.request(0, [0, 1, 2, 3]) == {2: 2}, "new slots are empty"


def test_the_popular_ones_fill_what_is_free() -> None:
    cache = ExpertCache([3, 0], 4, popular=[[2, 0, 3, 1], [0, 1, 2, 3]])
    assert cache.warm_up(0) == [2, 0, 3]
    cache.begin_load(0, 0)
    assert cache.warm_up(0) == [2, 3]
    assert cache.warm_up(1) == []
    assert not cache.has_free_slot(1)


def test_a_slot_that_left_and_came_back_is_not_named_as_gone() -> None:
    cache = full(1)
    cache.acquire(0, 0)
    assert cache.resize(0, 0) == []
    cache.release(0, 0)
    assert cache.resize(0, 1) == []
    assert cache.slots(0) == [0]
    assert cache.retired() == []


def test_a_quota_that_comes_back_in_time_keeps_the_slot_and_what_is_in_it() -> None:
    cache = full(2)
    cache.acquire(0, 1)
    cache.resize(0, 0)
    cache.resize(0, 2)
    cache.release(0, 1)
    assert cache.retired() == []
    assert cache.state(0, 1) == (1, SlotState.READY)


def test_what_came_in_ahead_of_its_use_is_not_the_next_to_go() -> None:
    cache = full(2)
    cache.request(0, [0, 1])
    assert load(cache, 5) == 0, "in the place of 0; nobody has asked for 5 yet"
    assert load(cache, 2) == 1, "in the place of 1"


def test_static_follows_the_quota() -> None:
    cache = ExpertCache([1], 8, "static", popular=[[4, 2, 6, 0, 1, 3, 5, 7]])
    assert cache.warm_up(0) == [4]
    assert cache.begin_load(0, 2) is None
    load(cache, 4)
    cache.resize(0, 2)
    load(cache, 2)
    assert cache.begin_load(0, 6) is None
    assert cache.counters[0].evictions == 0


def test_what_a_caller_must_not_do_is_an_error() -> None:
    cache = full(1)
    for act in (cache.finish_load, cache.cancel_load, cache.release):
        with pytest.raises(ValueError, match="slot 0"):
            act(0, 0)
    cache.begin_load(0, 1)
    with pytest.raises(ValueError, match="not ready"):
        cache.acquire(0, 0)
    for slots in (-1, 9):
        with pytest.raises(ValueError, match="0 to 8 slots"):
            cache.resize(0, slots)
