"""Measures the cost model: the kernels of CPU and accelerator, the link, and how they share the RAM's bandwidth.

Contract: takes some milliseconds when a model is loaded, with its experts and kernels, and with a copy running while
the CPU computes, as in use. The given memory is overwritten. The best of a few runs counts; the scheduler notices if
other programs slow the computer down later.

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
from mixq.experts.transfer import Upload, Uploader
from mixq.kernels.dispatch import Kernels

MANY_ROWS = 64
_RUNS = 3


def measure(
    store: ExpertStore, accelerator: Accelerator, host_kernels: Kernels, uploader: Uploader, memory: Tensor, flops: int
) -> Hardware:
    """Return this computer's speeds.

    Args:
        memory: uint8 [slot_bytes] on the accelerator.
        flops: of one expert for one row.
    """
    nbytes = store.expert_bytes(0)
    numbers = [expert % store.experts for expert in range(_RUNS + 1)]
    few, many = _Rows(store, 1), _Rows(store, MANY_ROWS)

    def compute(expert: int, rows: _Rows = few) -> None:
        host_kernels.experts(rows.x, store.layer(0), rows.ids(expert), rows.weights)

    def begin_copy(expert: int) -> Upload:
        return uploader.start((0, expert), None, memory, store.pieces(0, expert), demanded=True)

    def compute_while_copying(expert: int) -> float:
        """Return the bytes per second that the CPU and a copy read together."""
        upload = begin_copy(expert)
        begun = time.perf_counter()
        compute(expert)
        seconds = max(time.perf_counter() - begun, 1e-9)
        upload.wait()
        return upload.nbytes * (1 + min(1.0, seconds / link)) / seconds

    def run_on_device(rows: _Rows = few, expert: int = 0) -> None:
        x, ids, weights = (accelerator.to_device(part) for part in (rows.x, rows.ids(expert), rows.weights))
        accelerator.launch(lambda kernels: kernels.experts(x, views, ids, weights)).wait()

    def hand_over() -> None:
        accelerator.to_host(accelerator.to_device(few.x), row)
        accelerator.hand_over().wait()

    cpu = _best(compute, numbers)
    link = _best(lambda expert: begin_copy(expert).wait(), numbers)
    shared = max(compute_while_copying(expert) for expert in numbers)
    views = [store.view(0, memory)]
    gpu = _best(lambda _: run_on_device(), numbers)
    launch = _best(lambda _: run_on_device(expert=-1), numbers)  # no expert is computed
    row = accelerator.host_rows(1, few.x.shape[1], dtype=torch.float32)
    return Hardware(
        name=accelerator.name,
        cpu_bandwidth=nbytes / cpu,
        cpu_flops=MANY_ROWS * flops / _best(lambda expert: compute(expert, many), numbers[:2]),
        gpu_bandwidth=nbytes / max(gpu - launch, gpu / 10),
        gpu_flops=MANY_ROWS * flops / _best(lambda _: run_on_device(many), numbers[:2]),
        copy_bandwidth=nbytes / link,
        copy_latency=0.0,
        handover_seconds=_best(lambda _: hand_over(), numbers),
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


def _best(run: Callable[[int], None], numbers: Sequence[int]) -> float:
    """Return the seconds of the fastest run but the first, which maps pages and compiles kernels."""
    run(numbers[0])
    times = []
    for number in numbers[1:]:
        begun = time.perf_counter()
        run(number)
        times.append(time.perf_counter() - begun)
    return max(min(times), 1e-9)
