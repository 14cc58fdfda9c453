"""Which expert leaves memory: never one in use, and the one whose use lies back furthest when it counts."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mixq.experts.residents import Residents

LAYERS, EXPERTS = 4, 4


def filled(budget: int, passes: list[list[list[int]]]) -> Residents:
    """Return what is there after passes [pass][layer][experts], each expert of one byte."""
    residents = Residents(LAYERS, budget)
    for layers in passes:
        for layer, experts in enumerate(layers):
            residents.use(layer, experts)
            for expert in experts:
                if (layer, expert) not in residents:
                    residents.admit((layer, expert), 1, demanded=True)
    return residents


def test_nothing_leaves_while_there_is_room() -> None:
    residents = filled(8, [[[0, 1], [0, 1], [0, 1], [0, 1]]])
    assert len(residents) == residents.taken == 8


def test_the_longest_unused_leaves_first() -> None:
    residents = filled(5, [[[0], [0], [0], [0]], [[1], [0], [0], [0]]])
    residents.use(0, [2])
    assert residents.admit((0, 2), 1, demanded=True) == [(0, 0)]


def test_of_equals_the_one_whose_layer_comes_last_leaves() -> None:
    """Plain recency would throw out layer 2, which is needed next, instead of layer 0, which was just used."""
    residents = filled(4, [[[0], [0], [0], [0]]])
    residents.use(0, [0])
    residents.use(1, [1])
    assert residents.admit((1, 1), 1, demanded=True) == [(1, 0)]  # not used this time, and its layer comes last
    residents.use(2, [1])
    assert residents.admit((2, 1), 1, demanded=True) == [(2, 0)]
    residents.use(3, [0, 1])
    assert residents.admit((3, 1), 1, demanded=True) == [(2, 1)]


def test_what_is_expected_stays() -> None:
    residents = filled(4, [[[0], [0], [0], [0]]])
    residents.expect(1, [0])
    residents.expect(2, [0])
    residents.expect(3, [0])
    residents.use(0, [1])
    assert residents.admit((0, 1), 1, demanded=True) == [(0, 0)]


def test_what_is_only_expected_displaces_nothing_that_is_as_likely() -> None:
    residents = filled(2, [[[0], [], [], []]])
    residents.use(0, [0, 1])
    assert residents.admit((0, 1), 1, demanded=True) == []
    residents.expect(1, [0])
    assert residents.admit((1, 0), 1, demanded=False) is None  # both are in use
    assert (1, 0) not in residents
    residents.use(1, [])
    residents.expect(2, [0])
    assert residents.admit((2, 0), 1, demanded=False) == [(0, 0)] or (0, 1) not in residents


def test_a_vain_expectation_is_named_and_forgotten() -> None:
    residents = filled(4, [[[0], [0], [0], [0]]])
    residents.expect(1, [0, 3])
    residents.use(0, [0])
    assert residents.use(1, [0]) == [(1, 3)]
    assert residents.use(2, [0]) == []


def test_an_expectation_holds_for_one_pass() -> None:
    residents = filled(4, [[[0], [0], [0], [0]]])
    residents.expect(0, [0])
    assert residents.use(0, [1]) == [(0, 0)]
    assert residents.admit((0, 1), 1, demanded=True) == [(0, 0)]


def test_a_demand_beyond_the_budget_is_taken_in() -> None:
    residents = Residents(1, 2)
    residents.use(0, [0, 1, 2])
    assert [residents.admit((0, expert), 1, demanded=True) for expert in range(3)] == [[], [], []]
    assert residents.taken == 3


def test_a_scan_of_everything_keeps_a_part() -> None:
    """A prompt uses all experts of every layer: recency would have no hit at all."""
    scan = [[0, 1, 2, 3]] * LAYERS
    residents = filled(12, [scan, scan])
    hits = 0
    for layer, experts in enumerate(scan):
        residents.use(layer, experts)
        for expert in experts:
            hits += (layer, expert) in residents
            if (layer, expert) not in residents:
                residents.admit((layer, expert), 1, demanded=True)
    assert hits >= 8


def test_an_expert_comes_in_pieces_and_goes_as_a_whole() -> None:
    residents = Residents(2, 10)
    for _ in range(3):
        assert residents.admit((0, 0), 3, demanded=False) == []
    residents.use(1, [0])
    assert residents.admit((1, 0), 1, demanded=True) == []
    assert residents.taken == 10
    assert residents.admit((1, 0), 1, demanded=True) == [(0, 0)]
    assert residents.taken == 2


@settings(max_examples=200, deadline=None)
@given(
    st.integers(2, 10),
    st.lists(
        st.tuples(st.booleans(), st.integers(0, LAYERS - 1), st.sets(st.integers(0, 3), max_size=2), st.integers(1, 3)),
        max_size=60,
    ),
)
def test_bytes_are_counted_and_those_in_use_stay(budget: int, steps: list[tuple[bool, int, set[int], int]]) -> None:
    residents = Residents(LAYERS, budget)
    held: dict[tuple[int, int], int] = {}
    in_use: set[tuple[int, int]] = set()
    for demanded, layer, experts, nbytes in steps:
        if demanded:
            in_use = {(layer, expert) for expert in experts}
            residents.use(layer, experts)
        else:
            residents.expect(layer, experts)
        for key in [(layer, expert) for expert in experts]:
            leaving = residents.admit(key, nbytes, demanded=demanded)
            if leaving is not None:
                assert not set(leaving) & (in_use | {key})
                for other in leaving:
                    del held[other]
                held[key] = held.get(key, 0) + nbytes
                assert demanded or residents.taken <= budget
            else:
                assert not demanded
            assert len(residents) == len(held)
            assert all(key in residents for key in held)
            assert residents.taken == sum(held.values())
