"""Slots shared among layers: the most hits there can be, against trying everything; curves against the cache itself."""

from __future__ import annotations

import random
from itertools import accumulate, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixq.experts.policies import Belady, Lru
from mixq.experts.quota import even, fit, hit_curve
from mixq.experts.routing import draw_trace, parse_routing

EXPERTS = 4


def rising(steps: list[int]) -> list[int]:
    return list(accumulate(steps, initial=0))


curves = st.lists(st.lists(st.integers(0, 9), min_size=EXPERTS, max_size=EXPERTS).map(rising), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(curves=curves, total=st.integers(0, 20))
def test_no_other_way_to_share_has_more_hits(curves: list[list[int]], total: int) -> None:
    quotas = fit(curves, total)
    assert len(quotas) == len(curves)
    assert sum(quotas) == min(total, EXPERTS * len(curves)), "memory left unused"
    best = max(
        sum(curve[k] for curve, k in zip(curves, shares, strict=True))
        for shares in product(range(EXPERTS + 1), repeat=len(curves))
        if sum(shares) <= total
    )
    assert sum(curve[k] for curve, k in zip(curves, quotas, strict=True)) == best


def test_a_step_behind_a_plateau_is_found() -> None:
    """Where taking the best next slot, one at a time, would go wrong."""
    assert fit([[0, 0, 10], [0, 4, 8]], 2) == [2, 0]


@given(total=st.integers(0, 40), layers=st.integers(1, 6))
def test_even_shares_differ_by_one_at_most(total: int, layers: int) -> None:
    quotas = even(total, layers, 5)
    assert len(quotas) == layers
    assert sum(quotas) == min(total, layers * 5)
    assert max(quotas) - min(quotas) <= 1
    assert max(quotas) <= 5


def test_what_does_not_divide_goes_to_the_first_layers() -> None:
    assert even(8, 3, 8) == [3, 3, 2]
    assert even(2, 3, 8) == [1, 1, 0]


def test_no_slots_and_more_slots_than_experts() -> None:
    assert even(0, 3, 8) == fit([[0, 5, 6]] * 3, 0) == [0, 0, 0]
    assert even(99, 3, 2) == fit([[0, 5, 6]] * 3, 99) == [2, 2, 2]


def test_layers_may_have_curves_of_different_lengths() -> None:
    assert fit([[0, 1], [0, 2, 4, 6], [0, 5, 5]], 4) == [0, 3, 1]
    assert fit([[0, 1], [0, 2, 4, 6], [0, 5, 5]], 9) == [1, 3, 2]


def passes(routing: str, tokens: int) -> list[tuple[int, ...]]:
    shape = {"layers": 1, "experts": 8, "active": 2}
    return [token[0] for token in draw_trace(parse_routing(routing, **shape, seed=5), tokens, **shape).tokens]


def test_an_lru_curve_is_that_of_the_cache() -> None:
    """One expert a pass leaves nothing to the order within a pass: the two must agree to the last hit."""
    draw = random.Random(1)
    trace = [(min(draw.randrange(8), draw.randrange(8)),) for _ in range(3000)]
    in_one_go = hit_curve(trace, 8)
    assert in_one_go[0] == 0
    assert in_one_go[8] == 3000 - 8
    assert hit_curve(trace, 8, lambda layer, quota: Lru()) == in_one_go


@pytest.mark.parametrize("routing", ["uniform", "sticky:0.39", "mixtral"])
def test_with_two_experts_a_pass_the_lru_curve_is_close_to_the_caches(routing: str) -> None:
    """What was loaded counts as used after what was there; and one slot that is read cannot be taken by the other."""
    trace = passes(routing, 4000)
    ours, caches = hit_curve(trace, 8), hit_curve(trace, 8, lambda layer, quota: Lru())
    apart = [abs(a - b) / (2 * len(trace)) for a, b in zip(ours, caches, strict=True)]
    assert max(apart) <= 0.025
    assert max(apart[2:]) <= 0.01


def test_curves_of_other_policies() -> None:
    trace = passes("mixtral", 2000)
    curves = {name: hit_curve(trace, 8, name) for name in ("lru", "lfu", "static", "random")}
    curves["belady"] = hit_curve(trace, 8, lambda layer, quota: Belady(trace))
    for name, curve in curves.items():
        assert len(curve) == 9
        assert curve[0] == 0
        assert curve[8] == 4000 - 8
        # `static` lets some experts pass by, which can be better with one slot than the best that lets all of them in.
        assert name == "static" or all(a <= b for a, b in zip(curve, curves["belady"], strict=True)), name
    uses = sorted((sum(expert in needed for needed in trace) for expert in range(8)), reverse=True)
    assert curves["static"][3] == sum(uses[:3]) - 3, "the three that are used most, less their first uses"
