"""What the checks in Triton's interpreter share. Imported only where TRITON_INTERPRET was set before triton came."""

from __future__ import annotations

import os

import torch

from mixq.kernels.triton.kernels import TritonKernels

assert os.environ.get("TRITON_INTERPRET") == "1", "test_interpreter.py runs the checks"

CPU = torch.device("cpu")


def kernels() -> TritonKernels:
    return TritonKernels(CPU)
