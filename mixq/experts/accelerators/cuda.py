"""The first CUDA GPU: PyTorch's streams, events and allocator, with the accelerator's interface.

Contract: the network's work goes to the current stream, copies to a separate one; the host waits only in `Event.wait`
and `synchronize`. Uploads from registered memory go directly to the GPU; others go through a pinned ring of two chunks,
since a copy from pageable memory would block the thread. Memory beyond the budget is refused by PyTorch's limit and by
`MemoryAccount`, which includes the driver's memory for the process.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable

import torch
from torch import Tensor

from mixq.experts.accelerators.interface import Event, Launch, MemoryAccount, OutOfMemory, Piece
from mixq.kernels.dispatch import Kernels

DRIVER_BYTES = 512 << 20
"""GPU memory of a process besides its tensors: context, kernels, library workspaces."""

_RING = 2
_RING_BYTES = 4 << 20

_WARM_UPS = 2

_LARGE = 10 << 20
_LARGE_STEP = 2 << 20
_SMALL_STEP = 512
"""PyTorch's allocator asks the driver for large memory in steps of 2 MiB; smaller pieces share a block."""


class CudaAccelerator:
    """An `Accelerator` (`mixq.experts.accelerators.interface`).

    Args:
        budget: bytes that the process may use, including the driver's; at most the free memory, which is the
            default.
        kernels: for the GPU.
    """

    registers = True
    captures = True

    def __init__(self, budget: int | None, kernels: Kernels) -> None:
        self.name = "cuda"
        self.device = torch.device("cuda", 0)
        self.kernels = kernels
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.device)
        self.memory = MemoryAccount(free if budget is None else min(budget, free))
        torch.cuda.set_per_process_memory_fraction(
            max(0.0, min(1.0, (self.memory.budget - DRIVER_BYTES) / total)), self.device
        )
        self.memory.add(DRIVER_BYTES)
        self._copies = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._ring = [torch.empty(_RING_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(_RING)]
        self._ring_free: list[torch.cuda.Event | None] = [None] * _RING
        self._ring_next = 0
        self._last_graph: weakref.ref[torch.cuda.CUDAGraph] | None = None
        self._registered: list[Tensor] = []
        # If registered memory is unmapped, it stays locked, and its addresses cannot be registered again.
        weakref.finalize(self, _unregister, self._registered).atexit = False
        self._clock = _event(enable_timing=True)
        self._clock.record()
        self._clock.synchronize()
        self._clock_at = time.perf_counter()

    def rounded(self, nbytes: int) -> int:
        step = _LARGE_STEP if nbytes >= _LARGE else _SMALL_STEP
        return -(-nbytes // step) * step

    def allocate(self, nbytes: int) -> Tensor:
        self.reserve(nbytes)
        try:
            memory = torch.empty(nbytes, dtype=torch.uint8, device=self.device)
        except torch.OutOfMemoryError as error:
            self.memory.add(-nbytes)
            raise OutOfMemory(nbytes, 0) from error
        # PyTorch may reuse memory of running work, in order with that work; copies are not in that order.
        torch.cuda.current_stream(self.device).synchronize()
        return memory

    def release(self, memory: Tensor) -> None:
        """Return memory to the driver too, so that other programs can use it."""
        self.memory.add(-memory.nbytes)
        memory.untyped_storage().resize_(0)
        torch.cuda.empty_cache()

    def reserve(self, nbytes: int) -> None:
        if nbytes > self.memory.free:
            raise OutOfMemory(nbytes, self.memory.free)
        self.memory.add(nbytes)

    def host_rows(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def register(self, memory: Tensor) -> bool:
        """Lock memory in place for direct copies; the driver refuses more than the system allows to lock."""
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        if int(runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)) != 0:
            # The driver keeps the error, and the next call would fail with it.
            with contextlib.suppress(RuntimeError):
                torch.ones(1, device=self.device)
            return False
        self._registered.append(memory)
        return True

    def upload(self, target: Tensor, source: Tensor) -> Event:
        with torch.cuda.stream(self._copies):
            if source.is_pinned():
                target.copy_(source, non_blocking=True)
            else:
                self._through_ring(target, source)
            event = _event()
            event.record(self._copies)
        return CudaEvent(event)

    def launch(self, work: Callable[[Kernels], Tensor]) -> Launch:
        begin, end = (_event(enable_timing=True) for _ in range(2))
        begin.record()
        value = work(self.kernels)
        end.record()
        return CudaLaunch(value, begin, end, self)

    def capture(self, work: Callable[[], None]) -> Piece:
        last = None if self._last_graph is None else self._last_graph()
        graph = _cuda_graph(work, last)
        self._last_graph = weakref.ref(graph)
        return graph

    def to_host(self, source: Tensor, target: Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def hand_over(self) -> Event:
        event = _event()
        event.record()
        return CudaEvent(event)

    def to_device(self, source: Tensor) -> Tensor:
        # Always copied, pinned or not; PyTorch keeps the copy until the GPU has read it.
        return torch.empty_like(source, pin_memory=True).copy_(source).to(self.device, non_blocking=True)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def close(self) -> None:
        self.synchronize()
        _unregister(self._registered)

    def moment(self, event: torch.cuda.Event) -> float:
        """Return the time of an event on `time.perf_counter`'s clock."""
        return self._clock_at + float(self._clock.elapsed_time(event)) / 1e3

    def _through_ring(self, target: Tensor, source: Tensor) -> None:
        """Copy through the ring's buffers; each is reused when the GPU has read it."""
        for start in range(0, len(source), _RING_BYTES):
            chunk = source[start : start + _RING_BYTES]
            index = self._ring_next
            self._ring_next = (index + 1) % _RING
            busy = self._ring_free[index]
            if busy is not None:
                busy.synchronize()
            pinned = self._ring[index][: len(chunk)]
            pinned.copy_(chunk)
            target[start : start + len(chunk)].copy_(pinned, non_blocking=True)
            event = self._ring_free[index] = _event()
            event.record(self._copies)


def _unregister(registered: list[Tensor]) -> None:
    while registered:
        torch.cuda.cudart().cudaHostUnregister(registered.pop().data_ptr())  # type: ignore[no-untyped-call]


def _event(*, enable_timing: bool = False) -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=enable_timing)  # type: ignore[no-untyped-call]


class CudaEvent:
    """An `Event`."""

    def __init__(self, event: torch.cuda.Event) -> None:
        self._event = event

    def done(self) -> bool:
        return bool(self._event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        self._event.synchronize()


class CudaLaunch(CudaEvent):
    """A `Launch`."""

    def __init__(
        self, value: Tensor, begin: torch.cuda.Event, end: torch.cuda.Event, accelerator: CudaAccelerator
    ) -> None:
        super().__init__(end)
        self._value: Tensor | None = value
        self._begin, self._end = begin, end
        self._accelerator = accelerator

    def result(self) -> Tensor:
        assert self._value is not None, "a result can be taken only once"
        value, self._value = self._value, None
        return value

    @property
    def busy(self) -> tuple[float, float]:
        return self._accelerator.moment(self._begin), self._accelerator.moment(self._end)


def _cuda_graph(work: Callable[[], None], beside: torch.cuda.CUDAGraph | None) -> torch.cuda.CUDAGraph:
    """Run some work, and return it as a CUDA graph.

    Args:
        beside: a graph with which to share memory for intermediates, since the two never run at once; separate blocks
            of 20 MiB for each layer would need more memory than planned.

    PyTorch requires a few runs before capturing (to compile kernels and allocate workspaces), on a stream other than
    the default one, where nothing else runs; other threads' copies are not affected.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    pool = None if beside is None else beside.pool()
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        work()
    graph.replay()  # capturing does not run it
    return graph
