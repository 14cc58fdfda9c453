"""The interface of an accelerator: memory of its own, copies into it, work on it, all of it asynchronous.

Contract: two queues that do not wait for each other, one for copies and one for work, each in the order given. Only the
caller orders a copy against work: computing on memory that is still being copied to gives wrong numbers. `simulated`
has threads for the queues and separate host memory, `cuda` streams and a card. Which expert lies where, and what is
worth copying, is not known here.
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
    """Work that has been given to the accelerator."""

    def result(self) -> Tensor:
        """Return what the work returned; later operations on the accelerator may use it at once."""

    @property
    def busy(self) -> tuple[float, float]:
        """Begin and end of the work on `time.perf_counter`'s clock, once it is done."""


class Piece(Protocol):
    """Captured work."""

    def replay(self) -> None:
        """Run it again on the current contents of its inputs."""


class MemoryAccount:
    """How much of the memory that may be used is used.

    Attributes:
        promised: the most bytes that may be used.
        taken, peak: bytes used now, and the most so far.
    """

    def __init__(self, promised: int) -> None:
        self.promised = promised
        self.taken = 0
        self.peak = 0

    @property
    def free(self) -> int:
        """Bytes that may still be used."""
        return self.promised - self.taken

    def add(self, nbytes: int) -> None:
        """Count what was allocated, or with a negative number released."""
        self.taken += nbytes
        self.peak = max(self.peak, self.taken)


class Accelerator(Protocol):
    """One device.

    Attributes:
        name: for people: `sim`, or the card's own.
        device: where its tensors live.
        kernels: compute on its memory, called by the thread that runs the network.
        memory: how much may be used, and how much is.
        registers: whether `register` makes copies faster.
        captures: whether `capture` saves anything.
    """

    name: str
    device: torch.device
    kernels: Kernels
    memory: MemoryAccount
    registers: bool
    captures: bool

    def rounded(self, nbytes: int) -> int:
        """Return the bytes that an allocation of `nbytes` really takes."""

    def allocate(self, nbytes: int) -> Tensor:
        """Return uint8 [nbytes] of the device's memory, not cleared, aligned to 256 bytes.

        Raises:
            OutOfMemory: it would be more than may be used, or the device has no more.
        """

    def release(self, memory: Tensor) -> None:
        """Free what `allocate` returned. No queue may still use it."""

    def reserve(self, nbytes: int) -> None:
        """Count memory that kernels take by themselves (activations, workspaces); OutOfMemory as in `allocate`."""

    def host_rows(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """Return host memory for the fastest copies to and from the device."""

    def register(self, memory: Tensor) -> bool:
        """Make host memory known, so that copies from it go directly; return False if the device refuses."""

    def upload(self, target: Tensor, source: Tensor) -> Event:
        """Copy uint8 host memory to the device, in the queue of copies."""

    def launch(self, work: Callable[[Kernels], Tensor]) -> Launch:
        """Run `work` in the queue of work, with kernels of its own; it may use what the caller has computed so far."""

    def capture(self, work: Callable[[], None]) -> Piece:
        """Run some work on memory that stays where it is, and return it for replay."""

    def to_host(self, source: Tensor, target: Tensor) -> None:
        """Copy to host memory after the work given so far; it is there when `hand_over` has been waited for."""

    def hand_over(self) -> Event:
        """Return the event after which every `to_host` so far has arrived."""

    def to_device(self, source: Tensor) -> Tensor:
        """Return a copy in the device's memory, in order with the work. `source` may be used again at once."""

    def synchronize(self) -> None:
        """Wait for both queues."""

    def close(self) -> None:
        """Wait, and end the queues."""


class OutOfMemory(Exception):
    """The device has no memory left; a caller that can free some tries again."""

    def __init__(self, asked: int, free: int) -> None:
        super().__init__(f"{asked} bytes needed, {free} free")
        self.asked = asked
        self.free = free
