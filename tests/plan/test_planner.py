"""Predictions: the limits of the formulas, the bottleneck, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mixq.config import ModelConfig, RuntimeOptions
from mixq.errors import DoesNotFitError, UsageError
from mixq.experts.memory_plan import RAM_MARGIN
from mixq.models.presets import PRESETS
from mixq.plan.computer import Computer, CpuFigures, GpuFigures
from mixq.plan.planner import _read_from_disk, plan
from mixq.plan.sizes import ModelSizes

GB = 10**9
CPU = CpuFigures(
    cores=8,
    read_bandwidth=70e9,
    kernel_bandwidth=65e9,
    cache_bytes=16 << 20,
    cache_bandwidth=20e9,
    cache_bandwidth_plain=40e9,
    flops=0.8e12,
    small_flops=0.1e12,
    small_flops_plain=0.1e12,
    layer_seconds=2e-4,
    pass_seconds=1e-3,
)
CARD = GpuFigures(
    name="a card",
    memory=8 * GB,
    free=7 * GB,
    bandwidth=218e9,
    flops=25e12,
    copy_bandwidth=12e9,
    copy_back=12e9,
    copy_under_load=10e9,
    copy_latency=20e-6,
    handover_seconds=60e-6,
    launch_seconds=15e-6,
    layer_seconds=1e-4,
)
LAPTOP = Computer("a laptop", 32 * GB, CPU, ram_free=30 * GB, disk_bandwidth=3e9, gpu=CARD)
OPTIONS = RuntimeOptions()


def sizes(name: str = "mixtral-8x7b", format: str = "nl4") -> ModelSizes:
    return ModelSizes.of_format(name, format, ModelConfig.from_dict(PRESETS[name]))


def test_the_cpu_alone_takes_what_its_bytes_take() -> None:
    made = plan(sizes(), LAPTOP, replace(OPTIONS, device="cpu", context=2))
    seconds = sizes().token / 65e9 + 1e-3 + 32 * 2e-4 + sizes().kv_position("bf16") / 70e9
    assert made.decode.expected == pytest.approx(1 / seconds)
    assert made.decode.low < made.decode.expected < made.decode.high
    assert made.decode.bottleneck == "reading weights from RAM"
    assert made.prefill.bottleneck == "arithmetic"
    assert made.hit_rate is None


def test_a_sliding_window_is_all_that_is_read_of_the_kv_cache() -> None:
    dense, card = sizes("mistral-7b"), replace(CARD, memory=24 * GB, free=24 * GB)
    windowed = replace(dense, config=replace(dense.config, sliding_window=4096))
    for device in ("cpu", "cuda"):
        options = replace(OPTIONS, device=device, context=32768)
        full, seen, short = (
            plan(model, replace(LAPTOP, gpu=card), replace(options, context=context)).decode.expected
            for model, context in ((dense, 32768), (windowed, 32768), (dense, 8192))
        )
        assert seen > 1.05 * full
        assert seen == short


def test_a_gpu_helps_and_more_of_its_memory_helps_more() -> None:
    speeds = [plan(sizes(), LAPTOP, replace(OPTIONS, device="cpu")).decode.expected]
    for vram in (6, 8, 12, 16, 24):
        card = replace(CARD, memory=vram * GB, free=vram * GB)
        made = plan(sizes(), replace(LAPTOP, gpu=card), OPTIONS)
        assert made.device == "cuda"
        speeds.append(made.decode.expected)
    assert speeds == sorted(speeds)
    assert speeds[-1] > 2 * speeds[0]


def test_a_card_that_is_too_small_is_not_used_unless_asked_for() -> None:
    small = replace(LAPTOP, gpu=replace(CARD, memory=2 * GB, free=2 * GB))
    made = plan(sizes(), small, OPTIONS)
    assert made.device == "cpu"
    assert made.notes[0].startswith("The model runs on the CPU: The model needs")
    with pytest.raises(DoesNotFitError):
        plan(sizes(), small, replace(OPTIONS, device="cuda"))


def test_what_does_not_fit_into_ram_comes_from_the_disk() -> None:
    little = replace(LAPTOP, ram_free=16 * GB)
    made = plan(sizes(), little, replace(OPTIONS, device="cpu"))
    assert made.decode.bottleneck == "reading experts from the disk"
    assert "reading experts from the disk" in made.prefill.parts
    assert made.decode.expected < plan(sizes(), LAPTOP, replace(OPTIONS, device="cpu")).decode.expected / 2
    with pytest.raises(UsageError, match="the disk bandwidth of a laptop is not known"):
        plan(sizes(), replace(little, disk_bandwidth=None), OPTIONS)


def test_an_expert_in_a_slot_is_not_read_from_the_disk() -> None:
    large = replace(CARD, memory=24 * GB, free=24 * GB)
    made = plan(sizes(), replace(LAPTOP, gpu=large), replace(OPTIONS, ram=8 * GB))
    assert made.hit_rate is not None
    assert made.shares.experts_in_ram < 128
    read = made.decode.parts["reading experts from the disk"] * 3e9 / sizes().expert
    assert 0 < read <= (1 - made.hit_rate) * 64
    assert made.prefill.parts["reading experts from the disk"] == 0


def test_reads_of_a_trace_are_those_that_neither_place_holds() -> None:
    back_and_forth = [[(0, 1)], [(2, 3)]] * 8
    for slots, in_ram, expected in ((0, 2, 2), (0, 4, 0), (2, 2, 2), (2, 4, 0), (4, 2, 0)):
        assert _read_from_disk(back_and_forth, [slots], [in_ram]) == expected
    assert _read_from_disk([[(0, 1)], [(0, 2)]] * 8, [1], [1]) == 2


def test_as_much_ram_stays_free_as_the_engine_leaves() -> None:
    free = LAPTOP.ram_free
    assert free is not None
    on_cpu = replace(OPTIONS, device="cpu")
    assert plan(sizes(), LAPTOP, on_cpu).shares.total("RAM") <= free * (1 - RAM_MARGIN)
    little = replace(LAPTOP, ram_free=20 * GB)
    experts = [plan(sizes(), little, replace(on_cpu, ram=ram)).shares.experts_in_ram for ram in (None, 20 * GB)]
    assert experts[0] < experts[1]


def test_a_dense_model_lies_in_gpu_memory_as_a_whole() -> None:
    made = plan(sizes("mistral-7b"), LAPTOP, OPTIONS)
    assert made.device == "cuda"
    assert made.decode.bottleneck == "reading weights on the GPU"
    assert made.hit_rate is None
    assert made.as_dict()["experts"] == 0


def test_no_gpu_to_use_is_said() -> None:
    with pytest.raises(UsageError, match="a laptop has no GPU"):
        plan(sizes(), replace(LAPTOP, gpu=None), replace(OPTIONS, device="cuda"))


def test_even_routing_finds_fewer_experts() -> None:
    assert plan(sizes(), LAPTOP, OPTIONS, routing="uniform").hit_rate < plan(sizes(), LAPTOP, OPTIONS).hit_rate  # type: ignore[operator]


def test_plain_data_adds_up() -> None:
    found = plan(sizes(), LAPTOP, OPTIONS).as_dict()
    assert found["vram_bytes"] == sum(place["bytes"] for place in found["places"] if place["where"] == "GPU memory")
    assert sum(found["slots_by_layer"]) == found["expert_slots"]
    assert found["prefill"]["prompt_tokens"] == 512
