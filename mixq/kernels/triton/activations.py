"""Prepares activations for the weight kernels; RMSNorm prepares its output in the same launch.

Contract: a prepared row [K] has four parts, K padded to KP, a multiple of 32: int8 codes in `planes` order for
nibbles (of every 8 codes the first 4, then from KP/2 on the last 4: four words of nibbles meet two loads of 16 bytes),
int8 codes in natural order for bytes, float32 scales [KP/32] of both, and bfloat16 for weights that are not quantized.
Writing all of them costs less than deciding which are needed. Rows are independent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixq.kernels.triton.scalars import bf16_of_float, load_float, quantize_blocks

SMALLEST = tl.constexpr(1e-30)
"""Smallest absmax of a block; see `mixq.kernels.reference`."""

BLOCKS = 32
"""Blocks of 32 per program of the plain kernel."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """R rows of K activations."""

    # planes, natural: int8 [R, KP]; scales: float32 [R, KP/32]; halves: int16 [R, KP], the bits of bfloat16
    planes: Tensor
    natural: Tensor
    scales: Tensor
    halves: Tensor

    @classmethod
    def empty(cls, rows: int, K: int, device: torch.device) -> Prepared:
        KP = -(-K // 32) * 32
        codes = torch.empty(2, rows, KP, dtype=torch.int8, device=device)
        scales = torch.empty(rows, KP // 32, dtype=torch.float32, device=device)
        return cls(codes[0], codes[1], scales, torch.empty(rows, KP, dtype=torch.int16, device=device))

    def rows(self, begin: int, end: int) -> Prepared:
        """Return some of the rows, views."""
        some = slice(begin, end)
        return Prepared(self.planes[some], self.natural[some], self.scales[some], self.halves[some])

    @property
    def pointers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The arguments of a kernel."""
        return self.planes, self.natural, self.scales, self.halves


@triton.jit
def store_prepared(
    values: tl.tensor, block: tl.tensor, row: tl.tensor,
    planes: tl.tensor, natural: tl.tensor, scales: tl.tensor, halves: tl.tensor, KP: tl.constexpr,
) -> None:  # fmt: skip
    """Write blocks [B] of a row: values [B, 32], zeros where K ends."""
    there = block < KP // 32
    codes, scale = quantize_blocks(values, SMALLEST)
    i = tl.arange(0, 32)
    k = block[:, None] * 32 + i[None, :]
    both = there[:, None] & (i >= 0)[None, :]
    plane = block[:, None] * 16 + (i // 8 * 4 + i % 4 + i % 8 // 4 * (KP // 2))[None, :]
    tl.store(planes + row * KP + plane, codes, mask=both)
    tl.store(natural + row * KP + k, codes, mask=both)
    tl.store(halves + row * KP + k, bf16_of_float(values), mask=both)
    tl.store(scales + row * (KP // 32) + block, scale, mask=there)


@triton.jit
def prepare_kernel(
    x: tl.tensor, planes: tl.tensor, natural: tl.tensor, scales: tl.tensor, halves: tl.tensor,
    K: tl.constexpr, KP: tl.constexpr, B: tl.constexpr,
) -> None:  # fmt: skip
    """Program (row, B blocks of 32)."""
    row = tl.program_id(0)
    block = tl.program_id(1) * B + tl.arange(0, B)
    k = block[:, None] * 32 + tl.arange(0, 32)[None, :]
    values = tl.load(x + row * K + k, mask=k < K, other=0.0)
    store_prepared(values, block, row, planes, natural, scales, halves, KP)


@triton.jit
def rms_norm_kernel(
    x: tl.tensor, weight: tl.tensor, out: tl.tensor, eps: tl.tensor,
    planes: tl.tensor, natural: tl.tensor, scales: tl.tensor, halves: tl.tensor,
    D: tl.constexpr, KP: tl.constexpr, B: tl.constexpr, BF16: tl.constexpr, PREPARE: tl.constexpr,
) -> None:  # fmt: skip
    """Program (row): the whole row in registers, B * 32 of them, a power of two."""
    row = tl.program_id(0)
    block = tl.arange(0, B)
    k = block[:, None] * 32 + tl.arange(0, 32)[None, :]
    values = tl.load(x + row * D + k, mask=k < D, other=0.0)
    mean = tl.sum(tl.sum(values * values, 1), 0) / D
    normed = values * tl.rsqrt(mean + eps) * load_float(weight + k, k < D, BF16)
    tl.store(out + row * D + k, normed, mask=k < D)
    if PREPARE:
        store_prepared(normed, block, row, planes, natural, scales, halves, KP)


def prepare(x: Tensor) -> Prepared:
    """Prepare x, float32 [R, K], contiguous."""
    R, K = x.shape
    prepared = Prepared.empty(R, K, x.device)
    KP = prepared.planes.shape[1]
    B = min(BLOCKS, triton.next_power_of_2(KP // 32))
    prepare_kernel[R, triton.cdiv(KP // 32, B)](x, *prepared.pointers, K=K, KP=KP, B=B, num_warps=4)
    return prepared


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, prepared: bool) -> tuple[Tensor, Prepared | None]:
    """Return x / rms(x) * weight of x, float32 [T, D], and, on request, the same prepared."""
    T, D = x.shape
    out = torch.empty_like(x)
    room = Prepared.empty(T if prepared else 1, D, x.device)
    bits = weight.dtype == torch.bfloat16
    KP = room.planes.shape[1]
    rms_norm_kernel[T,](
        x, weight.view(torch.int16) if bits else weight, out, eps, *room.pointers,
        D=D, KP=KP, B=triton.next_power_of_2(KP // 32), BF16=bits, PREPARE=prepared, num_warps=8,
    )  # fmt: skip
    return out, room if prepared else None
