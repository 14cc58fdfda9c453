"""Where an expert is computed does not change the answer: the simulated accelerator has the CPU's bits."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mixq
from mixq.config import CACHE_POLICIES, MISS_MODES
from mixq.experts.accelerators.simulated import SimulatedAccelerator
from mixq.experts.memory_plan import MemoryPlan
from mixq.experts.offload import ExpertOffload
from mixq.quantize import quantize
from tests.checkpoints import write_tiny_mixtral
from tests.experts.conftest import CONTEXT, NEXT, PROMPT, logits, memory_for
from tests.experts.invariants import check_cache

SLOW = 300_000_000
"""Bytes a second: an expert of the demo model takes a millisecond, longer than a layer."""


def load(demo: Path, plan: MemoryPlan, slots: int, **options: object) -> mixq.Model:
    vram = memory_for(plan, slots) + 3 * plan.kv_cache  # logits() has three caches at once
    model = mixq.load(demo, device="sim", vram=vram, context=CONTEXT, threads=1, seed=1, **options)
    offload = offload_of(model)
    offload.resize([slots] * offload.store.layers)
    return model


def offload_of(model: mixq.Model) -> ExpertOffload:
    assert model.placement.offload is not None
    return model.placement.offload


@pytest.mark.parametrize("policy", CACHE_POLICIES)
@pytest.mark.parametrize("miss", MISS_MODES)
@pytest.mark.parametrize("slots", [0, 1, 2, 4, 8])
def test_every_cache_gives_the_cpus_bits(
    demo: Path, plan: MemoryPlan, expected: Tensor, slots: int, miss: str, policy: str
) -> None:
    """Admissions are under way all the time: the link is slower than the layers."""
    model = load(demo, plan, slots, miss=miss, cache_policy=policy, sim_bandwidth=SLOW)
    offload = offload_of(model)
    assert torch.equal(logits(model), expected)
    offload.quiesce()
    check_cache(offload.cache)
    counters = offload.telemetry.counters
    assert counters.requests == counters.hits + counters.waits + counters.fetches + counters.on_cpu
    if miss == "fetch":
        assert counters.on_cpu == counters.prefill_on_cpu == 0
    if miss == "cpu":
        assert counters.fetches == counters.waits == counters.prefill_streamed == 0
    if slots == 8:
        assert counters.hits == counters.requests > 0


def test_prompts_stream_what_is_not_there_and_fill_empty_slots(demo: Path, plan: MemoryPlan) -> None:
    cpu = mixq.load(demo, device="cpu", context=CONTEXT, threads=1)
    prompt = [1, *range(200, 300)]
    for slots in (0, 3):
        model = load(demo, plan, slots, miss="auto", sim_bandwidth=SLOW)
        offload = offload_of(model)
        offload.resize([0] * offload.store.layers)
        offload.resize([slots] * offload.store.layers)  # empty ones
        assert torch.equal(model.forward(prompt), cpu.forward(prompt))
        assert offload.telemetry.counters.prefill_streamed > 0
        offload.quiesce()
        filled = [sum(offload.cache.state(layer, e) is not None for e in range(8)) for layer in range(5)]
        assert all(count == slots for count in filled)


def test_slots_that_shrink_and_grow_while_admissions_are_under_way(
    demo: Path, plan: MemoryPlan, expected: Tensor
) -> None:
    model = load(demo, plan, 4, miss="cpu", sim_bandwidth=SLOW)
    offload = offload_of(model)
    cache = model.new_kv_cache()
    rows = [model.forward(PROMPT, kv_cache=cache)]
    busy = 0
    for token, slots in zip(NEXT, [4, 1, 3, 0, 2, 4, 1, 0, 1, 3], strict=True):
        rows.append(model.forward([token], kv_cache=cache))
        busy += len(offload.uploader._under_way)
        offload.resize([slots] * offload.store.layers)
        check_cache(offload.cache)
    assert busy > 0, "the test is about uploads that are under way"
    assert torch.equal(torch.cat(rows), expected[: len(PROMPT) + len(NEXT)])


def test_memory_that_another_program_takes_costs_slots_and_one_line_and_the_answer_goes_on(
    demo: Path, plan: MemoryPlan
) -> None:
    cpu = mixq.load(demo, device="cpu", context=CONTEXT, threads=1)
    model = load(demo, plan, 4, miss="auto")
    accelerator = model.placement.accelerator
    assert isinstance(accelerator, SimulatedAccelerator)
    before = offload_of(model).slots
    events = []
    for i, event in enumerate(model.generate(PROMPT, temperature=0, max_tokens=20, ignore_eos=True)):
        if i == 8:
            accelerator.take_away(accelerator.memory.free + 5 * plan.slot_bytes)
        events.append(event)
    notices = [event for event in events if isinstance(event, mixq.Notice) and "memory" in event.text]
    assert len(notices) == 1
    assert "5 of 20 expert slots" in notices[0].text
    assert offload_of(model).slots == before - 5
    done = events[-1]
    assert isinstance(done, mixq.Done)
    whole = cpu.generate(PROMPT, stream=False, temperature=0, max_tokens=20, ignore_eos=True)
    assert done.token_ids == whole.token_ids
    assert accelerator.memory.taken <= accelerator.memory.budget


def test_when_no_slot_is_left_to_give_the_user_is_told(demo: Path, plan: MemoryPlan) -> None:
    model = load(demo, plan, 1, miss="auto")
    accelerator = model.placement.accelerator
    assert isinstance(accelerator, SimulatedAccelerator)
    cache = model.new_kv_cache()
    accelerator.take_away(accelerator.memory.budget)
    with pytest.raises(mixq.MixqError, match="Out of GPU memory"):
        model.forward(PROMPT, kv_cache=cache)


@pytest.mark.parametrize("where", ["cpu", "launch", "upload"])
@pytest.mark.parametrize("prompt", [False, True])
def test_a_pass_that_is_broken_off_leaves_nothing_in_use(
    demo: Path, plan: MemoryPlan, expected: Tensor, monkeypatch: pytest.MonkeyPatch, where: str, prompt: bool
) -> None:
    """Ctrl-C may come at any point; the next pass gives the right answer and every slot can be evicted again."""
    model = load(demo, plan, 2, miss="auto" if where != "upload" else "fetch", sim_bandwidth=SLOW)
    offload = offload_of(model)
    offload.stream_tokens = 12
    owner, name = {
        "cpu": (offload.host_kernels, "experts"),
        "launch": (offload.accelerator, "launch"),
        "upload": (offload.uploader, "start"),
    }[where]
    cache = model.new_kv_cache()
    if not prompt:
        model.forward(PROMPT, kv_cache=cache)
    original: Callable[..., object] = getattr(owner, name)
    calls = 0

    def go_on() -> None:
        for _ in range(40):
            model.forward(PROMPT if prompt else [5], kv_cache=cache)
            cache.truncate(0 if prompt else len(PROMPT))

    def sometimes(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, sometimes)
        with pytest.raises(KeyboardInterrupt):
            go_on()
    assert torch.equal(logits(model), expected)
    offload.quiesce()
    check_cache(offload.cache)
    assert not any(slot.readers for layer in offload.cache._layers for slot in layer.slots.values())


def test_three_experts_a_token_are_summed_in_the_routers_order(tmp_path: Path) -> None:
    """With more than two, the order of the sum shows in the bits."""
    write_tiny_mixtral(tmp_path / "source", ffn=128, layers=3, experts=6, num_experts_per_tok=3, vocab=800)
    quantize(tmp_path / "source", tmp_path / "nl4")
    cpu = mixq.load(tmp_path / "nl4", device="cpu", context=CONTEXT, threads=1)
    sim = mixq.load(tmp_path / "nl4", device="sim", vram="3MB", context=CONTEXT, threads=1, miss="cpu")
    offload = offload_of(sim)
    offload.resize([2] * 3)
    offload.lockstep = True
    following = [30, 60, 90, 120, 150, 180]
    assert torch.equal(logits(sim, PROMPT, following), logits(cpu, PROMPT, following))
    assert 0 < offload.telemetry.counters.hits < offload.telemetry.counters.requests


@pytest.mark.parametrize("format", ["bf16", "w4", "w8", "nf4"])
@pytest.mark.parametrize("kv", ["bf16", "int8"])
def test_other_formats_and_an_int8_cache(tmp_path: Path, format: str, kv: str) -> None:
    source = tmp_path / "source"
    write_tiny_mixtral(source, ffn=128, layers=2, vocab=800)
    folder = source
    if format != "bf16":
        folder = tmp_path / format
        quantize(source, folder, format=format)
    cpu = mixq.load(folder, device="cpu", context=CONTEXT, threads=1, kv=kv)
    sim = mixq.load(folder, device="sim", vram="8MB", context=CONTEXT, threads=1, kv=kv)
    if format == "nf4":
        assert any("nf4" in note for note in sim.notes)
    else:
        offload_of(sim).resize([1, 2])
    following = [30, 60, 90]
    assert torch.equal(logits(sim, PROMPT, following), logits(cpu, PROMPT, following))


def test_exact_mode_runs_on_the_accelerator_too(demo: Path) -> None:
    cpu = mixq.load(demo, device="cpu", context=CONTEXT, exact=True)
    sim = mixq.load(demo, device="sim", vram="100MB", context=CONTEXT, exact=True)
    offload_of(sim).resize([2] * 5)
    assert torch.allclose(sim.forward(PROMPT), cpu.forward(PROMPT), atol=1e-4)


def test_a_model_that_is_dropped_takes_its_threads_and_memory_with_it(demo: Path, plan: MemoryPlan) -> None:
    before = set(threading.enumerate())
    model = load(demo, plan, 2)
    model.generate(PROMPT, temperature=0, max_tokens=4, stream=False)
    accelerator = weakref.ref(model.placement.accelerator)
    own = [thread for thread in threading.enumerate() if thread not in before and thread.name.startswith("mixq")]
    assert len(own) == 3
    del model
    for _ in range(12_000):  # two minutes at most
        gc.collect()
        if accelerator() is None and not any(thread.is_alive() for thread in own):
            return
        time.sleep(0.01)
    raise AssertionError(f"left: {accelerator()}, {[thread.name for thread in own if thread.is_alive()]}")
