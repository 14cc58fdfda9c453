"""Dequantizes packed weights to bfloat16, or float16 if the GPU has no bfloat16, for cuBLAS with many rows.

Contract: each weight is the float32 of `PackedLinear.dequantize`, rounded once to the target type.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixq.kernels.triton.dots import load_scale
from mixq.kernels.triton.scalars import bf16_of_float
from mixq.kernels.triton.weights import Matrix

COLUMNS = 1024
"""Weights of a row per program: 2 KiB, 16 bytes per thread."""


@triton.jit
def dequantize_kernel(
    codes: tl.tensor, scales: tl.tensor, row_scale: tl.tensor, table: tl.tensor, out: tl.tensor, row0: tl.tensor,
    FORMAT: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, BF16: tl.constexpr,
) -> None:  # fmt: skip
    """Program (row, block): BLOCK weights of row row0 + row into row `row` of out."""
    KIND: tl.constexpr = FORMAT % 4
    SCALE: tl.constexpr = FORMAT // 4 % 4
    GROUP: tl.constexpr = FORMAT // 16
    row = tl.program_id(0)
    source = (row0 + row).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = k < K
    stored = codes.to(tl.pointer_type(tl.uint8))
    if KIND == 1:
        byte = tl.load(stored + source * (K // 2) + k // 2, mask=there, other=0).to(tl.int32)
        value = tl.load(table + ((byte >> (k % 2 * 4)) & 15)).to(tl.float32)
    else:
        value = tl.load(stored + source * K + k, mask=there, other=0).to(tl.float32) - 128.0
    w = value * load_scale(scales + source * (K // GROUP) + k // GROUP, there, SCALE)
    if SCALE == 0:
        w = w * tl.load(row_scale + source)
    place = out + row.to(tl.int64) * K + k
    tl.store(place, bf16_of_float(w) if BF16 else w.to(tl.float16), mask=there)


def dequantize(matrix: Matrix, begin: int, out: Tensor) -> Tensor:
    """Write rows begin .. begin + len(out) - 1 of a packed matrix [N, K] into out (bfloat16, float16); return out."""
    rows, K = out.shape
    bits = out.dtype == torch.bfloat16
    dequantize_kernel[rows, triton.cdiv(K, COLUMNS)](
        matrix.codes, matrix.scales, matrix.row_scale, matrix.table, out.view(torch.int16) if bits else out, begin,
        FORMAT=matrix.format.number, K=K, BLOCK=COLUMNS, BF16=bits, num_warps=4,
    )  # fmt: skip
    return out
