"""Measures the figures of the cost model: the CPU's kernels, the accelerator's, the link, and how they share the RAM.

Contract: some milliseconds when a model is loaded, on its own experts and kernels, and with a copy under way while the
CPU computes, since that is how they run. The memory given is overwritten. The best of a few runs counts; the scheduler
notices when other programs slow the machine down later.

Axes: T tokens, D hidden.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mixq.experts.accelerators.interface import Accelerator
from mixq.experts.cost import Hardware
from mixq.experts.store import ExpertStore
from mixq.experts.transfer import Uploader
from mixq.kernels.dispatch import Kernels
from mixq.kernels.reference import Expert

MANY_ROWS = 64
_RUNS = 3


def measure(
    store: ExpertStore, accelerator: Accelerator, host_kernels: Kernels, uploader: Uploader, memory: Tensor, flops: int
) -> Hardware:
    """Return this machine's figures.

    Args:
        memory: uint8 [slot_bytes] on the accelerator.
        flops: of one expert for one row.
    """
    nbytes = store.expert_bytes(0)
    numbers = [expert % store.experts for expert in range(_RUNS + 1)]
    few, many = _Rows(store, 1), _Rows(store, MANY_ROWS)

    def compute(expert: int, rows: _Rows = few) -> None:
        host_kernels.experts(rows.x, store.layer(0), rows.ids(expert), rows.weights)

    def copy(expert: int) -> None:
        uploader.start((0, expert), None, memory, store.pieces(0, expert), demanded=True).wait()

    cpu = _best(compute, numbers)
    link = _best(copy, numbers)
    shared = max(_both(lambda e=e: compute(e), uploader, store, memory, e, link) for e in numbers)  # type: ignore[misc]
    on_device = _OnDevice(accelerator, [store.view(0, memory)])
    gpu = _best(lambda _: on_device.run(few), numbers)
    launch = _best(lambda _: on_device.run(few, chosen=False), numbers)
    row = accelerator.host_rows(1, few.x.shape[1], dtype=torch.float32)
    return Hardware(
        name=accelerator.name,
        cpu_bandwidth=nbytes / cpu,
        cpu_flops=MANY_ROWS * flops / _best(lambda expert: compute(expert, many), numbers[:2]),
        gpu_bandwidth=nbytes / max(gpu - launch, gpu / 10),
        gpu_flops=MANY_ROWS * flops / _best(lambda _: on_device.run(many), numbers[:2]),
        copy_bandwidth=nbytes / link,
        copy_latency=0.0,
        handover_seconds=_best(lambda _: _hand_over(accelerator, few.x, row), numbers),
        launch_seconds=launch,
        ram_bandwidth=max(shared, nbytes / cpu),
    )


class _Rows:
    """Inputs of one expert: x [T, D], one choice each."""

    def __init__(self, store: ExpertStore, count: int) -> None:
        w1 = store.layer(0)[0][0]
        self.x = torch.randn(count, w1.shape[1], generator=torch.Generator().manual_seed(0))
        self.weights = torch.ones(count, 1)

    def ids(self, expert: int) -> Tensor:
        return torch.full((len(self.x), 1), expert)


class _OnDevice:
    """Runs an expert in the accelerator's memory and waits for it."""

    def __init__(self, accelerator: Accelerator, views: Sequence[Expert]) -> None:
        self._accelerator, self._views = accelerator, views

    def run(self, rows: _Rows, *, chosen: bool = True) -> None:
        move = self._accelerator.to_device
        x, ids, weights = move(rows.x), move(rows.ids(0 if chosen else -1)), move(rows.weights)
        self._accelerator.launch(lambda kernels: kernels.experts(x, self._views, ids, weights)).wait()


def _both(
    compute: Callable[[], None], uploader: Uploader, store: ExpertStore, memory: Tensor, expert: int, link: float
) -> float:
    """Return the bytes per second that the CPU and a copy of `link` seconds read together."""
    upload = uploader.start((0, expert), None, memory, store.pieces(0, expert), demanded=True)
    begun = time.perf_counter()
    compute()
    seconds = max(time.perf_counter() - begun, 1e-9)
    upload.wait()
    return upload.nbytes * (1 + min(1.0, seconds / link)) / seconds


def _hand_over(accelerator: Accelerator, x: Tensor, row: Tensor) -> None:
    accelerator.to_host(accelerator.to_device(x), row)
    accelerator.hand_over().wait()


def _best(run: Callable[[int], None], numbers: Sequence[int]) -> float:
    """Return the seconds of the fastest run, without the first, which maps pages and compiles kernels."""
    run(numbers[0])
    times = []
    for number in numbers[1:]:
        begun = time.perf_counter()
        run(number)
        times.append(time.perf_counter() - begun)
    return max(min(times), 1e-9)
