"""Slots shared among layers: the most hits there can be, against trying everything."""

from __future__ import annotations

from itertools import accumulate, product

from hypothesis import given, settings
from hypothesis import strategies as st

from mixq.experts.quota import even, fits

EXPERTS = 4


def fit(curves: list[list[int]], total: int) -> list[int]:
    (quotas,) = fits(curves, [total])
    return quotas


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
