"""Chooses a model's accelerator: the first CUDA GPU, one simulated on the CPU, or none.

Contract: `choose_accelerator` follows --device; `auto` takes a GPU on which the kernels can run, or notes why a GPU is
not used. With several GPUs, one is used, and a note says so.
"""

from __future__ import annotations

import torch

from mixq.config import RuntimeOptions, format_size
from mixq.errors import UsageError
from mixq.experts.accelerators.cuda import CudaAccelerator
from mixq.experts.accelerators.interface import Accelerator
from mixq.experts.accelerators.simulated import SimulatedAccelerator
from mixq.kernels import triton
from mixq.system.memory import available_memory

SIMULATED_SHARE = 0.5
"""Share of the free RAM for a simulated accelerator without --vram."""


def choose_accelerator(options: RuntimeOptions, threads: int, notes: list[str]) -> Accelerator | None:
    """Return the accelerator for the options; None for the CPU alone.

    Args:
        threads: of a simulated one.
        notes: lines for the user are added.

    Raises:
        UsageError: --device cuda without a usable GPU.
    """
    if options.device == "sim":
        return SimulatedAccelerator(
            options.vram or int((available_memory() or 4 << 30) * SIMULATED_SHARE),
            threads=threads,
            bandwidth=options.sim_bandwidth,
            latency=options.sim_latency,
            exact=options.exact,
        )
    if options.device == "cpu":
        return None
    reason = triton.unavailable_reason()
    if reason is None and options.exact:
        reason = "float32 throughout runs only on the CPU."
    if options.device == "cuda" and reason is not None:
        raise UsageError(f"No GPU can be used: {reason}", hint="Use --device cpu.")
    if reason is not None:
        if torch.cuda.is_available() and not options.exact:
            notes.append(f"the GPU is not used: {reason}")
        elif torch.version.hip is not None or torch.backends.mps.is_available():  # AMD's or Apple's
            notes.append("this GPU is not supported; the model runs on the CPU.")
        return None
    if torch.cuda.device_count() > 1:
        notes.append(f"one of {torch.cuda.device_count()} GPUs is used, the first.")
    from mixq.kernels.triton.kernels import TritonKernels

    accelerator = CudaAccelerator(options.vram, TritonKernels(torch.device("cuda", 0)))
    if options.vram is not None and accelerator.memory.budget < options.vram:
        free = format_size(accelerator.memory.budget)
        notes.append(f"--vram is {format_size(options.vram)}; only {free} of GPU memory are free.")
    return accelerator
