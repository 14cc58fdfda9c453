"""Uploads: whole and in order, demanded ones before the rest, and what the scheduler is told of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mixq.experts.accelerators.simulated import SimulatedAccelerator, Task
from mixq.experts.scheduler import CHUNK
from mixq.experts.store import Piece
from mixq.experts.transfer import Uploader

SIZE = 3 * CHUNK // 2  # two chunks


class Gate(SimulatedAccelerator):
    """Copies only when it is told to, and notes the order."""

    def __init__(self) -> None:
        super().__init__(1 << 30)
        self.open = threading.Semaphore(0)
        self.order: list[int] = []

    def _copy(self, target: Tensor, source: Tensor) -> None:
        self.open.acquire()
        self.order.append(int(source[0]))
        super()._copy(target, source)


def piece(mark: int, size: int = SIZE) -> list[Piece]:
    return [Piece(0, torch.full((size,), mark, dtype=torch.uint8))]


@pytest.fixture
def gate() -> Any:
    accelerator = Gate()
    yield accelerator
    accelerator.open.release(1000)
    accelerator.close()


def test_what_has_arrived_is_whole_and_named_once() -> None:
    sim = SimulatedAccelerator(1 << 30)
    uploader = Uploader(sim, 1e9)
    memory = sim.allocate(SIZE + 100)
    pieces = [
        Piece(0, torch.full((SIZE,), 7, dtype=torch.uint8)),
        Piece(SIZE, torch.full((100,), 8, dtype=torch.uint8)),
    ]
    upload = uploader.start((2, 5), 1, memory, pieces, demanded=True)
    assert uploader.under_way(2, 5) is upload
    upload.wait()
    assert (memory[:SIZE] == 7).all()
    assert (memory[SIZE:] == 8).all()
    assert [(done.key, done.slot) for done in uploader.finished()] == [((2, 5), 1)]
    assert uploader.finished() == []
    assert uploader.under_way(2, 5) is None
    assert uploader.link.nbytes == SIZE + 100
    uploader.close()
    sim.close()


def test_a_demanded_upload_passes_the_rest_of_a_background_one(gate: Gate) -> None:
    uploader = Uploader(gate, 1e9)
    slow = uploader.start((0, 1), 0, gate.allocate(5 * CHUNK), piece(1, 5 * CHUNK), demanded=False)
    while not slow.begun:
        time.sleep(0.001)
    waiting = uploader.start((0, 2), 1, gate.allocate(SIZE), piece(2), demanded=False)
    urgent = uploader.start((0, 3), 2, gate.allocate(SIZE), piece(3), demanded=True)
    gate.open.release(1000)
    for upload in (slow, waiting, urgent):
        upload.wait()
    assert gate.order[:2].count(1) >= 1, "chunks that had been given were not taken back"
    last_urgent, last_slow = len(gate.order) - gate.order[::-1].index(3), len(gate.order) - gate.order[::-1].index(1)
    assert last_urgent < last_slow
    assert gate.order[-2:] == [2, 2]
    uploader.close()


def test_background_becomes_demanded_and_what_has_not_begun_is_taken_back(gate: Gate) -> None:
    uploader = Uploader(gate, 1e6)
    first = uploader.start((0, 1), 0, gate.allocate(4 * CHUNK), piece(1, 4 * CHUNK), demanded=False)
    while not first.begun:
        time.sleep(0.001)
    second = uploader.start((0, 2), 1, gate.allocate(SIZE), piece(2), demanded=False)
    assert not uploader.room()
    assert uploader.demand_seconds() == 0
    uploader.demand(second)
    assert uploader.room()
    assert uploader.demand_seconds() == pytest.approx(SIZE / 1e6, rel=0.7)
    assert uploader.remaining_seconds(0, 2) <= SIZE / 1e6
    third = uploader.start((0, 3), 2, gate.allocate(SIZE), piece(3), demanded=False)
    assert uploader.cancel_waiting() == [third]
    assert uploader.under_way(0, 3) is None
    gate.open.release(1000)
    uploader.drain()
    assert {upload.key for upload in uploader.finished()} == {(0, 1), (0, 2)}
    uploader.close()


def test_an_upload_after_an_event_waits_for_it() -> None:
    sim = SimulatedAccelerator(1 << 30)
    uploader = Uploader(sim, 1e9)
    memory, may = sim.allocate(SIZE), threading.Event()
    memory.zero_()
    reader = sim.launch(lambda _: (may.wait(), memory.clone())[1])
    upload = uploader.start((0, 0), None, memory, piece(9), demanded=True, after=reader)
    may.set()
    assert not reader.result().any(), "it was read before it was overwritten"
    upload.wait()
    assert (memory == 9).all()
    assert uploader.finished() == [], "without a slot it is the caller's"
    uploader.close()
    sim.close()


def broken_copy(_: Tensor, __: Tensor) -> None:
    raise RuntimeError("the link is down")


def broken_upload(_: Tensor, __: Tensor) -> Task:
    raise RuntimeError("the link is down")


@pytest.mark.parametrize(("method", "replacement"), [("_copy", broken_copy), ("upload", broken_upload)])
def test_an_error_reaches_whoever_waits_and_the_thread_lives_on(
    monkeypatch: pytest.MonkeyPatch, method: str, replacement: Callable[[Tensor, Tensor], Any]
) -> None:
    sim = SimulatedAccelerator(1 << 30)
    uploader = Uploader(sim, 1e9)
    with monkeypatch.context() as patch:
        patch.setattr(sim, method, replacement)
        failing = uploader.start((0, 0), 0, sim.allocate(SIZE), piece(1), demanded=True)
        with pytest.raises(RuntimeError, match="link is down"):
            failing.wait()
    good = uploader.start((0, 1), 1, sim.allocate(SIZE), piece(2), demanded=True)
    good.wait()
    uploader.close()
    sim.close()
