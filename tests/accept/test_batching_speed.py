"""The speedup of batched answers over one: tokens per second of the engine, the two alternating in one run."""

from __future__ import annotations

import statistics
import threading
import time

import pytest
import torch

from mixq.engine.answer import Request
from mixq.engine.batching import Batcher
from mixq.engine.events import Done, Event, Failed, Token
from mixq.engine.sampling import SamplingParams
from mixq.measure.speed.synthetic import synthetic_model
from tests.accept.tables import markdown, write

pytestmark = pytest.mark.accept
LAYERS, TOKENS, ROUNDS, SIZES = 4, 40, 7, (1, 2, 4, 8)


class Clock:
    """Measures from the moment when all answers have their first token until the first of them ends."""

    def __init__(self, count: int) -> None:
        self._counts = [0] * count
        self._begun: float | None = None
        self._tokens = 0
        self.speed: float | None = None
        self._left = count
        self.over = threading.Event()

    def __call__(self, index: int, event: Event | Failed) -> None:
        if isinstance(event, Token):
            self._counts[index] += 1
            if self._begun is not None:
                self._tokens += 1
            elif all(self._counts):
                self._begun = time.perf_counter()
        if isinstance(event, Done | Failed):
            assert isinstance(event, Done), event
            if self.speed is None and self._begun is not None:
                self.speed = self._tokens / (time.perf_counter() - self._begun)
            self._left -= 1
            if not self._left:
                self.over.set()


def speed(batcher: Batcher, count: int, seed: int) -> float:
    """Return tokens per second of `count` answers at once."""
    generator = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(3, 32000, (12,), generator=generator).tolist() for _ in range(count)]
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    clock = Clock(count)
    batcher.submit([Request(ids, params, reuse=False) for ids in prompts], clock)
    assert clock.over.wait(300)
    assert clock.speed is not None
    return clock.speed


def test_batching_speed() -> None:
    model = synthetic_model("mixtral-8x7b", layers=LAYERS, seed=0, context=256, sequences=8)
    batcher = Batcher(model)
    samples: dict[int, list[float]] = {count: [] for count in SIZES}
    for turn in range(-1, ROUNDS):
        for count in SIZES:
            measured = speed(batcher, count, seed=turn + 1)
            if turn >= 0:  # the first is a warm-up
                samples[count].append(measured)
    batcher.close()
    rows = []
    for count in SIZES:
        ratios = [many / one for many, one in zip(samples[count], samples[1], strict=True)]
        ratio = statistics.median(ratios)
        rows.append([count, f"{statistics.median(samples[count]):.1f}", f"{ratio:.2f}"])
        if count == 4:
            gain = ratio
    write(
        "batching",
        "Batched decoding",
        f"Tokens per second of all answers together, greedy, Mixtral's sizes with {LAYERS} layers and head, random "
        "weights in the default mix. Random routers make requests share fewer experts than trained ones do. Each "
        f"of {ROUNDS} turns measures every number of answers, and the speedup is computed within a turn; medians. "
        "Made by `make accept`.",
        markdown(["answers at once", "tokens/s", "speedup over one"], rows),
    )
    assert gain >= 1.5
