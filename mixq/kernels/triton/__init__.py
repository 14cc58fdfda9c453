"""GPU kernels in Triton, over the same bytes as on disk.

Contract: `kernels.TritonKernels` answers as `mixq.kernels.reference` does, within rounding, over tensors of a CUDA
GPU; in Triton's interpreter (TRITON_INTERPRET=1, set before triton is imported) over tensors of the CPU. This file
imports no triton, so `import mixq` and a machine without a GPU do not need it; `unavailable_reason` is what
`mixq doctor` shows.

    scalars, formats, dots          device functions: number formats, products of weight rows with activations
    activations, linears, experts, router, attention, dequantize        kernels, each with what launches it
    weights, nf4, prefill, kernels  the host's side: binding weights, many rows, the class
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil

import torch

from mixq.errors import printable

MIN_CAPABILITY = (7, 5)
"""Turing: the first with the byte dot product on every card, and what Triton still compiles for."""


def unavailable_reason() -> str | None:
    """Return why these kernels cannot run on a GPU here, or None if they can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA."
    if not torch.cuda.is_available():
        return "torch finds no CUDA GPU, or no driver for it."
    capability = torch.cuda.get_device_capability(0)
    if capability < MIN_CAPABILITY:
        return f"The GPU has compute capability {capability[0]}.{capability[1]}; 7.5 is the least that is supported."
    return import_reason() or compiler_reason()


def import_reason() -> str | None:
    """Return why triton cannot be imported, or None. Imports it."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install triton."
    try:
        importlib.import_module("triton.language")
    except (ImportError, OSError) as error:
        return f"Triton cannot be imported: {printable(str(error))}"
    return None


def compiler_reason() -> str | None:
    """Return that there is no C compiler, with which Triton builds the function that launches a kernel, or None."""
    if os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or shutil.which("cc"):
        return None
    return "Triton finds no C compiler, which it needs to launch kernels: install gcc."
