"""What mixq's kernels get out of this processor and its RAM, in a second or two.

Contract: made-up weights of Mixtral's shapes for the figures of large models, of the demo model's for small ones. What
counts is the median of several runs: a model gets what the machine gives on the whole, neighbours and all.

Axes: T tokens, D hidden, A active experts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixq.config import RuntimeOptions
from mixq.engine.model import Model
from mixq.kernels.dispatch import Kernels, choose
from mixq.kernels.native_library import NativeKernels
from mixq.kernels.reference import Expert
from mixq.measure.speed.bandwidth import Bandwidth
from mixq.measure.speed.synthetic import SyntheticWeights
from mixq.measure.speed.workload import Workload, prompt_operations, weight_bytes
from mixq.model.attention import Chunk
from mixq.models.presets import PRESETS
from mixq.plan.computer import CpuFigures
from mixq.system.cores import physical_cores

PROMPT = 512
_BUFFER = 512 << 20
_EXPERTS = 4
_DEPTHS = (2, 8)
_STEPS = 48
SMALL_CONTEXT = PROMPT + _STEPS + 8
LARGE: dict[str, Any] = {
    **PRESETS["mixtral-8x7b"],
    "num_hidden_layers": 1,
    "num_local_experts": _EXPERTS,
    "vocab_size": 256,
}
SMALL: dict[str, Any] = {
    **PRESETS["mixtral-8x7b"],
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1536,
    "max_position_embeddings": 2048,
}
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def measure_cpu() -> CpuFigures:
    """Return this processor's figures."""
    kernels = choose(threads=physical_cores(), exact=False)
    read = Bandwidth(kernels, largest=_BUFFER) if isinstance(kernels, NativeKernels) else None
    large = _Large(kernels)
    rounds, read_bandwidth = [], 0.0
    for _ in range(3):
        rounds.append(large.bandwidth())
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
        flops=large.flops(),
        small_flops=packed.flops,
        small_flops_plain=plain.flops,
        layer_seconds=(packed.layer_seconds + plain.layer_seconds) / 2,
        pass_seconds=(packed.pass_seconds + plain.pass_seconds) / 2,
    )


def last_level_cache() -> int:
    """Return the bytes of the cache that is the last before RAM; 0 where the system does not say."""
    sizes = []
    for path in _CACHES.glob("index*/size"):
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text[:-1].isdigit() and text[-1] in "KM":
            sizes.append(int(text[:-1]) << (10 if text[-1] == "K" else 20))
    return max(sizes, default=0)


def typical(run: Callable[[int], object], times: int) -> float:
    """Return the seconds of the median run; the first, which maps pages and wakes threads, does not count."""
    run(0)
    seconds = []
    for number in range(1, times + 1):
        begun = time.perf_counter()
        run(number)
        seconds.append(time.perf_counter() - begun)
    return max(statistics.median(seconds), 1e-9)


class _Large:
    """Experts of Mixtral's size, more of them than any cache holds."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._weights = SyntheticWeights.make(LARGE, mix="all-nl4")
        self._experts = experts_of(self._weights)
        self._nbytes = sum(matrix.nbytes for matrix in self._experts[0])

    def bandwidth(self) -> float:
        """Return the bytes per second of a decode step's two experts."""
        x, shares = _rows(1)

        def run(number: int) -> None:
            first = 2 * (number % 2)
            self._kernels.experts(x, self._experts, torch.tensor([[first, first + 1]]), shares)

        return 2 * self._nbytes / typical(run, 16)

    def flops(self) -> float:
        """Return the operations per second with 128 rows an expert."""
        rows = 64 * _EXPERTS
        x, shares = _rows(rows)
        ids = torch.tensor([[row % _EXPERTS, (row + 1) % _EXPERTS] for row in range(rows)])
        seconds = typical(lambda _: self._kernels.experts(x, self._experts, ids, shares), 3)
        config = self._weights.config
        return 2 * rows * 6 * config.hidden_size * config.intermediate_size / seconds


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


@dataclass(frozen=True, slots=True)
class SmallSteps:
    """Passes of models of the demo model's shape, by the number of their layers.

    Attributes:
        layer_seconds, pass_seconds: what a decode step spends outside of the kernels, for a layer and besides.
        wall_seconds: what a layer of a decode step takes in all.
        bandwidth: bytes per second of a step's weights while the kernels run.
        flops, prompt_flops: of a prompt, without and with what layers cost besides.
    """

    layer_seconds: float
    pass_seconds: float
    wall_seconds: float
    bandwidth: float
    flops: float
    prompt_flops: float

    @classmethod
    def measure(cls, device: str, mix: str, vram: Callable[[int], int] | None = None) -> SmallSteps:
        """Run them on a device; `vram` is the memory that a model of so many layers gets there."""
        found = [_small(device, mix, layers, {} if vram is None else {"vram": vram(layers)}) for layers in _DEPTHS]
        few, many = found
        between = _DEPTHS[1] - _DEPTHS[0]
        layer = max((many.outside - few.outside) / between, 0.0)
        besides = max(few.outside - _DEPTHS[0] * layer, 0.0)
        around = besides + _DEPTHS[1] * layer
        return cls(
            layer_seconds=layer,
            pass_seconds=besides,
            wall_seconds=max((many.wall - few.wall) / between, 0.0),
            bandwidth=many.nbytes / max(many.busy, 1e-9),
            flops=many.operations / max(many.prompt - around, many.prompt / 10),
            prompt_flops=many.operations / many.prompt,
        )


@dataclass(frozen=True, slots=True)
class _Small:
    wall: float
    busy: float
    prompt: float
    nbytes: int
    operations: float

    @property
    def outside(self) -> float:
        return self.wall - self.busy


def _small(device: str, mix: str, layers: int, options: Mapping[str, Any]) -> _Small:
    weights = SyntheticWeights.make({**SMALL, "num_hidden_layers": layers}, mix=mix)
    model = Model(weights, RuntimeOptions.from_kwargs(device=device, context=SMALL_CONTEXT, **options))
    try:
        cache = model.new_kv_cache()
        ids = torch.randint(3, 1500, (PROMPT,), generator=torch.Generator().manual_seed(0))
        busy = []

        def step(number: int) -> None:
            before = model.kernels.busy_ns()
            model.network.forward([Chunk(ids[number : number + 1], cache)])
            busy.append((model.kernels.busy_ns() - before) / 1e9)

        def prompt(_: int) -> None:
            cache.truncate(0)
            model.network.forward([Chunk(ids, cache)])

        prompt_seconds = typical(prompt, 5)
        cache.truncate(8)
        wall = typical(step, _STEPS)
        operations = prompt_operations(model.config, Workload(PROMPT, 0, 0))
        return _Small(wall, statistics.median(busy), prompt_seconds, weight_bytes(weights), operations)
    finally:
        model.close()
