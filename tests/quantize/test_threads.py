"""Reading ahead: order, errors at their turn, and that the next is under way while one is used."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mixq.quantize.threads import one_ahead


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_everything_comes_in_order(count: int) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert list(one_ahead(lambda x: x * x, range(count), pool)) == [x * x for x in range(count)]


def test_the_next_is_made_while_one_is_used_and_no_further_one() -> None:
    begun = {x: threading.Event() for x in range(5)}
    with ThreadPoolExecutor(1) as pool:
        made = one_ahead(lambda x: begun[x].set() or x, range(5), pool)
        assert next(made) == 0
        assert begun[1].wait(10)
        assert not begun[2].is_set()
        assert next(made) == 1
        assert begun[2].wait(10)
        assert not begun[3].is_set()


def test_an_error_comes_when_its_turn_has_come() -> None:
    with ThreadPoolExecutor(1) as pool:
        made = one_ahead(lambda x: 6 // x, (3, 2, 0, 1), pool)
        assert [next(made), next(made)] == [2, 3]
        with pytest.raises(ZeroDivisionError):
            next(made)
