"""A queue of work with a thread of its own: what a stream is on a GPU.

Contract: what is given is done one after the other; an error is kept and raised where somebody waits for that piece of
work. The thread ends with `close`, or with the queue's last reference.
"""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor

from mixq.experts.accelerators import threads


class Task:
    """A piece of work, done or not; an `Event` and a `Launch`."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work: Callable[[], Any] | None = work
        self._over = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None
        self.busy = (0.0, 0.0)

    def run(self) -> None:
        """Do it, on the queue's thread."""
        begun = time.perf_counter()
        try:
            assert self._work is not None
            self._value = self._work()
        except BaseException as error:  # noqa: BLE001  (raised again where somebody waits)
            self._error = error
        self._work = None  # what it refers to is not kept alive
        self.busy = (begun, time.perf_counter())
        self._over.set()

    def done(self) -> bool:
        """See `Event`."""
        if not self._over.is_set():
            return False
        if self._error is not None:
            raise self._error
        return True

    def wait(self) -> None:
        """See `Event`."""
        self._over.wait()
        self.done()

    def result(self) -> Tensor:
        """See `Launch`; here it waits."""
        self.wait()
        assert isinstance(self._value, Tensor)
        return self._value


class Queue:
    """A thread that does what it is given, in order."""

    def __init__(self, name: str) -> None:
        tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._tasks = tasks
        self._thread = threads.start(lambda: _serve(tasks), lambda: tasks.put(None), name)
        self._end = weakref.finalize(self, tasks.put, None)

    def give(self, work: Callable[[], Any]) -> Task:
        """Append a piece of work."""
        if not self._end.alive:
            raise RuntimeError(f"{self._thread.name} has been closed")
        task = Task(work)
        self._tasks.put(task)
        return task

    def close(self) -> None:
        """Do what is left, and end."""
        self._end()
        if threading.current_thread() is not self._thread:
            self._thread.join()


def _serve(tasks: queue.SimpleQueue[Task | None]) -> None:
    while (task := tasks.get()) is not None:
        task.run()
        del task  # its result is the waiting caller's, not the thread's
