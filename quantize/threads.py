"""A pool of threads over blocks of rows, and reading ahead.

Contract: inside `serial_operations` this thread's torch operations run on one thread each, and it yields the number
that was set before. The operations of the quantizer are short: sharing each of them gains little (two threads: 6 %),
and waiting for each other after every one is slow where the cores are busy with other work (measured: 40 times the
processor time).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

Given = TypeVar("Given")
Made = TypeVar("Made")


@contextmanager
def serial_operations() -> Iterator[int]:
    """Run this thread's torch operations on one thread each; yield the number of threads to use otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def map_in_threads(work: Callable[[Given], Made], given: Sequence[Given], threads: int) -> list[Made]:
    """Return [work(x) for x in given], done by `threads` threads; the order is that of `given`.

    To be called inside `serial_operations`.
    """
    if min(threads, len(given)) <= 1:
        return [work(x) for x in given]
    # A new thread would otherwise begin with as many threads an operation as there are cores.
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(work, given))


def one_ahead(work: Callable[[Given], Made], given: Iterable[Given], pool: Executor) -> Iterator[Made]:
    """Yield work(x) for x in given, in order; while one is used, `pool` works on the next."""
    upcoming: Future[Made] | None = None
    for x in given:
        made, upcoming = upcoming, pool.submit(work, x)
        if made is not None:
            yield _result(made)
    if upcoming is not None:
        yield _result(upcoming)


def _result(future: Future[Made]) -> Made:
    """Wait for a result in steps: on Windows Ctrl-C interrupts only waits with a timeout."""
    while not future.done():
        wait([future], timeout=0.2)
    return future.result()
