"""The hits of a run on the simulated accelerator are those of its trace, replayed without any tensor."""

from __future__ import annotations

from pathlib import Path

import pytest

import mixq
from mixq.config import CACHE_POLICIES
from mixq.experts.executor import LayerExperts
from mixq.experts.memory_plan import MemoryPlan
from mixq.model.layer import SparseMoeBlock
from mixq.plan.replay import replay_hits
from tests.experts.conftest import CONTEXT, memory_for

TOKENS = [*range(400, 440), *range(700, 740)]
SEED = 5


@pytest.mark.parametrize("policy", CACHE_POLICIES)
@pytest.mark.parametrize("miss", ["cpu", "fetch"])
@pytest.mark.parametrize("slots", [0, 1, 3, 6])
def test_hits_are_the_same_layer_by_layer(demo: Path, plan: MemoryPlan, slots: int, miss: str, policy: str) -> None:
    """Copies are complete before each decision on both sides, and nothing is copied because it was predicted."""
    model = mixq.load(
        demo,
        device="sim",
        vram=memory_for(plan, slots),
        context=CONTEXT,
        threads=1,
        miss=miss,
        cache_policy=policy,
        seed=SEED,
    )
    offload = model.placement.offload
    assert offload is not None
    assert offload.cache.quotas == (slots,) * 5
    offload.lockstep, trace = True, []
    for layer in model.network.layers:
        assert isinstance(layer.feed_forward, SparseMoeBlock)
        experts = layer.feed_forward.experts
        assert isinstance(experts, LayerExperts)
        experts.lookahead = None
    cache = model.new_kv_cache()
    for token in TOKENS:
        model.forward([token], kv_cache=cache)
        trace += model.network.chosen_experts()
    offload.quiesce()
    assert [len(token) for token in trace] == [5] * len(TOKENS)
    replayed = replay_hits(trace, [slots] * 5, policy, miss, experts=8, seed=SEED)
    counted = offload.cache.counters
    assert [(c.hits, c.misses) for c in counted] == [(c.hits, c.misses) for c in replayed]
    assert sum(c.hits for c in counted) == offload.telemetry.counters.hits
    if slots:
        assert 0 < offload.telemetry.counters.hits < offload.telemetry.counters.requests
