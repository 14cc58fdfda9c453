"""Every combination against the cache and the event simulation themselves; and against a real run, hit for hit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import mixq
from mixq.errors import DoesNotFitError, UsageError
from mixq.experts import quota
from mixq.experts.cost import Hardware, ModelCost
from mixq.experts.executor import LayerExperts
from mixq.experts.routing import draw_trace, parse_routing
from mixq.measure.prompt_file import NamedPrompt
from mixq.measure.recorder import Recorder
from mixq.model.layer import SparseMoeBlock
from mixq.plan.excerpt import Machine
from mixq.plan.hit_curves import hit_curves, most_used
from mixq.plan.recording import Facts, PromptFacts, Recording
from mixq.plan.replay import belady, replay, replay_hits
from mixq.plan.sweep import ReplayModel, default_budgets, sweep
from mixq.quantize import quantize
from mixq.system import paths

COST = ModelCost(4, 8, 2, 90_000_000, 25_000_000, 130_000_000, 4096, 350_000_000)
MACHINE = Machine(Hardware("desktop", 40e9, 5e11, 300e9, 2e13, 20e9, ram_bandwidth=50e9), 1e-3, 1e-4)
WEIGHTS = ReplayModel("mixtral, four layers", COST)
POLICIES = ("lru", "lfu", "static", "belady")


def recorded(tokens: int = 200, prompt_tokens: int = 10, layers: int = 4, lookahead: int = 0) -> Recording:
    shape = {"layers": layers, "experts": 8, "active": 2}
    T = tokens + prompt_tokens
    chosen = np.array(draw_trace(parse_routing("mixtral", **shape, seed=4), T, **shape).tokens, dtype=np.uint8)
    facts = Facts("synthetic", layers, 8, 2, lookahead, prompts=(PromptFacts("p", prompt_tokens, tokens),))
    return Recording(
        facts,
        chosen,
        np.full(chosen.shape, 0.5, dtype=np.float16),
        np.repeat(chosen[:, None], lookahead, axis=1),
        np.zeros(T, dtype=np.int32),
        np.zeros(T, dtype=np.int32),
        np.arange(T) < prompt_tokens,
        np.zeros(T, dtype=np.float32),
    )


def budget(slots: int, context: int = 1024) -> int:
    return WEIGHTS.fixed(context, 0) + slots * COST.expert_bytes


@pytest.mark.parametrize("miss", ["auto", "cpu", "fetch"])
def test_hits_and_times_are_those_of_cache_and_simulation(miss: str) -> None:
    recording = recorded(lookahead=1)
    trace = recording.experts[10:].tolist()
    found = sweep(recording, WEIGHTS, MACHINE, [budget(14)], misses=[miss], context=1024, excerpt=200)
    assert [(c.policy, c.quotas) for c in found.combinations] == [(p, q) for p in POLICIES for q in ("even", "fitted")]
    popular = most_used(recording.experts[10:], 8)
    for row in found.combinations:
        policy = belady(trace) if row.policy == "belady" else row.policy
        orders = popular if row.policy == "static" else None
        if row.quotas == "even":
            assert row.slots_by_layer == (4, 4, 3, 3)
        else:
            assert row.slots_by_layer == tuple(
                quota.fits(hit_curves(recording.experts[10:], 8, row.policy).tolist(), [14])[0]
            )
        counts = replay_hits(trace, row.slots_by_layer, policy, "fetch", popular=orders)
        assert row.hits_by_layer == pytest.approx([c.hits / 400 for c in counts], abs=1e-6)
        assert row.hit_rate == pytest.approx(sum(c.hits for c in counts) / 1600)
        # The excerpt is the whole: the clock's own figures, and the work around them.
        timed = replay(
            trace, MACHINE.hardware, COST, row.slots_by_layer, policy, miss, context=found.positions, popular=orders,
            predicted=[trace],
        )  # fmt: skip
        assert 1 / row.tokens_per_second == pytest.approx(timed.seconds / 200 + 1e-3 + 4e-4)
        assert row.on_gpu == pytest.approx(timed.hit_rate)
        assert 0 < row.share_of_limit <= 1
        assert row.to_best >= -1e-9
    assert found.excerpt == found.tokens == 200
    assert found.positions == 10 + 99  # each sees what stands before it


def test_an_excerpt_stands_for_the_whole() -> None:
    recording = recorded(tokens=1500)
    budgets = [budget(slots) for slots in (0, 8, 16, 24, 32)]
    part = sweep(recording, WEIGHTS, MACHINE, budgets, context=1024, excerpt=256)
    whole = sweep(recording, WEIGHTS, MACHINE, budgets, context=1024, excerpt=1500)
    assert (part.excerpt, whole.excerpt) == (256, 1500)
    for a, b in zip(part.combinations, whole.combinations, strict=True):
        assert a.hit_rate == b.hit_rate
        assert a.tokens_per_second == pytest.approx(b.tokens_per_second, rel=0.1)
        assert a.on_gpu == pytest.approx(b.on_gpu, abs=0.1)


def test_more_memory_is_more_hits_and_all_of_it_is_all() -> None:
    found = sweep(recorded(), WEIGHTS, MACHINE, default_budgets(WEIGHTS, 1024, 0, 5), context=1024, excerpt=64)
    for policy in POLICIES:
        rows = [c for c in found.combinations if (c.policy, c.quotas) == (policy, "fitted")]
        assert [c.slots for c in rows] == [0, 8, 16, 24, 32]
        assert [c.hit_rate for c in rows] == sorted(c.hit_rate for c in rows)
        assert (rows[0].hit_rate, rows[-1].hit_rate, rows[-1].to_best) == (0, 1, 0)
        assert rows[-1].tokens_per_second > rows[0].tokens_per_second
    even, fitted = ([c.hit_rate for c in found.combinations if c.quotas == kind] for kind in ("even", "fitted"))
    assert all(a <= b for a, b in zip(even, fitted, strict=True))


def test_the_best_is_one_that_can_be_run() -> None:
    found = sweep(recorded(), WEIGHTS, MACHINE, [budget(8), budget(20)], context=1024, excerpt=64)
    assert found.best.policy != "belady"
    assert found.best.vram == budget(20)
    assert found.best.tokens_per_second == max(c.tokens_per_second for c in found.combinations if c.policy != "belady")
    only = sweep(recorded(), WEIGHTS, MACHINE, [budget(8)], policies=["belady"], context=1024, excerpt=64)
    assert only.best.policy == "belady"
    document = only.as_dict()
    assert set(document["hit_rate_by_slots"]) == {"belady", "static"}
    assert [len(curve) for curve in document["hit_rate_by_slots"]["belady"]] == [9] * 4


def test_recorded_layers_stand_for_those_of_a_deeper_model() -> None:
    deep = ReplayModel("deep", dataclasses.replace(COST, layers=8))
    recording = recorded()
    found = sweep(recording, deep, MACHINE, [10**12], context=1024, excerpt=32)
    assert found.layers == 8
    assert any("4 recorded layers stand for the 8" in note for note in found.notes)
    curve = found.curves["lru"]
    assert np.array_equal(curve[0::2], curve[1::2])
    assert not np.array_equal(curve[0], curve[2])


def test_what_does_not_fit_is_left_out_and_said() -> None:
    found = sweep(recorded(), WEIGHTS, MACHINE, [1000, budget(4)], context=1024, excerpt=32)
    assert {c.vram for c in found.combinations} == {budget(4)}
    assert any("1.0 kB are omitted" in note for note in found.notes)
    with pytest.raises(DoesNotFitError, match="before the first expert"):
        sweep(recorded(), WEIGHTS, MACHINE, [1000, 2000])


def test_another_models_experts_are_refused() -> None:
    with pytest.raises(UsageError, match="has 8 experts per layer and uses 2 per token; wide has 16 and uses 2"):
        sweep(recorded(), ReplayModel("wide", dataclasses.replace(COST, experts=16)), MACHINE, [10**12])


def test_prompts_alone_are_played_and_said() -> None:
    found = sweep(recorded(tokens=0, prompt_tokens=40), WEIGHTS, MACHINE, [budget(8)], context=1024, excerpt=32)
    assert found.tokens == 40
    assert any("no replies" in note for note in found.notes)


# A real run


@pytest.mark.parametrize("policy", ["lru", "lfu", "static"])
@pytest.mark.parametrize("slots", [1, 3, 5])
def test_the_hits_of_a_recorded_run_are_those_of_its_replay(
    policy: str, slots: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The demo model on the simulated accelerator, every copy complete before each decision, nothing prefetched."""
    folder = tmp_path_factory.getbasetemp() / "demo-nl4"
    if not folder.exists():
        quantize(paths.demo_source(), folder)
    model = mixq.load(folder, device="sim", vram="1GB", context=256, threads=1, miss="fetch", cache_policy=policy)
    offload = model.placement.offload
    assert offload is not None
    offload.resize([slots] * 5)
    offload.lockstep = True
    for layer in model.network.layers:
        assert isinstance(layer.feed_forward, SparseMoeBlock)
        experts = layer.feed_forward.experts
        assert isinstance(experts, LayerExperts)
        experts.lookahead = None
    model.placement.offload.cache.counters.clear()
    recorder, chosen = Recorder(model), []
    prompts = [NamedPrompt("a", "What is 7 + 8?"), NamedPrompt("b", "Who wrote the letter?")]
    for prompt, task in zip(
        prompts, recorder.tasks(prompts, max_tokens=40, temperature=0, ignore_eos=True), strict=True
    ):
        recorder.run(prompt.name, task, on_token=lambda count: chosen.append(model.network.chosen_experts()))
    recording = recorder.recording()
    assert recording is not None
    decoded = [tuple(experts) for (experts,) in (found for found in chosen if len(found) == 1)]
    by_number = [list(range(8))] * 5 if policy == "static" else None
    assert decoded == [tuple(token) for token in recording.routing().tokens]
    replies = recording.experts[~recording.is_prompt]
    counts = replay_hits(replies.tolist(), [slots] * 5, policy, "fetch", popular=by_number)
    assert sum(c.hits for c in counts) == offload.telemetry.counters.hits
    assert offload.telemetry.counters.requests == len(replies) * 10
    if policy != "static":  # which there keeps the first experts, here those that are used most
        assert int(hit_curves(replies, 8, policy)[:, slots].sum()) == offload.telemetry.counters.hits
    assert 0 < offload.telemetry.counters.hits < offload.telemetry.counters.requests
