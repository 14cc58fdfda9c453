"""The cost model: the arithmetic of a roofline, and what follows from it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from mixq.config import ModelConfig
from mixq.errors import UsageError
from mixq.experts.cost import CostModel, Hardware, ModelCost
from mixq.models.presets import PRESETS
from mixq.plan.sizes import ModelSizes

HARDWARE = Hardware(
    "test",
    cpu_bandwidth=50e9,
    cpu_flops=1e12,
    gpu_bandwidth=500e9,
    gpu_flops=50e12,
    copy_bandwidth=10e9,
    copy_latency=1e-3,
    handover_seconds=0.0,
    launch_seconds=0.0,
    ram_bandwidth=60e9,
)
MODEL = ModelCost(
    layers=4,
    experts=8,
    active=2,
    expert_bytes=100_000_000,
    trunk_bytes=20_000_000,
    head_bytes=100_000_000,
    kv_bytes=4096,
    expert_flops=400_000_000,
)
COST = CostModel(HARDWARE, MODEL)


def test_few_rows_cost_bytes_and_many_cost_arithmetic() -> None:
    assert COST.cpu_seconds(2) == pytest.approx(2 * 100e6 / 50e9)
    assert COST.cpu_seconds(1, rows=5) == COST.cpu_seconds(1)
    assert COST.cpu_seconds(1, rows=100) == pytest.approx(100 * 400e6 / 1e12)
    assert COST.gpu_seconds(0) == 0
    assert COST.gpu_seconds(3) == pytest.approx(3 * 100e6 / 500e9)
    assert COST.copy_seconds() == pytest.approx(1e-3 + 100e6 / 10e9)
    assert COST.trunk_seconds(1000) - COST.trunk_seconds() == pytest.approx(1000 * 4096 / 500e9)


def test_cpu_and_copies_share_the_ram() -> None:
    assert HARDWARE.shared() == pytest.approx((50e9, 10e9))  # 60 GB/s are enough for both
    narrow = replace(HARDWARE, ram_bandwidth=0.0)  # the CPU alone takes all there is
    assert sum(narrow.shared()) == pytest.approx(50e9)
    assert CostModel(HARDWARE, MODEL).copy_costs_cpu() == pytest.approx(0)
    # Where all of the RAM is read, a byte copied is a byte that the CPU does not read.
    assert CostModel(narrow, MODEL).copy_costs_cpu() == pytest.approx(CostModel(narrow, MODEL).cpu_seconds(1))
    assert replace(HARDWARE, copy_bandwidth=90e9).copy_alone == 60e9, "no copy is faster than the RAM"


def test_a_layer_is_done_when_the_last_of_cpu_and_gpu_is() -> None:
    expert, gpu, copy = COST.cpu_seconds(1), COST.gpu_seconds(1), COST.copy_seconds()
    assert COST.layer_seconds(2, 0, 0) == pytest.approx(2 * gpu)
    assert COST.layer_seconds(1, 1, 0) == pytest.approx(expert)
    assert COST.layer_seconds(0, 1, 1) == pytest.approx(copy + gpu), "the CPU computes while the other is copied"
    assert COST.layer_seconds(0, 0, 2, begin=0.5) == pytest.approx(0.5 + 2 * copy + gpu), "one copy after the other"
    assert COST.layer_seconds(0, 0, 0, arrivals=(0.1, 0.2)) == pytest.approx(0.2 + gpu)
    narrow = CostModel(replace(HARDWARE, ram_bandwidth=0.0), MODEL)
    assert narrow.layer_seconds(0, 9, 1) > COST.layer_seconds(0, 9, 1), "the copy took bandwidth from the CPU"


def test_what_is_slower_takes_longer() -> None:
    slow = COST.slowed(cpu=2, copy=4)
    assert slow.cpu_seconds(1) == pytest.approx(2 * COST.cpu_seconds(1))
    assert slow.gpu_seconds(1) == COST.gpu_seconds(1)
    assert slow.copy_seconds() == pytest.approx(4 * COST.copy_seconds())
    assert slow.hardware.ram == HARDWARE.ram


def test_the_limit_is_the_longest_of_three_places_read_at_once() -> None:
    assert COST.limit_seconds(500e9, 1, 1) == pytest.approx(1)
    assert COST.limit_seconds(1, 100e9, 1) == pytest.approx(2)
    assert COST.limit_seconds(1, 1, 30e9) == pytest.approx(3)


def test_mixtrals_sizes_are_those_of_its_folder() -> None:
    model = ModelSizes.of_format("mixtral-8x7b", "nl4", ModelConfig.from_dict(PRESETS["mixtral-8x7b"])).cost()
    read = 32 * (2 * model.expert_bytes + model.trunk_bytes) + model.head_bytes
    assert read == pytest.approx(7.0e9, rel=0.02), "bytes that a token reads"
    assert model.expert_bytes == pytest.approx(176.2e6 * 4.26 / 8, rel=0.005)
    assert model.kv_bytes * model.layers == 128 << 10


@pytest.mark.parametrize("field", ["cpu_bandwidth", "copy_bandwidth", "gpu_flops", "copy_latency", "ram_bandwidth"])
def test_senseless_figures_are_refused(field: str) -> None:
    with pytest.raises(UsageError, match=field):
        replace(HARDWARE, **{field: -1.0})


def test_neither_torch_nor_numpy_is_needed() -> None:
    code = "import sys, mixq.experts.cost, mixq.plan.replay; print({'torch', 'numpy'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
