"""Ctrl-C while a model speaks: the reply ends, the program goes on. SIGTERM while a job runs: it ends as by Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def first_interrupt_cancels() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C inside into the event given; a second one is a KeyboardInterrupt."""
    cancel = threading.Event()

    def handle(_signal: int, _frame: FrameType | None) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Let what is inside end, such as the writing of a file; a Ctrl-C meanwhile is a KeyboardInterrupt after it."""
    came = threading.Event()
    previous = signal.signal(signal.SIGINT, lambda _signal, _frame: came.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if came.is_set():
        raise KeyboardInterrupt


class Terminated(KeyboardInterrupt):
    """SIGTERM, as service managers and batch systems send it before they kill."""

    exit_code = 128 + signal.SIGTERM


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """Turn the first SIGTERM inside into `Terminated`, so that the same is cleaned up as after Ctrl-C; ignore more."""

    def handle(_signal: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
