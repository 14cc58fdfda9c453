"""Preset computers, for plans for another computer.

Contract: achieved speeds, not those of data sheets. GPU memory at 85 % of its nominal bandwidth (256 GB/s of an RTX
4060 laptop GPU, 360 of an RTX 3060 12 GB, 1008 of an RTX 4090); prompts at about a third of the nominal bfloat16 rate;
links as in long copies (PCIe 4.0 x8 12 of 16 GB/s, x16 25 of 32 GB/s); RAM at 85 % of two channels' nominal bandwidth
(DDR4-3200 51, DDR5-5600 90 GB/s), of which decode kernels get 90 %. A desktop uses 0.8 GB of the GPU's memory and 4 GB
of RAM. Launch, handover and Python overhead are those of a current CPU core.
"""

from __future__ import annotations

import os

from mixq.errors import UsageError, did_you_mean, printable
from mixq.plan.computer import Computer, CpuFigures, GpuFigures
from mixq.system import paths

GB = 10**9
TFLOPS = 1e12


def _cpu(cores: int, ram_bandwidth: float, flops: float, cache: int) -> CpuFigures:
    return CpuFigures(
        cores=cores,
        read_bandwidth=ram_bandwidth,
        kernel_bandwidth=0.9 * ram_bandwidth,
        cache_bytes=cache,
        cache_bandwidth=7e9,
        cache_bandwidth_plain=25e9,
        flops=flops,
        small_flops=0.15 * TFLOPS,
        small_flops_plain=0.15 * TFLOPS,
        layer_seconds=60e-6,
        pass_seconds=50e-6,
    )


def _gpu(name: str, memory: int, bandwidth: float, flops: float, link: float) -> GpuFigures:
    return GpuFigures(
        name=name,
        memory=memory,
        free=memory - 8 * GB // 10,
        bandwidth=bandwidth,
        flops=flops,
        copy_bandwidth=link,
        copy_back=link,
        copy_under_load=0.9 * link,
        copy_latency=20e-6,
        handover_seconds=60e-6,
        launch_seconds=15e-6,
        layer_seconds=150e-6,
    )


def _computer(name: str, ram: int, cpu: CpuFigures, disk: float, gpu: GpuFigures | None) -> Computer:
    return Computer(name, ram * GB, cpu, ram_free=(ram - 4) * GB, disk_bandwidth=disk, gpu=gpu)


COMPUTERS: dict[str, Computer] = {
    "laptop-8gb": _computer(
        "a laptop: 8 GB GPU, PCIe 4.0 x8, 32 GB DDR5, 8 cores",
        32,
        _cpu(8, 76e9, 0.8 * TFLOPS, 24 << 20),
        3.0e9,
        _gpu("8 GB laptop GPU", 8 * GB, 218e9, 25 * TFLOPS, 12e9),
    ),
    "rtx-3060-12gb": _computer(
        "a desktop: RTX 3060 12 GB, PCIe 4.0 x16, 32 GB DDR4, 6 cores",
        32,
        _cpu(6, 43e9, 0.5 * TFLOPS, 32 << 20),
        2.5e9,
        _gpu("RTX 3060 12 GB", 12 * GB, 306e9, 17 * TFLOPS, 22e9),
    ),
    "rtx-4090": _computer(
        "a desktop: RTX 4090 24 GB, PCIe 4.0 x16, 64 GB DDR5, 16 cores",
        64,
        _cpu(16, 76e9, 1.2 * TFLOPS, 36 << 20),
        5.0e9,
        _gpu("RTX 4090", 24 * GB, 857e9, 100 * TFLOPS, 25e9),
    ),
    "cpu-laptop": _computer(
        "a laptop without a GPU: 32 GB DDR5, 8 cores", 32, _cpu(8, 76e9, 0.8 * TFLOPS, 24 << 20), 3.0e9, None
    ),
}


def find_computer(name: str) -> Computer:
    """Return a preset, or the computer of a hardware file.

    Raises:
        UsageError: neither a preset nor a file.
        ModelFileError: not a hardware file, or figures out of bounds.
    """
    if name in COMPUTERS:
        return COMPUTERS[name]
    path = paths.expand(name)
    if os.path.isfile(path):  # unlike Path.is_file, it takes a name of any length
        return Computer.read(path)
    raise UsageError(
        f"{printable(repr(name))} is neither a hardware file nor a preset. The presets are {', '.join(COMPUTERS)}."
        + did_you_mean(name.lower(), COMPUTERS),
        hint="Write a hardware file on the other computer: mixq doctor --save FILE",
    )
