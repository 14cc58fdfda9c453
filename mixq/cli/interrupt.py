"""Signals: Ctrl-C ends a reply but not the program; SIGTERM ends a job as Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def _handled(number: int, handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    previous = signal.signal(number, handle)
    try:
        yield
    finally:
        signal.signal(number, previous)


@contextmanager
def first_interrupt_cancels() -> Iterator[threading.Event]:
    """Set the event at the first Ctrl-C inside; a second one raises KeyboardInterrupt."""
    cancel = threading.Event()

    def handle(_signal: int, _frame: FrameType | None) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()

    with _handled(signal.SIGINT, handle):
        yield cancel


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Delay Ctrl-C until the block, such as writing a file, has ended; then raise KeyboardInterrupt."""
    came = threading.Event()
    with _handled(signal.SIGINT, lambda _signal, _frame: came.set()):
        yield
    if came.is_set():
        raise KeyboardInterrupt


class Terminated(KeyboardInterrupt):
    """SIGTERM, which service managers and batch systems send before SIGKILL."""

    exit_code = 128 + signal.SIGTERM


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """Raise `Terminated` at the first SIGTERM inside, which cleans up as Ctrl-C does; ignore later ones."""

    def handle(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    with _handled(signal.SIGTERM, handle):
        yield
