"""What mixq's kernels and copies get out of an accelerator: a GPU, or the one that the CPU plays.

Contract: a model of one layer with experts of Mixtral's size is loaded there, which measures what the scheduler goes by
(`mixq.experts.calibration`); small models tell what a layer costs besides. Nothing stays in its memory.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from mixq.bench.probe_cpu import LARGE, SMALL, SmallSteps, fastest
from mixq.bench.synthetic import SyntheticWeights
from mixq.config import ModelConfig, RuntimeOptions
from mixq.engine import Model
from mixq.formats.mix import Mix
from mixq.memory import available_memory
from mixq.plan.computer import Computer, GpuFigures
from mixq.plan.shares import GPU, share_out
from mixq.plan.sizes import ModelSizes

_BACK = 64 << 20
_PLENTY = 1 << 30


def measure_gpu(device: str, cpu_layer_seconds: float, **options: Any) -> GpuFigures:
    """Return an accelerator's figures.

    Args:
        device: cuda or sim.
        cpu_layer_seconds: what a layer of a small model takes on the CPU alone, for sim.
        options: of the simulated accelerator.
    """
    model = Model(SyntheticWeights.make(LARGE, mix="all-nl4"), RuntimeOptions.from_kwargs(device=device, **options))
    try:
        placement = model.placement
        assert placement.offload is not None
        assert placement.accelerator is not None
        accelerator = placement.accelerator
        hardware = placement.offload.scheduler.cost.hardware
        name = torch.cuda.get_device_name(0) if device == "cuda" else "a GPU that the CPU plays"
        memory, free = accelerator.memory.promised, accelerator.memory.promised
        if device == "cuda":
            free, memory = torch.cuda.mem_get_info(0)
            free += accelerator.memory.taken
        on_device = accelerator.allocate(_BACK)
        in_host = accelerator.host_rows(_BACK, dtype=torch.uint8)

        def back(_: int) -> None:
            accelerator.to_host(on_device, in_host)
            accelerator.hand_over().wait()

        copy_back = _BACK / fastest(back, 3)
        accelerator.release(on_device)
    finally:
        model.close()
    small = SmallSteps.measure(device, "nl4", _half_of_the_experts(device))
    if device == "sim":
        layer = small.wall_seconds - cpu_layer_seconds
    else:  # what the cost model counts by itself
        layer = small.wall_seconds - hardware.handover_seconds - 2 * hardware.launch_seconds
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
    )


def _half_of_the_experts(device: str) -> dict[str, Any]:
    """Return options with which half of a small model's experts have a slot."""
    config = ModelConfig.from_dict(SMALL)
    sizes = ModelSizes.of_mix("small", "nl4", config, Mix.resolve(config))
    shares = share_out(sizes, RuntimeOptions(context=1024), device, None, _PLENTY)
    assert shares.memory is not None
    return {"vram": shares.total(GPU) - shares.memory.slots // 2 * shares.memory.slot_bytes}


def with_simulated_gpu(computer: Computer, cpu_layer_seconds: float, vram: int | None) -> Computer:
    """Return the computer with the GPU that `--device sim` plays."""
    figures = measure_gpu("sim", cpu_layer_seconds, vram=_PLENTY)
    memory = vram or (available_memory() or 8 << 30) // 2
    return replace(computer, gpu=replace(figures, memory=memory, free=memory))
