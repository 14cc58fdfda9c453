"""The interface of an accelerator: its memory, copies to it, and work on it, all asynchronous.

Contract: two queues that do not wait for each other, one for copies and one for work, each in order. The caller must
synchronize them: computing on memory during a copy gives wrong numbers. `simulated` has threads as queues and separate
host memory, `cuda` has streams and a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from mixq.kernels.dispatch import Kernels


class Event(Protocol):
    """A point in one of the queues."""

    def done(self) -> bool:
        """Return whether everything before it is done; raise its error."""

    def wait(self) -> None:
        """Return once everything before it is done; raise its error."""


class Launch(Event, Protocol):
    """Work that was queued on the accelerator."""

    def result(self) -> Tensor:
        """Return the result of the work; later operations on the accelerator can use it at once."""

    @property
    def busy(self) -> tuple[float, float]:
        """Start and end of the work on `time.perf_counter`'s clock, when it is done."""


class Piece(Protocol):
    """Captured work."""

    def replay(self) -> None:
        """Run it again on the current contents of its inputs."""


class MemoryAccount:
    """The memory budget, and how much of it is used.

    Attributes:
        budget: most bytes that may be used.
        taken, peak: bytes used now, and the most so far.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.taken = 0
        self.peak = 0

    @property
    def free(self) -> int:
        """Bytes that may still be used."""
        return self.budget - self.taken

    def add(self, nbytes: int) -> None:
        """Count allocated bytes; with a negative number, released ones."""
        self.taken += nbytes
        self.peak = max(self.peak, self.taken)


class Accelerator(Protocol):
    """One device."""

    name: str  # `sim`, or the GPU's name
    device: torch.device  # of its tensors
    kernels: Kernels  # compute on its memory, called by the thread that runs the network
    memory: MemoryAccount  # budget and use
    registers: bool  # whether `register` makes copies faster
    captures: bool  # whether `capture` saves time

    def rounded(self, nbytes: int) -> int:
        """Return the bytes that an allocation of `nbytes` uses."""

    def allocate(self, nbytes: int) -> Tensor:
        """Return uint8 [nbytes] of the device's memory, not cleared, aligned to 256 bytes.

        Raises:
            OutOfMemory: the budget or the device's memory is too small.
        """

    def release(self, memory: Tensor) -> None:
        """Free the result of `allocate`. No queue may use it any more."""

    def reserve(self, nbytes: int) -> None:
        """Count memory that kernels allocate (activations, workspaces); OutOfMemory as in `allocate`."""

    def host_rows(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Return host memory for the fastest copies to and from the device."""

    def register(self, memory: Tensor) -> bool:
        """Register host memory, so that it is copied directly; return False if the device refuses."""

    def upload(self, target: Tensor, source: Tensor) -> Event:
        """Copy uint8 host memory to the device, in the queue of copies."""

    def launch(self, work: Callable[[Kernels], Tensor]) -> Launch:
        """Run `work` in the work queue, with the queue's kernels; it may use everything that the caller has
        computed."""

    def capture(self, work: Callable[[], None]) -> Piece:
        """Run some work whose memory does not move, and return it for replay."""

    def to_host(self, source: Tensor, target: Tensor) -> None:
        """Copy to host memory after the work so far; the copy is complete after waiting for `hand_over`."""

    def hand_over(self) -> Event:
        """Return the event after which every `to_host` so far is complete."""

    def to_device(self, source: Tensor) -> Tensor:
        """Return a copy in the device's memory, in order with the work. `source` may be changed at once."""

    def synchronize(self) -> None:
        """Wait for both queues."""

    def close(self) -> None:
        """Wait, and stop the queues."""


class OutOfMemory(Exception):
    """Out of device memory; a caller that can free some tries again."""

    def __init__(self, asked: int, free: int) -> None:
        super().__init__(f"{asked} bytes needed, {free} free")
        self.asked = asked
        self.free = free
