"""A client that goes away frees its work at once, and nobody else notices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import mixq
from tests.server import hang_ups
from tests.server.running import Gate, Running, running, wait_until

TIMES = 10


@pytest.fixture(scope="module")
def gated(tiny: Path) -> Iterator[tuple[Running, Gate]]:
    model = mixq.load(tiny, context=2048, sequences=2)
    gate = Gate(model)
    with running(model, queue=16) as server:
        yield server, gate


@pytest.fixture
def unchanged(gated: tuple[Running, Gate]) -> Iterator[None]:
    """What a test leaves behind: nothing."""
    server, _ = gated
    hang_ups.ask(server, hang_ups.SHORT)
    cancelled = server.state().finished.get("cancelled", 0)
    before = hang_ups.handles()
    answer = hang_ups.ask(server, hang_ups.LONG)
    yield
    assert server.idle()
    assert not server.host._live
    assert server.state().finished["cancelled"] == cancelled + TIMES
    assert hang_ups.ask(server, hang_ups.LONG) == answer
    wait_until(lambda: all(now <= then for now, then in zip(hang_ups.handles(), before, strict=True)))


@pytest.mark.usefixtures("unchanged")
def test_while_the_answer_comes(gated: tuple[Running, Gate]) -> None:
    assert max(hang_ups.in_decode(*gated, TIMES)) <= 2


@pytest.mark.usefixtures("unchanged")
def test_while_the_prompt_runs(gated: tuple[Running, Gate]) -> None:
    assert max(hang_ups.in_prefill(*gated, TIMES)) <= 1


@pytest.mark.usefixtures("unchanged")
def test_while_others_are_answered(gated: tuple[Running, Gate]) -> None:
    server, gate = gated
    alone = [hang_ups.ask(server, [*hang_ups.SHORT, 8 + i]) for i in range(2)]
    assert hang_ups.in_queue(server, gate, TIMES) == alone


def test_one_of_a_batch_does_not_disturb_the_other(gated: tuple[Running, Gate]) -> None:
    server, gate = gated
    alone = hang_ups.ask(server, hang_ups.LONG)
    gate.close()
    client = server.begin(hang_ups.PATH, hang_ups._endless(hang_ups.SHORT, True))
    gate.wait()
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(hang_ups.ask, server, hang_ups.LONG)
        wait_until(lambda: server.state().running == 2 or server.state().queued == 1)
        gate.let(3)
        client.close()
        wait_until(lambda: len(server.host._live) == 1)
        gate.open()
        assert other.result() == alone
    wait_until(server.idle)
