"""A kernel that only reads, as fast as the card can: what the weight kernels are compared with."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
STEPS = 16


@triton.jit
def read_kernel(x: tl.tensor, out: tl.tensor, BLOCK: tl.constexpr, STEPS: tl.constexpr) -> None:
    """Program (part): STEPS blocks, one sum of each thread's."""
    begin = tl.program_id(0).to(tl.int64) * (BLOCK * STEPS)
    total = tl.zeros([BLOCK], tl.int32)
    for step in range(STEPS):
        total += tl.load(x + begin + step * BLOCK + tl.arange(0, BLOCK))
    tl.store(out + tl.program_id(0), tl.sum(total, 0))


def read(data: Tensor) -> Tensor:
    """Read 32-bit data, a multiple of 64 Ki of them."""
    words = data.view(torch.int32)
    parts = words.numel() // (BLOCK * STEPS)
    out = torch.empty(parts, dtype=torch.int32, device=data.device)
    read_kernel[parts,](words, out, BLOCK=BLOCK, STEPS=STEPS, num_warps=8)
    return out
