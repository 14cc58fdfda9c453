"""Ctrl-C while a model speaks: the reply ends, the program goes on."""

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
