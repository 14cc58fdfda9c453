"""Work that is given once and done again and again: a CUDA graph, or on the host the same calls.

Contract: what is captured reads and writes memory that stays where it is, and nothing in it depends on values. It is
run before it is captured, so that kernels are compiled and workspaces taken.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

_WARM_UPS = 2


class Again:
    """Calls the work again: what a graph would do."""

    def __init__(self, work: Callable[[], None]) -> None:
        work()
        self.replay = work


def cuda_graph(work: Callable[[], None], beside: torch.cuda.CUDAGraph | None = None) -> torch.cuda.CUDAGraph:
    """Return some work as a CUDA graph.

    Args:
        beside: a graph whose memory for intermediates it uses too, since they never run at once and leave nothing
            there; with a block of 20 MiB for each layer they would take more than the promise has for it.

    PyTorch asks for a few runs beforehand on a stream other than the default one, and that nothing else runs while it
    captures on it; other threads' copies are not disturbed.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    pool = None if beside is None else beside.pool()
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        work()
    graph.replay()  # capturing does not run it
    return graph
