"""An accelerator simulated on the CPU: separate memory, a thread that copies at a set speed, a thread that computes.

Contract: errors that are possible on a GPU are possible here: reading a slot during a copy gives wrong numbers, memory
beyond the budget is refused, released memory is overwritten. It uses the CPU's kernels, so results are bit-identical to
the CPU's. The kernels' memory for activations is counted by `reserve`, not measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from mixq.experts.accelerators.interface import Event, Launch, MemoryAccount, OutOfMemory, Piece
from mixq.kernels.dispatch import Kernels, choose
from mixq.system.huge_pages import allocate

_PIECE = 1 << 20
"""Bytes copied between two readings of the clock."""

_SPOILT = 0xFF
"""Released memory is filled with this: NaN as bfloat16 or float32, and wrong codes and scales."""


class Task:
    """A piece of work: an `Event` and a `Launch`."""

    def __init__(self, future: Future[tuple[Any, tuple[float, float]]]) -> None:
        self._future = future

    def done(self) -> bool:
        if not self._future.done():
            return False
        self.wait()
        return True

    def wait(self) -> None:
        self._future.result()

    def result(self) -> Tensor:
        value = self._future.result()[0]
        assert isinstance(value, Tensor)
        return value

    @property
    def busy(self) -> tuple[float, float]:
        return self._future.result()[1]


class Queue:
    """The equivalent of a GPU's stream: a thread that runs work in order, and ends with `close` or the last reference.

    `wait` raises the errors of the work.
    """

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    def give(self, work: Callable[[], Any]) -> Task:
        return Task(self._thread.submit(_timed, work))

    def close(self) -> None:
        self._thread.shutdown()


def _timed(work: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    begun = time.perf_counter()
    return work(), (begun, time.perf_counter())


class SimulatedAccelerator:
    """An `Accelerator` (`mixq.experts.accelerators.interface`).

    Args:
        budget: bytes of memory.
        threads: of the trunk's kernels, and also of the thread that computes experts.
        bandwidth: of copies, in bytes per second; None does not slow them down.
        latency: seconds added to each copy.
        exact: float32 throughout.
        kernels: creates the kernels, once for the trunk and once for the experts; None: the CPU's.
    """

    registers = False
    captures = False

    def __init__(
        self,
        budget: int,
        *,
        threads: int = 1,
        bandwidth: float | None = None,
        latency: float = 0.0,
        exact: bool = False,
        kernels: Callable[[], Kernels] | None = None,
    ) -> None:
        self.name = "sim"
        self.device = torch.device("cpu")
        self.memory = MemoryAccount(budget)
        make = kernels or (lambda: choose(threads=threads, exact=exact))
        self.kernels: Kernels = make()
        self.bandwidth = bandwidth
        self.latency = latency
        self._own_kernels = make()
        self._copies = Queue("mixq-sim-copies")
        self._work = Queue("mixq-sim-work")

    def rounded(self, nbytes: int) -> int:
        return nbytes

    def allocate(self, nbytes: int) -> Tensor:
        self.reserve(nbytes)
        return allocate(nbytes)

    def release(self, memory: Tensor) -> None:
        memory.fill_(_SPOILT)
        self.memory.add(-memory.nbytes)

    def reserve(self, nbytes: int) -> None:
        if nbytes > self.memory.free:
            raise OutOfMemory(nbytes, self.memory.free)
        self.memory.add(nbytes)

    def host_rows(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    def register(self, memory: Tensor) -> bool:
        return False

    def upload(self, target: Tensor, source: Tensor) -> Event:
        return self._copies.give(lambda: self._copy(target, source))

    def take_away(self, nbytes: int) -> None:
        """Lower the budget, as if another program had used memory."""
        self.memory.budget -= nbytes

    def _check(self) -> None:
        if self.memory.free < 0:
            raise OutOfMemory(0, self.memory.free)

    def launch(self, work: Callable[[Kernels], Tensor]) -> Launch:
        self._check()
        return self._work.give(lambda: _run(work, self._own_kernels))

    def capture(self, work: Callable[[], None]) -> Piece:
        return _Captured(work)

    def to_host(self, source: Tensor, target: Tensor) -> None:
        target.copy_(source)

    def hand_over(self) -> Event:
        return _Done()

    def to_device(self, source: Tensor) -> Tensor:
        self._check()
        return source.clone()

    def synchronize(self) -> None:
        self._copies.give(lambda: None).wait()
        self._work.give(lambda: None).wait()

    def close(self) -> None:
        self._copies.close()
        self._work.close()

    def _copy(self, target: Tensor, source: Tensor) -> None:
        begun = time.perf_counter()
        for start in range(0, len(source), _PIECE):
            end = min(start + _PIECE, len(source))
            target[start:end].copy_(source[start:end])
            if self.bandwidth is not None:
                _sleep_until(begun + end / self.bandwidth)
        if self.latency:
            _sleep_until(time.perf_counter() + self.latency)


class _Captured:
    """Calls the work again, like a CUDA graph."""

    def __init__(self, work: Callable[[], None]) -> None:
        work()
        self.replay = work


class _Done:
    """An `Event` that is done."""

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        pass


@torch.inference_mode()
def _run(work: Callable[[Kernels], Tensor], kernels: Kernels) -> Tensor:
    return work(kernels)


def _sleep_until(moment: float) -> None:
    left = moment - time.perf_counter()
    if left > 0:
        time.sleep(left)
