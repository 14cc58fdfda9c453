"""GPU kernels in Triton, which read weights as stored on disk.

Contract: `kernels.TritonKernels` returns the results of `mixq.kernels.reference`, within rounding, for tensors on a
CUDA GPU; in Triton's interpreter (TRITON_INTERPRET=1, set before triton is imported) for tensors on the CPU. This file
does not import triton, so `import mixq` and computers without a GPU do not need it; `mixq doctor` shows
`unavailable_reason`.

    scalars, formats, dots          device functions: number formats, products of weight rows with activations
    activations, linears, experts, router, attention, dequantize        kernels and their launches
    weights, nf4, prefill, kernels  on the host: descriptions of weights, many rows, the class
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil

import torch

from mixq.errors import printable

MIN_CAPABILITY = (7, 5)
"""Turing: the first generation with the byte dot product on every GPU, and the oldest that Triton supports."""


def unavailable_reason() -> str | None:
    """Return why these kernels cannot run on a GPU here, or None if they can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA."
    if not torch.cuda.is_available():
        return "torch finds no CUDA GPU, or no driver for it."
    capability = torch.cuda.get_device_capability(0)
    if capability < MIN_CAPABILITY:
        return f"The GPU has compute capability {capability[0]}.{capability[1]}; mixq needs 7.5 or higher."
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
    """Return the problem if there is no C compiler, with which Triton builds kernel launchers; else None."""
    if os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or shutil.which("cc"):
        return None
    return "Triton needs a C compiler to launch kernels, and finds none: install gcc."
