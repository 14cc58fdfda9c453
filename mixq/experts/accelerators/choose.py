"""Which accelerator a model runs on: the first CUDA GPU, one simulated on the CPU, or none.

Contract: `choose_accelerator` follows --device; `auto` takes a GPU whose kernels can run, and notes why one that is
there is not used. One GPU is used; with more a note says so.
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
"""Share of the free RAM that a simulated accelerator has without --vram."""


def choose_accelerator(options: RuntimeOptions, threads: int, notes: list[str]) -> Accelerator | None:
    """Return the accelerator of the options, None for the CPU alone.

    Args:
        threads: of a simulated one.
        notes: a line is added for what the user should know.

    Raises:
        UsageError: --device cuda without a GPU that can be used.
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
        reason = "float32 throughout is computed by the CPU."
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
    if options.vram is not None and accelerator.memory.promised < options.vram:
        free = format_size(accelerator.memory.promised)
        notes.append(f"--vram is {format_size(options.vram)}; only {free} of GPU memory are free.")
    return accelerator
