"""Up to three products of the same few rows in one launch: q, k and v, each in any format.

Contract: the arithmetic is that of `dots`. A program computes ROWS rows of one matrix for all T rows of activations, so
weights are read once. Bytes in flight: a warp has ROWS / 8 loads of 512 bytes in flight; with ROWS = 16 that is 8 KiB
per program and, with the four programs that fit an SM at 64 registers, 32 KiB per SM. 3.35 TB/s at 700 ns need 18 KiB
on each of an H100's 132; 1 TB/s at 600 ns need 5 KiB on each of an RTX 4090's 128.
"""

# ruff: noqa: RUF005  Triton's language has no starred tuples.

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixq.kernels.triton.activations import Prepared
from mixq.kernels.triton.dots import WARPS, row_dots, rows_at_once
from mixq.kernels.triton.formats import ABSENT
from mixq.kernels.triton.weights import Matrix

ROWS = 16
"""Weight rows per program. Fewer rows: more programs. More rows: more bytes in flight and more registers in each."""

AT_ONCE = 3


@triton.jit
def rows_of_matrix(
    block: tl.tensor, codes: tl.tensor, scales: tl.tensor, row_scale: tl.tensor, table: tl.tensor, out: tl.tensor,
    N: tl.tensor, x: tl.tensor, one: tl.tensor,
    FORMAT: tl.constexpr, K: tl.constexpr, T: tl.constexpr, BN: tl.constexpr, ASM: tl.constexpr,
) -> None:  # fmt: skip
    """Write rows [block * BN, (block + 1) * BN) of a product, float32 [T, N]."""
    n = block * BN + tl.arange(0, BN)
    xrows = ()
    for t in tl.static_range(T):
        xrows = xrows + (t,)
    y = row_dots(codes, scales, row_scale, table, tl.minimum(n, N - 1), x, xrows, one, FORMAT, K, T, BN, ASM)
    for t in tl.static_range(T):
        tl.store(out + t * N + n, y[t], mask=n < N)


@triton.jit(do_not_specialize=["one", "blocks0", "blocks1"])
def linears_kernel(
    codes0: tl.tensor, scales0: tl.tensor, row_scale0: tl.tensor, table0: tl.tensor, out0: tl.tensor, N0: tl.tensor,
    codes1: tl.tensor, scales1: tl.tensor, row_scale1: tl.tensor, table1: tl.tensor, out1: tl.tensor, N1: tl.tensor,
    codes2: tl.tensor, scales2: tl.tensor, row_scale2: tl.tensor, table2: tl.tensor, out2: tl.tensor, N2: tl.tensor,
    planes: tl.tensor, natural: tl.tensor, scales: tl.tensor, halves: tl.tensor,
    blocks0: tl.tensor, blocks1: tl.tensor, one: tl.tensor,
    FORMAT0: tl.constexpr, FORMAT1: tl.constexpr, FORMAT2: tl.constexpr,
    K: tl.constexpr, T: tl.constexpr, BN: tl.constexpr, ASM: tl.constexpr,
) -> None:  # fmt: skip
    """Program (block): the first blocks0 are the first matrix's, then blocks1 of the second, the rest the third's."""
    block = tl.program_id(0)
    x = (planes, natural, scales, halves)
    if FORMAT1 == -1:  # noqa: SIM114  the compiler decides this one
        rows_of_matrix(block, codes0, scales0, row_scale0, table0, out0, N0, x, one, FORMAT0, K, T, BN, ASM)
    elif block < blocks0:
        rows_of_matrix(block, codes0, scales0, row_scale0, table0, out0, N0, x, one, FORMAT0, K, T, BN, ASM)
    elif block < blocks0 + blocks1:
        block -= blocks0
        rows_of_matrix(block, codes1, scales1, row_scale1, table1, out1, N1, x, one, FORMAT1, K, T, BN, ASM)
    elif FORMAT2 != -1:
        block -= blocks0 + blocks1
        rows_of_matrix(block, codes2, scales2, row_scale2, table2, out2, N2, x, one, FORMAT2, K, T, BN, ASM)


def linears(x: Prepared, T: int, matrices: Sequence[Matrix], *, asm: bool, rows: int = ROWS) -> list[Tensor]:
    """Return the products, each float32 [T, N]; the matrices have the same K, and T is at most 8."""
    most = rows_at_once(asm)
    if most < T:
        parts = [
            linears(x.rows(t, t + most), min(most, T - t), matrices, asm=asm, rows=rows) for t in range(0, T, most)
        ]
        return [torch.cat(answers) for answers in zip(*parts, strict=True)]
    K = matrices[0].shape[1]
    out = [torch.empty(T, matrix.shape[0], dtype=torch.float32, device=x.planes.device) for matrix in matrices]
    for begin in range(0, len(matrices), AT_ONCE):
        some = list(zip(matrices, out, strict=True))[begin : begin + AT_ONCE]
        numbers = [matrix.format.number for matrix, _ in some] + [ABSENT] * (AT_ONCE - len(some))
        blocks = [triton.cdiv(matrix.shape[0], rows) for matrix, _ in some] + [0] * (AT_ONCE - len(some))
        arguments = []
        for matrix, place in some + some[:1] * (AT_ONCE - len(some)):
            arguments += [matrix.codes, matrix.scales, matrix.row_scale, matrix.table, place, matrix.shape[0]]
        linears_kernel[sum(blocks),](
            *arguments, *x.pointers, blocks[0], blocks[1], 1,
            FORMAT0=numbers[0], FORMAT1=numbers[1], FORMAT2=numbers[2],
            K=K, T=T, BN=rows, ASM=asm, num_warps=WARPS,
        )  # fmt: skip
    return out
