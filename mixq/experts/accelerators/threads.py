"""Threads that end before the interpreter does.

Contract: `start` starts a thread that serves until `end` is called. At exit every thread that still runs is ended and
waited for, the last one started first: one that is killed in the middle of a copy ends the process with SIGABRT.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable

_running: dict[threading.Thread, Callable[[], None]] = {}
"""Threads in the order of their start, and what ends them. An entry keeps alive what its thread needs, no longer."""


def start(serve: Callable[[], None], end: Callable[[], None], name: str) -> threading.Thread:
    """Start a thread.

    Args:
        serve: what it does; returns soon after `end` was called.
        end: tells it to return; may be called more than once, and from any thread.
    """

    def run() -> None:
        try:
            serve()
        finally:
            _running.pop(threading.current_thread(), None)

    thread = threading.Thread(target=run, name=name, daemon=True)
    _running[thread] = end
    thread.start()
    return thread


@atexit.register
def _end_all() -> None:
    while _running:
        try:
            thread, end = _running.popitem()
        except KeyError:  # the last one has just ended by itself
            return
        end()
        thread.join()
