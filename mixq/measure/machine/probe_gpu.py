"""Measures mixq's kernels and copies on an accelerator: a GPU, or one simulated on the CPU.

Contract: loads a model of one layer with experts of Mixtral's size, which measures the scheduler's cost model
(`mixq.experts.calibration`); small models measure the other costs of a layer. All memory is freed afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mixq.config import RuntimeOptions
from mixq.engine.model import Model
from mixq.experts.cost import Hardware
from mixq.measure.machine.passes import LARGE, Passes, SmallSteps, typical
from mixq.measure.speed.synthetic import SyntheticWeights
from mixq.plan.computer import Computer, GpuFigures
from mixq.system.huge_pages import allocate
from mixq.system.memory import available_memory

SIMULATED = "a GPU simulated on the CPU"
_BACK = 64 << 20
_LOCKED, _LOCKED_STEP = 4 << 30, 512 << 20


def measure_gpu(device: str = "cuda", **options: Any) -> GpuFigures:
    """Return an accelerator's figures; `options` are those of the model to load."""
    model = Model(SyntheticWeights.make(LARGE, mix="all-nl4"), RuntimeOptions.from_kwargs(device=device, **options))
    try:
        accelerator = model.placement.accelerator
        assert accelerator is not None
        hardware = _hardware(model)
        name = torch.cuda.get_device_name(0) if device == "cuda" else SIMULATED
        memory, free = accelerator.memory.budget, accelerator.memory.budget
        if device == "cuda":
            free, memory = torch.cuda.mem_get_info(0)
            free += accelerator.memory.taken
        on_device = accelerator.allocate(_BACK)
        in_host = accelerator.host_rows(_BACK, dtype=torch.uint8)

        def back(_: int) -> None:
            accelerator.to_host(on_device, in_host)
            accelerator.hand_over().wait()

        copy_back = _BACK / typical(back, 3)
        accelerator.release(on_device)
        limit = locked_limit(accelerator.register) if accelerator.registers else None
    finally:
        model.close()
    small = SmallSteps.measure(device, "nl4")
    layer = small.wall_seconds - hardware.handover_seconds - 2 * hardware.launch_seconds  # included in the cost model
    return _figures(name, memory, free, hardware, copy_back, layer, limit)


def _hardware(model: Model) -> Hardware:
    assert model.placement.offload is not None
    return model.placement.offload.scheduler.cost.hardware


def _figures(
    name: str, memory: int, free: int, hardware: Hardware, copy_back: float, layer: float, limit: int | None = None
) -> GpuFigures:
    return GpuFigures(
        name=name,
        memory=memory,
        free=free,
        bandwidth=hardware.gpu_bandwidth,
        flops=hardware.gpu_flops,
        copy_bandwidth=hardware.copy_bandwidth,
        copy_back=copy_back,
        copy_under_load=hardware.shared()[1],
        copy_latency=hardware.copy_latency,
        handover_seconds=hardware.handover_seconds,
        launch_seconds=hardware.launch_seconds,
        layer_seconds=max(layer, 0.0),
        pinned_limit=limit,
    )


def locked_limit(register: Callable[[Tensor], bool]) -> int | None:
    """Return how many more bytes can be locked for copies; None if there is no limit up to 4 GiB.

    CUDA does not use `ulimit -l`, so it must be tried: WSL and its containers refuse at about a gigabyte.

    Args:
        register: locks memory, or refuses; the memory stays locked until its owner releases it.
    """
    free = available_memory()
    most = _LOCKED if free is None else min(_LOCKED, free // 2)
    for locked in range(0, most - _LOCKED_STEP + 1, _LOCKED_STEP):
        if not register(allocate(_LOCKED_STEP)):
            return locked
    return None


def simulated(computer: Computer, vram: int | None = None) -> Computer:
    """Return the computer while it simulates a GPU (`--device sim`) with this much memory.

    Cores and RAM do the work of both, so the speeds of a decode step and a prompt are measured with half of the experts
    in slots.
    """
    memory = vram or (available_memory() or 8 << 30) // 2
    with closing(Passes(LARGE, "all-nl4", "sim")) as large:
        hardware = _hardware(large.model)
        flops = large.operations / large.prompt_seconds(3)
        bandwidth = large.token_bytes / large.step_seconds(24)[0]
    alone = SmallSteps.measure("cpu", "nl4")
    packed, plain = (SmallSteps.measure("sim", mix) for mix in ("nl4", "bf16"))
    cpu = replace(
        computer.cpu,
        kernel_bandwidth=bandwidth,
        flops=flops,
        small_flops=packed.prompt_flops,
        small_flops_plain=plain.prompt_flops,
    )
    layer = packed.wall_seconds - alone.wall_seconds
    gpu = _figures(SIMULATED, memory, memory, hardware, hardware.copy_bandwidth, layer)
    return replace(computer, name=f"{computer.name}, simulating a GPU", cpu=cpu, gpu=gpu)
