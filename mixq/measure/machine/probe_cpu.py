"""Measures mixq's kernels on this processor and its RAM, in a second or two.

Contract: random weights with Mixtral's shapes for the figures of large models, with the demo model's for small ones.

Axes: T tokens, D hidden, A active experts.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import torch
from torch import Tensor

from mixq.kernels import fetch_plan
from mixq.kernels.dispatch import Kernels, choose
from mixq.kernels.native_kernels import NativeKernels
from mixq.kernels.reference import Expert
from mixq.measure.machine.passes import LARGE, SmallSteps, typical
from mixq.measure.speed.bandwidth import Bandwidth
from mixq.measure.speed.synthetic import SyntheticWeights
from mixq.plan.computer import CpuFigures
from mixq.system.cores import physical_cores

_BUFFER = 512 << 20
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def measure_cpu(*, refresh: bool = False) -> CpuFigures:
    """Return this processor's figures; `refresh`: the fetch plan is measured again too."""
    kernels = choose(threads=physical_cores(), exact=False)
    if isinstance(kernels, NativeKernels):
        fetch_plan.use(kernels, fetch_plan.chosen(kernels, refresh=refresh))
    read = Bandwidth(kernels, largest=_BUFFER) if isinstance(kernels, NativeKernels) else None
    weights = SyntheticWeights.make(LARGE, mix="all-nl4")
    experts = experts_of(weights)
    rounds, read_bandwidth = [], 0.0
    for _ in range(3):
        rounds.append(_expert_bandwidth(kernels, experts))
        read_bandwidth = max(read_bandwidth, read.probe() if read is not None else rounds[-1])
    kernel_bandwidth = statistics.median(rounds)
    packed, plain = SmallSteps.measure("cpu", "nl4"), SmallSteps.measure("cpu", "bf16")
    return CpuFigures(
        cores=physical_cores(),
        read_bandwidth=max(read_bandwidth, kernel_bandwidth),
        kernel_bandwidth=kernel_bandwidth,
        cache_bytes=last_level_cache(),
        cache_bandwidth=packed.bandwidth,
        cache_bandwidth_plain=plain.bandwidth,
        flops=_expert_flops(kernels, experts, weights.config.intermediate_size),
        small_flops=packed.flops,
        small_flops_plain=plain.flops,
        layer_seconds=(packed.layer_seconds + plain.layer_seconds) / 2,
        pass_seconds=(packed.pass_seconds + plain.pass_seconds) / 2,
    )


def last_level_cache() -> int:
    """Return the bytes of the last-level cache; 0 if the system does not report it."""
    sizes = []
    for path in _CACHES.glob("index*/size"):
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text[:-1].isdigit() and text[-1] in "KM":
            sizes.append(int(text[:-1]) << (10 if text[-1] == "K" else 20))
    return max(sizes, default=0)


def _expert_bandwidth(kernels: Kernels, experts: list[Expert]) -> float:
    """Return the bytes per second of a decode step's two experts, chosen among more experts than fit into any cache."""
    x, shares = _rows(1)

    def run(number: int) -> None:
        first = 2 * (number % 2)
        kernels.experts(x, experts, torch.tensor([[first, first + 1]]), shares)

    return 2 * sum(matrix.nbytes for matrix in experts[0]) / typical(run, 16)


def _expert_flops(kernels: Kernels, experts: list[Expert], F: int) -> float:
    """Return the operations per second with 128 rows per expert."""
    E = len(experts)
    rows = 64 * E
    x, shares = _rows(rows)
    ids = torch.tensor([[row % E, (row + 1) % E] for row in range(rows)])
    seconds = typical(lambda _: kernels.experts(x, experts, ids, shares), 3)
    return 2 * rows * 6 * x.shape[1] * F / seconds


def experts_of(weights: SyntheticWeights) -> list[Expert]:
    """Return the experts of the first layer."""
    prefix = "model.layers.0.block_sparse_moe.experts"
    return [
        (
            weights.linear(f"{prefix}.{expert}.w1"),
            weights.linear(f"{prefix}.{expert}.w2"),
            weights.linear(f"{prefix}.{expert}.w3"),
        )
        for expert in range(weights.config.num_local_experts)
    ]


def _rows(count: int) -> tuple[Tensor, Tensor]:
    """Return x [T, D] and shares [T, A]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, LARGE["hidden_size"], generator=generator), torch.full((count, 2), 0.5)
