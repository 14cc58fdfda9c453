"""Times decode steps and prompts of synthetic models, with Mixtral's and the demo model's sizes.

Contract: medians of several runs, for stable results on a shared machine too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from mixq.config import PREFILL_CHUNK, ModelConfig, RuntimeOptions
from mixq.engine.model import Model
from mixq.measure.speed.synthetic import SyntheticWeights
from mixq.model.attention import Chunk
from mixq.models.presets import PRESETS
from mixq.plan.shares import GPU, share_out
from mixq.plan.sizes import ModelSizes, prompt_operations

PROMPT = PREFILL_CHUNK
STEPS = 48
CONTEXT = PROMPT + STEPS + 8
LARGE: dict[str, Any] = {
    **PRESETS["mixtral-8x7b"],
    "num_hidden_layers": 1,
    "num_local_experts": 4,
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
_DEPTHS = (2, 8)
_PLENTY = 4 << 30


def typical(run: Callable[[int], object], times: int) -> float:
    """Return the seconds of the median run; the first, which maps pages and wakes threads, does not count."""
    run(0)
    seconds = []
    for number in range(1, times + 1):
        begun = time.perf_counter()
        run(number)
        seconds.append(time.perf_counter() - begun)
    return max(statistics.median(seconds), 1e-9)


class Passes:
    """A synthetic model whose forward passes are timed; on an accelerator, half of its experts have a slot."""

    def __init__(self, shape: Mapping[str, Any], mix: str, device: str) -> None:
        options: dict[str, Any] = {} if device == "cpu" else {"vram": _for_half_of_the_experts(shape, device, mix)}
        weights = SyntheticWeights.make(shape, mix=mix)
        self.model = Model(weights, RuntimeOptions.from_kwargs(device=device, context=CONTEXT, **options))
        self.token_bytes = ModelSizes.of_weights(weights).token
        self.operations = prompt_operations(self.model.config, PROMPT)
        self._cache = self.model.new_kv_cache()
        generator = torch.Generator().manual_seed(0)
        self._ids = torch.randint(self.model.config.vocab_size, (PROMPT,), generator=generator)

    def close(self) -> None:
        """Free the model's memory."""
        self.model.close()

    def prompt_seconds(self, times: int) -> float:
        """Return the seconds of a prompt of `PROMPT` tokens, which is in the KV cache afterwards."""

        def prompt(_: int) -> None:
            self._cache.truncate(0)
            self.model.network.forward([Chunk(self._ids, self._cache)])

        return typical(prompt, times)

    def step_seconds(self, times: int) -> tuple[float, float]:
        """Return the seconds of a decode step, and those of its kernels."""
        busy = []

        def step(number: int) -> None:
            before = self.model.kernels.busy_ns()
            self.model.network.forward([Chunk(self._ids[number : number + 1], self._cache)])
            busy.append((self.model.kernels.busy_ns() - before) / 1e9)

        self._cache.truncate(8)
        return typical(step, times), statistics.median(busy)


@dataclass(frozen=True, slots=True)
class SmallSteps:
    """The cost of forward passes with the demo model's sizes."""

    # layer_seconds, pass_seconds: of a decode step outside the kernels, per layer and for the rest
    layer_seconds: float
    pass_seconds: float
    wall_seconds: float  # of a layer in a decode step, in total
    bandwidth: float  # bytes per second of a step's weights while the kernels run
    # flops, prompt_flops: of a prompt, without and with the seconds outside the kernels
    flops: float
    prompt_flops: float

    @classmethod
    def measure(cls, device: str, mix: str) -> SmallSteps:
        """Run models with two numbers of layers on a device: the difference is the cost of a layer."""
        walls, outsides = [], []
        for layers in _DEPTHS:
            with closing(Passes({**SMALL, "num_hidden_layers": layers}, mix, device)) as passes:
                prompt = passes.prompt_seconds(5)
                wall, busy = passes.step_seconds(STEPS)
                walls.append(wall)
                outsides.append(wall - busy)
        between = _DEPTHS[1] - _DEPTHS[0]
        layer = max((outsides[1] - outsides[0]) / between, 0.0)
        besides = max(outsides[0] - _DEPTHS[0] * layer, 0.0)
        around = besides + _DEPTHS[1] * layer
        return cls(
            layer_seconds=layer,
            pass_seconds=besides,
            wall_seconds=max((walls[1] - walls[0]) / between, 0.0),
            bandwidth=passes.token_bytes / max(busy, 1e-9),
            flops=passes.operations / max(prompt - around, prompt / 10),
            prompt_flops=passes.operations / prompt,
        )


def _for_half_of_the_experts(shape: Mapping[str, Any], device: str, mix: str) -> int:
    """Return the memory in which half of a model's experts have a slot."""
    sizes = ModelSizes.of_format("probe", mix, ModelConfig.from_dict(shape))
    shares = share_out(sizes, RuntimeOptions(context=CONTEXT), device, None, _PLENTY)
    assert shares.memory is not None
    return shares.total(GPU) - shares.memory.slots // 2 * shares.memory.slot_bytes
