"""Weights that cannot be stored: NaN, infinite, or beyond what bfloat16 (or float16) holds.

Contract: counts and locates them in blocks, without a copy of the tensor. A NaN would ruin a whole row in the scale
search without an error.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mixq.quantize.threads import serial_operations

BLOCK = 1 << 20


def count_nonfinite(tensor: Tensor, stored: torch.dtype = torch.bfloat16) -> tuple[int, tuple[int, ...]]:
    """Return how many elements are not finite in the dtype `stored`, and the index of the first; () if all are."""
    flat, limit = tensor.reshape(-1), _limit(tensor, stored)
    count = first = 0
    with serial_operations():
        for start in range(0, flat.numel(), BLOCK):
            block = flat[start : start + BLOCK]
            # both are NaN if any element is; one pass, ten times as fast as locating them
            low, high = torch.aminmax(block)
            if -limit <= low.item() and high.item() <= limit:
                continue
            bad = ~(block.abs() <= limit)  # comparisons with NaN are false
            if count == 0:
                first = start + int(bad.to(torch.uint8).argmax())
            count += int(bad.sum())
    if count == 0:
        return 0, ()
    return count, tuple(int(index) for index in np.unravel_index(first, tensor.shape))


def zero_nonfinite(tensor: Tensor, stored: torch.dtype = torch.bfloat16) -> Tensor:
    """Return the tensor with 0 for the elements that this dtype cannot hold."""
    return torch.where(tensor.abs() <= _limit(tensor, stored), tensor, 0.0)


def _limit(tensor: Tensor, stored: torch.dtype) -> float:
    """Return the largest magnitude to accept; bfloat16's would be infinite in a float16 comparison."""
    return min(torch.finfo(stored).max, torch.finfo(tensor.dtype).max)
