"""The demo model as an nl4 folder, and its answers on the CPU: what every placement is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mixq
from mixq.experts.memory_plan import MemoryPlan
from mixq.model.attention import Chunk
from mixq.quantize import quantize
from mixq.system import paths

CONTEXT = 128
PROMPT = [1, *range(300, 345)]  # 46 tokens: the experts of a layer have about 11 rows each
NEXT = [473, 7, 1010, 33, 1100, 500, 8, 300, 12, 1444]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "nl4"
    quantize(paths.demo_source(), folder)
    return folder


@pytest.fixture(scope="session")
def plan(demo: Path) -> MemoryPlan:
    """How the memory of a simulated accelerator is shared out, with room for everything."""
    found = mixq.load(demo, device="sim", vram="1GB", context=CONTEXT, threads=1).placement.plan
    assert found is not None
    return found


def memory_for(plan: MemoryPlan, slots: int) -> int:
    """Return the bytes that give every layer so many slots."""
    return plan.used + (slots * len(plan.quotas) - plan.slots) * plan.slot_bytes


def logits(model: mixq.Model, prompt: Sequence[int] = PROMPT, following: Sequence[int] = NEXT) -> Tensor:
    """Return the logits of a prompt, of tokens one by one, and of three sequences at once."""
    caches = [model.new_kv_cache() for _ in range(3)]
    rows = [model.forward(prompt, kv_cache=caches[0])]
    rows += [model.forward([token], kv_cache=caches[0]) for token in following]
    for cache, start in zip(caches[1:], (50, 70), strict=True):
        model.forward(list(range(start, start + 9)), kv_cache=cache)
    chunks = [Chunk(torch.tensor([token]), cache) for token, cache in zip((9, 77, 777), caches, strict=True)]
    rows.append(model.network.forward(chunks))
    return torch.cat(rows)


@pytest.fixture(scope="session")
def expected(demo: Path) -> Tensor:
    return logits(mixq.load(demo, device="cpu", context=CONTEXT, threads=1))
