"""What mixq's kernels and copies get out of an accelerator: a GPU, or the one that the CPU plays.

Contract: a model of one layer with experts of Mixtral's size is loaded there, which measures what the scheduler goes by
(`mixq.experts.calibration`); small models tell what a layer costs besides. Nothing stays in its memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mixq.config import ModelConfig, RuntimeOptions
from mixq.engine.model import Model
from mixq.measure.machine.probe_cpu import LARGE, PROMPT, SMALL, SMALL_CONTEXT, SmallSteps, typical
from mixq.measure.speed.synthetic import SyntheticWeights, resolve_mix
from mixq.measure.speed.workload import Workload, prompt_operations, weight_bytes
from mixq.model.attention import Chunk
from mixq.plan.computer import Computer, GpuFigures
from mixq.plan.shares import GPU, share_out
from mixq.plan.sizes import ModelSizes
from mixq.system.huge_pages import allocate
from mixq.system.memory import available_memory

_BACK = 64 << 20
_LOCKED, _LOCKED_STEP = 4 << 30, 512 << 20
_PLENTY = 4 << 30


def measure_gpu(device: str = "cuda", **options: Any) -> GpuFigures:
    """Return an accelerator's figures; `options` are those of the model that is loaded on it."""
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

        copy_back = _BACK / typical(back, 3)
        accelerator.release(on_device)
        limit = locked_limit(accelerator.register) if accelerator.registers else None
    finally:
        model.close()
    small = SmallSteps.measure(device, "nl4", lambda layers: _for_half_of_the_experts(SMALL, layers, device, "nl4"))
    layer = small.wall_seconds - hardware.handover_seconds - 2 * hardware.launch_seconds  # counted by the cost model
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
    """Return the bytes that can be locked for copies, beside what is; None for no limit within 4 GiB.

    CUDA does not go by `ulimit -l`, so only trying tells: WSL and containers on it refuse at a gigabyte or so.

    Args:
        register: locks memory, or refuses; what it took stays locked until its owner gives it back.
    """
    free = available_memory()
    most = _LOCKED if free is None else min(_LOCKED, free // 2)
    for locked in range(0, most - _LOCKED_STEP + 1, _LOCKED_STEP):
        if not register(allocate(_LOCKED_STEP)):
            return locked
    return None


def simulated(computer: Computer, vram: int | None = None) -> Computer:
    """Return the computer as it is while it plays a GPU (`--device sim`) of so much memory.

    Its cores compute what both would, and its RAM is read and copied for both: what a step and a prompt get out of them
    is measured with half of the experts in slots.
    """
    memory = vram or (available_memory() or 8 << 30) // 2
    config = {"device": "sim", "vram": _for_half_of_the_experts(LARGE, 1, "sim", "all-nl4"), "context": PROMPT + 64}
    model = Model(SyntheticWeights.make(LARGE, mix="all-nl4"), RuntimeOptions.from_kwargs(**config))
    try:
        placement = model.placement
        assert placement.offload is not None
        hardware = placement.offload.scheduler.cost.hardware
        cache = model.new_kv_cache()
        ids = torch.randint(256, (PROMPT,), generator=torch.Generator().manual_seed(0))

        def prompt(_: int) -> None:
            cache.truncate(0)
            model.network.forward([Chunk(ids, cache)])

        def step(number: int) -> None:
            model.network.forward([Chunk(ids[number : number + 1], cache)])

        flops = prompt_operations(model.config, Workload(PROMPT, 0, 0)) / typical(prompt, 3)
        bandwidth = weight_bytes(model.folder) / typical(step, 24)
    finally:
        model.close()
    alone = SmallSteps.measure("cpu", "nl4")
    packed, plain = (
        SmallSteps.measure("sim", mix, lambda layers, mix=mix: _for_half_of_the_experts(SMALL, layers, "sim", mix))  # type: ignore[misc]
        for mix in ("nl4", "bf16")
    )
    cpu = replace(
        computer.cpu,
        kernel_bandwidth=bandwidth,
        flops=flops,
        small_flops=packed.prompt_flops,
        small_flops_plain=plain.prompt_flops,
    )
    gpu = GpuFigures(
        name="a GPU that the CPU plays",
        memory=memory,
        free=memory,
        bandwidth=hardware.gpu_bandwidth,
        flops=hardware.gpu_flops,
        copy_bandwidth=hardware.copy_bandwidth,
        copy_back=hardware.copy_bandwidth,
        copy_under_load=hardware.shared()[1],
        copy_latency=hardware.copy_latency,
        handover_seconds=hardware.handover_seconds,
        launch_seconds=hardware.launch_seconds,
        layer_seconds=max(packed.wall_seconds - alone.wall_seconds, 0.0),
    )
    return replace(computer, name=f"{computer.name}, playing a GPU", cpu=cpu, gpu=gpu)


def _for_half_of_the_experts(shape: Mapping[str, Any], layers: int, device: str, mix: str) -> int:
    """Return the memory in which half of a model's experts have a slot."""
    config = ModelConfig.from_dict({**shape, "num_hidden_layers": layers})
    sizes = ModelSizes.of_mix("probe", mix, config, resolve_mix(config, mix))
    shares = share_out(sizes, RuntimeOptions(context=SMALL_CONTEXT), device, None, _PLENTY)
    assert shares.memory is not None
    return shares.total(GPU) - shares.memory.slots // 2 * shares.memory.slot_bytes
