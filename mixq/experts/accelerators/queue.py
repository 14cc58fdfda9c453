"""A queue of work with a thread of its own: what a stream is on a GPU.

Contract: work is done in the order in which it was given; its error is kept, and raised by `wait`. The thread ends with
`close`, with the queue's last reference, or before the interpreter does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor


class Task:
    """A piece of work, done or not; an `Event` and a `Launch`."""

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
    """A thread that does what it is given, in order."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    def give(self, work: Callable[[], Any]) -> Task:
        """Append a piece of work."""
        return Task(self._thread.submit(_timed, work))

    def close(self) -> None:
        """Do what is left, and end."""
        self._thread.shutdown()


def _timed(work: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    begun = time.perf_counter()
    return work(), (begun, time.perf_counter())
