"""A device that has less memory than was budget: fewer slots, one line, the same answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import mixq
from mixq.experts.accelerators.interface import OutOfMemory
from mixq.experts.accelerators.simulated import SimulatedAccelerator
from mixq.experts.memory_plan import MemoryPlan
from tests.experts.conftest import CONTEXT, logits, memory_for


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, plan: MemoryPlan) -> None:
    """Slots are refused from the tenth on: two of them are for experts on their way."""
    whole = SimulatedAccelerator.allocate
    made = 0

    def allocate(self: SimulatedAccelerator, nbytes: int) -> Tensor:
        nonlocal made
        if nbytes == plan.slot_bytes:
            made += 1
            if made == 10:
                raise OutOfMemory(nbytes, 0)
        return whole(self, nbytes)

    monkeypatch.setattr(SimulatedAccelerator, "allocate", allocate)


def test_slots_that_cannot_be_made_are_done_without(
    demo: Path, plan: MemoryPlan, expected: Tensor, short: None
) -> None:
    vram = memory_for(plan, 4) + 3 * plan.kv_cache
    model = mixq.load(demo, device="sim", vram=vram, context=CONTEXT, threads=1, seed=1)
    offload = model.placement.offload
    assert offload is not None
    assert offload.slots == sum(offload.cache.quotas) == 7
    assert torch.equal(logits(model), expected)
    notices = [e for e in model.generate([1, 300], max_tokens=1) if isinstance(e, mixq.Notice)]
    assert ["7 of" in notice.text for notice in notices] == [True]
