"""The scheduler: who computes what, on machines whose answer is known beforehand."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixq.experts.cache import ExpertCache, SlotState
from mixq.experts.cost import CostModel, Hardware, ModelCost
from mixq.experts.drift import OBSERVATIONS
from mixq.experts.scheduler import LayerPlan, Scheduler
from tests.experts.invariants import check_cache

MODEL = ModelCost(
    layers=2,
    experts=8,
    active=2,
    expert_bytes=100_000_000,
    trunk_bytes=20_000_000,
    head_bytes=100_000_000,
    kv_bytes=4096,
    expert_flops=400_000_000,
)
# An expert takes 2 ms on the CPU, 0.2 ms on the GPU and 10 ms to be copied.
SLOW_LINK = Hardware("slow link", 50e9, 1e12, 500e9, 50e12, 10e9, ram_bandwidth=60e9)
# 2 ms, 0.2 ms and 0.5 ms.
FAST_LINK = replace(SLOW_LINK, name="fast link", copy_bandwidth=200e9, ram_bandwidth=250e9)
# 2 ms, 0.2 ms and 2.5 ms: of two misses it pays to copy one.
EVEN_LINK = replace(SLOW_LINK, name="even link", copy_bandwidth=40e9, ram_bandwidth=90e9)


@dataclass
class Clock:
    """What is on its way, as a test says."""

    begin: float = 0.0
    remaining: dict[int, float] = field(default_factory=dict)
    has_room: bool = True

    def demand_seconds(self) -> float:
        return self.begin

    def remaining_seconds(self, layer: int, expert: int) -> float:
        return self.remaining.get(expert, 0.0)

    def room(self) -> bool:
        return self.has_room


def scheduler(hardware: Hardware, miss: str = "auto") -> Scheduler:
    return Scheduler(CostModel(hardware, MODEL), miss)


def filled(slots: int) -> ExpertCache:
    """Experts 0, 1, ... are there."""
    cache = ExpertCache([slots, slots], 8)
    for layer in range(2):
        for expert in range(slots):
            slot = cache.begin_load(layer, expert)
            assert slot is not None
            cache.finish_load(layer, slot)
    return cache


def test_hits_are_computed_on_the_accelerator_and_held() -> None:
    cache = filled(2)
    plan = scheduler(SLOW_LINK).plan_layer(cache, 0, [1, 0], 1, Clock())
    assert plan == LayerPlan({1: 1, 0: 0}, {}, {}, (), {})
    assert cache.begin_load(0, 5) is None, "both slots are in use"


@pytest.mark.parametrize(("hardware", "fetched", "on_cpu"), [(SLOW_LINK, 0, 2), (EVEN_LINK, 1, 1), (FAST_LINK, 2, 0)])
def test_auto_does_what_is_done_first(hardware: Hardware, fetched: int, on_cpu: int) -> None:
    plan = scheduler(hardware).plan_layer(filled(4), 0, [5, 6], 1, Clock())
    assert (len(plan.fetches), len(plan.cpu)) == (fetched, on_cpu)


@pytest.mark.parametrize("hardware", [SLOW_LINK, FAST_LINK])
def test_the_simple_modes_ask_no_cost(hardware: Hardware) -> None:
    assert scheduler(hardware, "cpu").plan_layer(filled(4), 0, [5, 6], 1, Clock()).cpu == (5, 6)
    assert set(scheduler(hardware, "fetch").plan_layer(filled(4), 0, [5, 6], 1, Clock()).fetches) == {5, 6}


def test_an_expert_on_its_way_is_waited_for_only_where_that_is_sooner() -> None:
    for remaining, waits in ((0.0005, True), (0.008, False)):
        cache = filled(2)
        slot = cache.begin_load(0, 7)
        assert slot is not None
        plan = scheduler(SLOW_LINK).plan_layer(cache, 0, [7], 1, Clock(remaining={7: remaining}))
        assert (plan.waits, plan.cpu) == (({7: slot}, ()) if waits else ({}, (7,)))
        assert not plan.admissions, "it is coming already"


def test_fetch_waits_for_what_is_on_its_way() -> None:
    cache = filled(2)
    slot = cache.begin_load(0, 7)
    plan = scheduler(SLOW_LINK, "fetch").plan_layer(cache, 0, [7, 0], 1, Clock(remaining={7: 9.0}))
    assert plan.waits == {7: slot}
    assert not plan.cpu


def test_a_busy_link_sends_misses_to_the_cpu() -> None:
    assert not scheduler(FAST_LINK).plan_layer(filled(4), 0, [5], 1, Clock(begin=0.05)).fetches


def test_what_finds_no_slot_is_fetched_through_a_staging_buffer() -> None:
    for cache in (ExpertCache([0, 0], 8), filled(1)):
        plan = scheduler(FAST_LINK, "fetch").plan_layer(cache, 0, [0, 5], 1, Clock())
        assert plan.fetches[5] is None, "there is none, or the one is in use"


@pytest.mark.parametrize("miss", ["cpu", "auto"])
def test_nothing_is_admitted_while_the_background_is_full(miss: str) -> None:
    cache = ExpertCache([4, 4], 8)  # empty: nobody has to go
    assert not scheduler(SLOW_LINK, miss).plan_layer(cache, 0, [5], 1, Clock(has_room=False)).admissions
    assert set(scheduler(SLOW_LINK, miss).plan_layer(cache, 0, [5], 1, Clock()).admissions) == {5}


def test_more_rows_make_the_cpu_slower_and_copies_worth_it() -> None:
    """Eight rows with arithmetic of a slow CPU: 32 ms an expert, where a copy takes 10."""
    slow = replace(SLOW_LINK, cpu_flops=0.1e12)
    assert not scheduler(slow).plan_layer(filled(2), 0, [5], 1, Clock()).fetches
    assert set(scheduler(slow).plan_layer(filled(2), 0, [5], 8, Clock()).fetches) == {5}


def played(hardware: Hardware, favourites: bool, passes: int = 2000) -> tuple[Scheduler, ExpertCache, int]:
    """Play a layer with 2 slots, all copies at once; return the admissions of the last half."""
    planner, cache, draw, late = scheduler(hardware), filled(2), random.Random(4), 0
    for number in range(passes):
        # Favourites: 6 and 7 most of the time. They are not what the slots begin with.
        needed = [6, 7] if favourites and draw.random() < 0.8 else draw.sample(range(8), 2)
        plan = planner.plan_layer(cache, 0, needed, 1, Clock())
        for slot in plan.hits.values():
            cache.release(0, slot)
        for taken in (*plan.fetches.values(), *plan.admissions.values()):
            if taken is not None:
                cache.finish_load(0, taken)
        late += len(plan.admissions) * (number >= passes // 2)
    return planner, cache, late


def test_favourites_come_in_and_stay() -> None:
    _, cache, late = played(replace(SLOW_LINK, ram_bandwidth=0.0), favourites=True)
    assert all(cache.state(0, expert) is not None for expert in (6, 7))
    assert late < 50, "of 1,000 passes, a fifth of which ask for others"


def test_even_routing_is_not_worth_the_rams_bandwidth() -> None:
    _, _, late = played(replace(SLOW_LINK, ram_bandwidth=0.0), favourites=False)
    assert late < 50, "of 1,000 passes, almost all of which miss"


def test_predicted_experts_are_copied_ahead() -> None:
    for miss in ("cpu", "fetch"):
        assert set(scheduler(SLOW_LINK, miss).plan_prefetch(filled(2), 1, [0, 5, 6], Clock())) == {5}
    assert set(scheduler(FAST_LINK).plan_prefetch(filled(2), 1, [0, 5], Clock())) == {5}
    assert not scheduler(FAST_LINK).plan_prefetch(filled(2), 1, [0, 5], Clock(has_room=False))
    assert not scheduler(FAST_LINK).plan_prefetch(filled(2), 1, [0, 1], Clock())


def test_decisions_follow_the_measurement_when_it_is_far_off_for_long() -> None:
    planner = scheduler(SLOW_LINK)
    assert not planner.plan_layer(filled(4), 0, [5], 1, Clock()).fetches
    for _ in range(3 * OBSERVATIONS):
        assert planner.notice() is None or planner.cost.cpu_seconds(1) > 0.01
        planner.observe_cpu(1, 1, 0.02)  # ten times as long
    assert set(planner.plan_layer(filled(4), 0, [5], 1, Clock()).fetches) == {5}
    assert planner.notice() is None, "said once"


def test_the_line_is_said_once_and_names_the_part() -> None:
    planner = scheduler(SLOW_LINK)
    said = []
    for _ in range(1000):
        planner.observe_copy(100_000_000, 0.05)
        said.append(planner.notice())
    lines = [line for line in said if line is not None]
    assert len(lines) == 1
    assert "copied" in lines[0]


def test_a_hiccup_or_sharing_the_ram_changes_nothing() -> None:
    narrow = replace(SLOW_LINK, copy_bandwidth=50e9, ram_bandwidth=0.0)  # together each gets half
    planner = scheduler(narrow)
    for number in range(1000):
        planner.observe_cpu(1, 1, 0.004 if number % 2 else 0.002)
        planner.observe_copy(100_000_000, 0.004)
        if number % 200 == 0:
            planner.observe_cpu(1, 1, 0.5)
    assert planner.notice() is None
    assert planner.cost.hardware == narrow


def test_without_adapting_decisions_depend_on_the_cost_model_alone() -> None:
    planner = Scheduler(CostModel(SLOW_LINK, MODEL), adapt=False)
    for _ in range(1000):
        planner.observe_cpu(1, 1, 1.0)
    assert planner.notice() is None
    assert planner.cost.hardware == SLOW_LINK


@settings(max_examples=60, deadline=None)
@given(
    miss=st.sampled_from(["auto", "cpu", "fetch"]),
    hardware=st.sampled_from([SLOW_LINK, EVEN_LINK, FAST_LINK]),
    policy=st.sampled_from(["lru", "lfu", "static", "random"]),
    slots=st.integers(0, 8),
    seed=st.integers(0, 999),
)
def test_every_expert_has_one_place_and_slots_agree_with_the_cache(
    miss: str, hardware: Hardware, policy: str, slots: int, seed: int
) -> None:
    """Copies that arrive late and passes of up to four rows."""
    draw = random.Random(seed)
    planner, cache = scheduler(hardware, miss), ExpertCache([slots] * 2, 8, policy, seed=seed)
    under_way: list[tuple[int, int]] = []
    for _ in range(60):
        layer, rows = draw.randrange(2), draw.randint(1, 4)
        needed = list(dict.fromkeys(e for _ in range(rows) for e in draw.sample(range(8), 2)))
        clock = Clock(draw.choice([0.0, 0.01]), {e: draw.random() / 100 for e in range(8)}, draw.random() < 0.7)
        plan = planner.plan_layer(cache, layer, needed, rows, clock)
        assert sorted([*plan.hits, *plan.waits, *plan.fetches, *plan.cpu]) == sorted(needed)
        assert set(plan.admissions) <= set(plan.cpu)
        if not clock.has_room:
            assert not plan.admissions
        for expert, slot in (plan.waits | plan.fetches | plan.admissions).items():
            assert slot is None or cache.state(layer, expert) == (slot, SlotState.LOADING)
        under_way += [(layer, s) for s in (*plan.fetches.values(), *plan.admissions.values()) if s is not None]
        check_cache(cache)
        for slot in plan.hits.values():
            cache.release(layer, slot)
        draw.shuffle(under_way)
        while under_way and draw.random() < 0.6:
            cache.finish_load(*under_way.pop())
    for loading in under_way:
        cache.finish_load(*loading)
    total = cache.counters
    assert all(count.late <= count.misses for count in total)
    check_cache(cache)
