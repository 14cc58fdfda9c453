"""Threads that end before the interpreter does.

Contract: `start` starts a thread that serves until `end` is called. At exit every thread that still runs is ended and
waited for, the last one started first: one that was killed in the middle of a copy would take the process down with it.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable

_running: list[tuple[threading.Thread, Callable[[], None]]] = []


def start(serve: Callable[[], None], end: Callable[[], None], name: str) -> threading.Thread:
    """Start a thread.

    Args:
        serve: what it does; returns soon after `end` was called.
        end: tells it to return; may be called more than once, and from any thread.
    """
    thread = threading.Thread(target=serve, name=name, daemon=True)
    _running[:] = [pair for pair in _running if pair[0].is_alive()]
    thread.start()
    _running.append((thread, end))
    return thread


@atexit.register
def _end_all() -> None:
    while _running:
        thread, end = _running.pop()
        end()
        thread.join()
