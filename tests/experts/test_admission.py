"""What an admission is worth, measured against routings of which it is known."""

from __future__ import annotations

import random

import pytest

from mixq.experts.admission import SOON, STAY, Ledger
from mixq.experts.cache import ExpertCache


def measured(again: float, weights: list[float], slots: int = 3, passes: int = 6000) -> tuple[Ledger, ExpertCache]:
    """Return a ledger after a layer that reuses each expert with probability `again`, else draws by weight."""
    draw = random.Random(7)
    ledger, cache = Ledger(1, 8), ExpertCache([slots], 8)
    for expert in range(slots):
        slot = cache.begin_load(0, expert)
        assert slot is not None
        cache.finish_load(0, slot)
    last: list[int] = []
    for _ in range(passes):
        chosen = [expert for expert in last if draw.random() < again]
        while len(chosen) < 2:
            expert = draw.choices(range(8), weights)[0]
            if expert not in chosen and (again == 0 or expert not in last):
                chosen.append(expert)
        last = chosen
        ledger.note(cache, 0, chosen)
    return ledger, cache


def test_even_routing_gains_nothing() -> None:
    ledger, cache = measured(0.0, [1.0] * 8)
    assert all(abs(worth.lasting) < 0.5 for worth in ledger.worth(cache, 0, [4, 5, 6, 7]))


def test_reuse_gains_what_theory_says() -> None:
    """Chosen now: 0.39 at the next pass. Not chosen: 2 * 0.61 / 6 = 0.203. The difference shrinks by 0.187 a pass."""
    ledger, cache = measured(0.39, [1.0] * 8)
    gains = [worth.soon for worth in ledger.worth(cache, 0, [4, 5, 6, 7])]
    assert sum(gains) / 4 == pytest.approx((0.39 - 0.61 / 3) / (1 - (0.39 - 0.61 / 3)), abs=0.12)


def test_a_favourite_gains_more_the_longer_it_stays() -> None:
    ledger, cache = measured(0.0, [1, 1, 1, 1, 1, 1, 1, 6.0])
    best, *others = ledger.worth(cache, 0, [4, 5, 6, 7])
    assert best.expert == 7
    assert best.lasting > 0.3 * STAY
    assert best.lasting > best.soon * STAY / SOON / 3
    assert all(other.lasting < 3 for other in others)


def test_a_free_slot_costs_nobody_his_place() -> None:
    ledger = Ledger(1, 8)
    cache = ExpertCache([1], 8)
    ledger.note(cache, 0, [3, 4])
    assert all(worth.soon > 0 and worth.lasting > 0 for worth in ledger.worth(cache, 0, [3, 4]))


def test_no_slot_is_worth_nothing() -> None:
    ledger = Ledger(1, 8)
    cache = ExpertCache([0], 8)
    ledger.note(cache, 0, [3, 4])
    assert [worth.lasting for worth in ledger.worth(cache, 0, [3, 4])] == [0, 0]
    assert ledger.worth(cache, 0, []) == []
