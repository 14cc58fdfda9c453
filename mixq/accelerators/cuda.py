"""The first CUDA GPU: PyTorch's streams, events and allocator behind the accelerator's interface.

Contract: the network's work goes to the current stream, copies to a stream of their own; the host waits only where it
is asked to. Uploads from memory that was registered go straight to the card; others pass through a pinned ring of two
chunks, since a copy from pageable memory would hold up the thread. Memory beyond the promise is refused by PyTorch's
own limit as well as by the account, which also has what the driver takes for the process.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from mixq.accelerators.interface import Event, Launch, MemoryAccount, OutOfMemory
from mixq.kernels.dispatch import Kernels

DRIVER_BYTES = 512 << 20
"""What a process takes of a card besides its tensors: context, kernels, library workspaces."""

RING = 2
_RING_BYTES = 4 << 20


class CudaAccelerator:
    """See `mixq.accelerators.interface.Accelerator`.

    Args:
        promised: bytes that the process may take, those of the driver included; None for what is free less a margin.
        kernels: compute on the card; made by the caller, who knows what it can do.
    """

    registers = True

    def __init__(self, promised: int | None, kernels: Kernels) -> None:
        self.name = "cuda"
        self.device = torch.device("cuda", 0)
        self.kernels = kernels
        free, total = torch.cuda.mem_get_info(self.device)
        self.memory = MemoryAccount(min(free if promised is None else promised, total))
        torch.cuda.set_per_process_memory_fraction(
            max(0.0, min(1.0, (self.memory.promised - DRIVER_BYTES) / total)), self.device
        )
        self.reserve(DRIVER_BYTES)
        self._copies = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._ring = [torch.empty(_RING_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(RING)]
        self._ring_free: list[torch.cuda.Event | None] = [None] * RING
        self._ring_next = 0
        self._registered: list[Tensor] = []
        self._clock = _event(enable_timing=True)
        self._clock.record()
        self._clock.synchronize()
        self._clock_at = time.perf_counter()

    def allocate(self, nbytes: int) -> Tensor:
        self.reserve(nbytes)
        try:
            return torch.empty(nbytes, dtype=torch.uint8, device=self.device)
        except torch.OutOfMemoryError as error:
            self.memory.add(-nbytes)
            raise OutOfMemory(nbytes, torch.cuda.mem_get_info(self.device)[0]) from error

    def release(self, memory: Tensor) -> None:
        """Give memory back to the driver too, so that other programs can have it."""
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
        """Lock memory in place for direct copies; the driver refuses what is more than the system lets it lock."""
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        if int(runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)) != 0:
            return False
        self._registered.append(memory)
        return True

    def upload(self, target: Tensor, source: Tensor) -> Event:
        with torch.cuda.stream(self._copies):
            if not source.is_pinned():
                source = self._through_ring(source)
            target.copy_(source, non_blocking=True)
            event = _event()
            event.record(self._copies)
        if source.data_ptr() in self._ring_addresses:
            self._ring_free[self._ring_addresses.index(source.data_ptr())] = event
        return CudaEvent(event)

    def launch(self, work: Callable[[Kernels], Tensor]) -> Launch:
        begin, end = (_event(enable_timing=True) for _ in range(2))
        begin.record()
        value = work(self.kernels)
        end.record()
        return CudaLaunch(value, begin, end, self)

    def to_host(self, source: Tensor, target: Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def hand_over(self) -> Event:
        event = _event()
        event.record()
        return CudaEvent(event)

    def to_device(self, source: Tensor) -> Tensor:
        # PyTorch keeps the pinned copy until the card has read it.
        return source.pin_memory().to(self.device, non_blocking=True)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def close(self) -> None:
        self.synchronize()
        while self._registered:
            torch.cuda.cudart().cudaHostUnregister(self._registered.pop().data_ptr())  # type: ignore[no-untyped-call]

    def moment(self, event: torch.cuda.Event) -> float:
        """Return when an event was, on `time.perf_counter`'s clock."""
        return self._clock_at + float(self._clock.elapsed_time(event)) / 1e3

    @property
    def _ring_addresses(self) -> list[int]:
        return [buffer.data_ptr() for buffer in self._ring]

    def _through_ring(self, source: Tensor) -> Tensor:
        """Return a pinned copy of a chunk, in the ring's next buffer once the card has read that."""
        if len(source) > _RING_BYTES:
            raise ValueError(f"a chunk has at most {_RING_BYTES} bytes")
        index = self._ring_next
        self._ring_next = (index + 1) % RING
        busy = self._ring_free[index]
        if busy is not None:
            busy.synchronize()
        pinned = self._ring[index][: len(source)]
        pinned.copy_(source)
        return pinned


def _event(*, enable_timing: bool = False) -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=enable_timing)  # type: ignore[no-untyped-call]


class CudaEvent:
    """See `mixq.accelerators.interface.Event`."""

    def __init__(self, event: torch.cuda.Event) -> None:
        self._event = event

    def done(self) -> bool:
        return bool(self._event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        self._event.synchronize()


class CudaLaunch(CudaEvent):
    """See `mixq.accelerators.interface.Launch`."""

    def __init__(
        self, value: Tensor, begin: torch.cuda.Event, end: torch.cuda.Event, accelerator: CudaAccelerator
    ) -> None:
        super().__init__(end)
        self._value: Tensor | None = value
        self._begin, self._end = begin, end
        self._accelerator = accelerator

    def result(self) -> Tensor:
        assert self._value is not None, "a result is taken once"
        value, self._value = self._value, None
        return value

    @property
    def busy(self) -> tuple[float, float]:
        return self._accelerator.moment(self._begin), self._accelerator.moment(self._end)
