"""The chosen experts of a layer, for 1-8 rows: gate and up with SiLU in one launch, down in another, then the sum.

Contract: experts are in slots, which are separate allocations; a table on the device has their addresses, and ids
[T, A] are slot numbers on the device, negative for experts on the CPU: nothing is read or written for those, and the
sum omits them. No atomics, no host synchronization, no shape that depends on data, so a call can be captured as a CUDA
graph. A token's outputs are summed in the router's order; its result does not depend on the other rows.

A program computes a block of rows of one item. With one token the items are its A choices; with more they are the
slots, so that an expert's weights are read once for all its tokens; a program whose slot is unused ends at once.

Gate and up: 32 rows of both matrices per program, so that the 32 outputs are one block of the activations of `down` and
are quantized at once; the even rows first, then the odd ones, because 32 rows times 8 activations do not fit into the
registers. Mixtral's 14336 rows are 448 programs per choice, 896 per token. Down: DOWN_ROWS rows per program, 256
programs per choice with 16.
"""

# ruff: noqa: RUF005  Triton's language has no starred tuples.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixq.kernels.triton.activations import Prepared, store_prepared
from mixq.kernels.triton.dots import WARPS, row_dots, rows_at_once
from mixq.kernels.triton.weights import SlotTable

GATE_ROWS = tl.constexpr(32)
"""Not a tuning constant: the size of a block of activations."""

DOWN_ROWS = 16
"""Rows of w2 of a program."""

SUM_BLOCK = 1024


@triton.jit
def choices_of(ids: tl.tensor, item: tl.tensor, T: tl.constexpr, A: tl.constexpr) -> tl.tensor:
    """Return an item's slot, and for each token its choice (t * A + a) in this slot, or -1."""
    if T == 1:
        slot = tl.load(ids + item).to(tl.int32)
        pairs = (tl.where(slot >= 0, item, -1),)
    else:
        slot = item
        pairs = ()
        for t in tl.static_range(T):
            pair = item * 0 - 1
            for a in tl.static_range(A):
                pair = tl.where(tl.load(ids + t * A + a).to(tl.int32) == item, t * A + a, pair)
            pairs = pairs + (pair,)
    return slot, pairs


@triton.jit
def any_choice(pairs: tl.tensor, T: tl.constexpr) -> tl.tensor:
    """Whether some token has a choice here."""
    most = pairs[0]
    for t in tl.static_range(1, T):
        most = tl.maximum(most, pairs[t])
    return most >= 0


@triton.jit
def matrix_of(slots: tl.tensor, slot: tl.tensor, MATRIX: tl.constexpr, FORMAT: tl.constexpr) -> tl.tensor:
    """Return pointers to codes, scales and row scales of a slot's w1, w2 or w3."""
    entry = slots + slot * 9 + MATRIX * 3
    codes = tl.multiple_of(tl.load(entry).to(tl.pointer_type(tl.int32)), 16)
    row_scale = tl.multiple_of(tl.load(entry + 2).to(tl.pointer_type(tl.float32)), 16)
    scale_address = tl.load(entry + 1)
    if FORMAT // 4 % 4 == 0:
        scales = tl.multiple_of(scale_address.to(tl.pointer_type(tl.int8)), 16)
    elif FORMAT // 4 % 4 == 1:
        scales = tl.multiple_of(scale_address.to(tl.pointer_type(tl.int16)), 16)
    else:
        scales = tl.multiple_of(scale_address.to(tl.pointer_type(tl.float16)), 16)
    return codes, scales, row_scale


@triton.jit
def silu_mul(gate: tl.tensor, up: tl.tensor) -> tl.tensor:
    """silu(gate) * up."""
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def inner_rows(
    slots: tl.tensor, slot: tl.tensor, table1: tl.tensor, table3: tl.tensor, rows: tl.tensor,
    x: tl.tensor, xrows: tl.tensor, one: tl.tensor,
    D: tl.constexpr, F: tl.constexpr, T: tl.constexpr,
    FORMAT1: tl.constexpr, FORMAT3: tl.constexpr, ASM: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """silu(w1 x) * w3 x of half a program's rows, T times [16], zeros past the last row."""
    there = tl.minimum(rows, F - 1)
    codes, s, r = matrix_of(slots, slot, 0, FORMAT1)
    gate = row_dots(codes, s, r, table1, there, x, xrows, one, FORMAT1, D, T, GATE_ROWS // 2, ASM)
    codes, s, r = matrix_of(slots, slot, 2, FORMAT3)
    up = row_dots(codes, s, r, table3, there, x, xrows, one, FORMAT3, D, T, GATE_ROWS // 2, ASM)
    inner = ()
    for t in tl.static_range(T):
        inner = inner + (tl.where(rows < F, silu_mul(gate[t], up[t]), 0.0),)
    return inner


@triton.jit(do_not_specialize=["one"])
def gate_up_kernel(
    slots: tl.tensor, ids: tl.tensor, table1: tl.tensor, table3: tl.tensor,
    planes: tl.tensor, natural: tl.tensor, scales: tl.tensor, halves: tl.tensor,
    out_planes: tl.tensor, out_natural: tl.tensor, out_scales: tl.tensor, out_halves: tl.tensor, one: tl.tensor,
    D: tl.constexpr, F: tl.constexpr, FP: tl.constexpr, T: tl.constexpr, A: tl.constexpr,
    FORMAT1: tl.constexpr, FORMAT3: tl.constexpr, ASM: tl.constexpr,
) -> None:  # fmt: skip
    """Program (block, item): silu(w1 x) * w3 x of 32 rows, prepared for `down` as row t * A + a."""
    block = tl.program_id(0)
    slot, pairs = choices_of(ids, tl.program_id(1), T, A)
    if any_choice(pairs, T):
        x = (planes, natural, scales, halves)
        xrows = ()
        for t in tl.static_range(T):
            xrows = xrows + (t,)
        even = block * GATE_ROWS + 2 * tl.arange(0, GATE_ROWS // 2)
        h0 = inner_rows(slots, slot, table1, table3, even, x, xrows, one, D, F, T, FORMAT1, FORMAT3, ASM)
        h1 = inner_rows(slots, slot, table1, table3, even + 1, x, xrows, one, D, F, T, FORMAT1, FORMAT3, ASM)
        one_block = block + tl.arange(0, 1)
        for t in tl.static_range(T):
            if pairs[t] >= 0:
                h = tl.reshape(tl.join(h0[t], h1[t]), (1, GATE_ROWS))
                store_prepared(h, one_block, pairs[t], out_planes, out_natural, out_scales, out_halves, FP)


@triton.jit(do_not_specialize=["one"])
def down_kernel(
    slots: tl.tensor, ids: tl.tensor, table2: tl.tensor,
    planes: tl.tensor, natural: tl.tensor, scales: tl.tensor, halves: tl.tensor, answers: tl.tensor, one: tl.tensor,
    D: tl.constexpr, F: tl.constexpr, T: tl.constexpr, A: tl.constexpr,
    FORMAT2: tl.constexpr, BN: tl.constexpr, ASM: tl.constexpr,
) -> None:  # fmt: skip
    """Program (block, item): w2 h of BN rows, into outputs [T * A, D]."""
    slot, pairs = choices_of(ids, tl.program_id(1), T, A)
    if any_choice(pairs, T):
        n = tl.program_id(0) * BN + tl.arange(0, BN)
        xrows = ()
        for t in tl.static_range(T):
            xrows = xrows + (tl.maximum(pairs[t], 0),)
        x = (planes, natural, scales, halves)
        codes, s, r = matrix_of(slots, slot, 1, FORMAT2)
        y = row_dots(codes, s, r, table2, tl.minimum(n, D - 1), x, xrows, one, FORMAT2, F, T, BN, ASM)
        for t in tl.static_range(T):
            tl.store(answers + tl.maximum(pairs[t], 0) * D + n, y[t], mask=tl.where(pairs[t] >= 0, n, D) < D)


@triton.jit
def sum_kernel(
    answers: tl.tensor, ids: tl.tensor, weights: tl.tensor, out: tl.tensor, D: tl.tensor,
    A: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Program (token, block): the weighted sum over its choices in their order."""
    token = tl.program_id(0)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for a in tl.static_range(A):
        here = tl.load(ids + token * A + a) >= 0
        y = tl.load(answers + (token * A + a) * D + d, mask=tl.where(here, d, D) < D, other=0.0)
        added = tl.fma(y, tl.zeros([BLOCK], tl.float32) + tl.load(weights + token * A + a), total)
        total = tl.where(here, added, total)
    tl.store(out + token * D + d, total, mask=d < D)


def weighted_sum(answers: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Return the sum over a of weights[t, a] * answers[t, a], [T, D], without negative ids."""
    T, A, D = answers.shape
    out = torch.empty(T, D, dtype=torch.float32, device=answers.device)
    sum_kernel[T, triton.cdiv(D, SUM_BLOCK)](answers, ids, weights, out, D, A=A, BLOCK=SUM_BLOCK, num_warps=4)
    return out


def experts(
    x: Prepared, T: int, table: SlotTable, ids: Tensor, weights: Tensor, *, asm: bool, down_rows: int = DOWN_ROWS
) -> Tensor:
    """Return the weighted sum of the chosen experts, float32 [T, D].

    Args:
        x: T prepared rows, T at most 8.
        ids: int64 [T, A], contiguous: slot numbers below table.slots, or negative.
        weights: float32 [T, A], contiguous.
    """
    most = rows_at_once(asm)
    if most < T:
        parts = [(x.rows(t, t + most), slice(t, t + most)) for t in range(0, T, most)]
        sums = [experts(r, len(ids[s]), table, ids[s], weights[s], asm=asm, down_rows=down_rows) for r, s in parts]
        return torch.cat(sums)
    A = ids.shape[1]
    D, F = table.D, table.F
    items = A if T == 1 else table.slots
    w1, w2, w3 = (form.number for form in table.formats)
    inner = Prepared.empty(T * A, F, ids.device)
    FP = inner.planes.shape[1]
    gate_up_kernel[FP // 32, items](
        table.addresses, ids, table.tables[0], table.tables[2], *x.pointers, *inner.pointers, 1,
        D=D, F=F, FP=FP, T=T, A=A, FORMAT1=w1, FORMAT3=w3, ASM=asm, num_warps=WARPS,
    )  # fmt: skip
    answers = torch.empty(T, A, D, dtype=torch.float32, device=ids.device)
    down_kernel[triton.cdiv(D, down_rows), items](
        table.addresses, ids, table.tables[1], *inner.pointers, answers, 1,
        D=D, F=F, T=T, A=A, FORMAT2=w2, BN=down_rows, ASM=asm, num_warps=WARPS,
    )  # fmt: skip
    return weighted_sum(answers, ids, weights)
