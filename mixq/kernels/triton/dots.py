"""Device functions: rows of packed weights times up to 8 rows of prepared activations.

Contract: the format's arithmetic. An integer dot of 32 inputs (16 if a thread has no more with one scale) is exact,
scales and sums are float32; bfloat16 weights are multiplied by bfloat16 activations into float32. The order of a row's
additions depends only on the format and on K, so its result does not depend on the other rows.

Tile: a warp reads WORDS = 128 words of one weight row per step, 16 bytes per thread, 512 contiguous bytes; each
thread's 16 bytes are one block of 32 nibbles, so its dot product needs no exchange between threads, and sums cross
threads once, at the end. With 8 warps the activations of a step (fewer elements than threads) are loaded directly into
the registers that need them, by every warp, from L1; the loop has no barrier.

`one` is the number 1, an argument so that the compiler does not know it: it then treats the scales' addresses as
scattered, loads each thread's scale directly, and needs no exchange through shared memory; and it does not unroll the
loop, which would cost a third of the programs per SM.

ASM: with inline assembly, seven byte permutes look up a word of nibbles in the table, and two dp4a multiply it;
without, eight loads from the table and eight multiplications. Both give the same integers.
"""

# ruff: noqa: RUF005  Triton's language has no starred tuples.

from __future__ import annotations

import triton
import triton.language as tl

from mixq.kernels.triton.scalars import float_of_bf16, high_float, low_float, signed_byte

WORDS = tl.constexpr(128)
WARPS = 8


def rows_at_once(asm: bool) -> int:
    """Return how many rows of activations fit into a program's registers; more need further launches."""
    return 8 if asm else 4


@triton.jit
def lookup8(q: tl.tensor, table: tl.tensor) -> tl.tensor:
    """Look up eight nibbles of each word in the table of int8 [16]: the values of weights 0-3 and 4-7, packed."""
    words = table.to(tl.pointer_type(tl.int32))
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b32 half, pick, index, a, b;
        and.b32 index, $2, 0x77777777;
        shr.u32 half, $2, 1;
        lop3.b32 pick, half, 0x44444444, 0x32103210, 0xEA;
        prmt.b32 a, $3, $4, index;
        prmt.b32 b, $5, $6, index;
        prmt.b32 $0, a, b, pick;
        shr.u32 index, index, 16;
        shr.u32 pick, pick, 16;
        prmt.b32 a, $3, $4, index;
        prmt.b32 b, $5, $6, index;
        prmt.b32 $1, a, b, pick;
        }
        """,
        "=&r,=&r,r,r,r,r,r",
        [q, tl.load(words), tl.load(words + 1), tl.load(words + 2), tl.load(words + 3)],
        dtype=(tl.int32, tl.int32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def dp4a(a: tl.tensor, b: tl.tensor, c: tl.tensor) -> tl.tensor:
    """c plus the dot product of four signed bytes."""
    return tl.inline_asm_elementwise(
        "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, c], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def bytes_dot(v: tl.tensor, x: tl.tensor, ASM: tl.constexpr) -> tl.tensor:
    """Dot product of four signed bytes in each word; v [BN, W], x [W] -> int32 [BN, W]."""
    if ASM:
        d = dp4a(v, x[None, :], tl.zeros(v.shape, tl.int32))
    else:
        d = tl.zeros(v.shape, tl.int32)
        for n in tl.static_range(4):
            d += signed_byte(v, 3 - n) * signed_byte(x, 3 - n)[None, :]
    return d


@triton.jit
def load_scale(pointer: tl.tensor, mask: tl.tensor, SCALE: tl.constexpr) -> tl.tensor:
    """A group's scale: int8, the bits of bfloat16 (SCALE 1), or float16."""
    s = tl.load(pointer, mask=mask, other=0)
    return float_of_bf16(s) if SCALE == 1 else s.to(tl.float32)


@triton.jit
def zero_sums(T: tl.constexpr, BN: tl.constexpr) -> tl.tensor:
    """T sums [BN, W/4]."""
    sums = ()
    for _ in tl.static_range(T):
        sums = sums + (tl.zeros([BN, WORDS // 4], tl.float32),)
    return sums


@triton.jit
def nibble_dots(
    codes: tl.tensor, scales: tl.tensor, table: tl.tensor, rows: tl.tensor,
    x: tl.tensor, xrows: tl.tensor, one: tl.tensor,
    K: tl.constexpr, T: tl.constexpr, BN: tl.constexpr, SCALE: tl.constexpr, GROUP: tl.constexpr, ASM: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """T sums [BN, W/4] of rows of nl4 or w4; see `row_dots`."""
    J: tl.constexpr = (K + 31) // 32
    planes = x[0].to(tl.pointer_type(tl.int32))
    sums = zero_sums(T, BN)
    for w0 in range(0, K // 8 * one, WORDS):
        w = w0 + tl.arange(0, WORDS)
        j = w0 // 4 + tl.arange(0, WORDS // 4)
        q = tl.load(codes + rows[:, None] * (K // 8) + w[None, :], mask=(w < K // 8)[None, :], other=0)
        if GROUP == 16:
            pairs = scales + rows[:, None] * (K // 16) + (2 * j * one)[None, :]
            s = load_scale(pairs, (2 * j < K // 16)[None, :], SCALE)
            s1 = load_scale(pairs + 1, (2 * j + 1 < K // 16)[None, :], SCALE)
        else:
            group = (j // (GROUP // 32)) * one
            s = load_scale(scales + rows[:, None] * (K // GROUP) + group[None, :], (j < J)[None, :], SCALE)
        if ASM:
            low, high = lookup8(q, table)
        else:
            v = ()
            for n in tl.static_range(8):
                v = v + (tl.load(table + ((q >> (4 * n)) & 15)).to(tl.int32),)
        added = ()
        for t in tl.static_range(T):
            row = xrows[t]
            x0 = tl.load(planes + row * (J * 8) + w, mask=w < J * 4, other=0)
            x1 = tl.load(planes + row * (J * 8) + J * 4 + w, mask=w < J * 4, other=0)
            xs = tl.load(x[2] + row * J + j * one, mask=j < J, other=0.0)
            if ASM:
                d = dp4a(high, x1[None, :], dp4a(low, x0[None, :], tl.zeros(q.shape, tl.int32)))
            else:
                d = v[0] * signed_byte(x0, 0)[None, :]
                for n in tl.static_range(1, 4):
                    d += v[n] * signed_byte(x0, n)[None, :]
                for n in tl.static_range(4):
                    d += v[4 + n] * signed_byte(x1, n)[None, :]
            if GROUP == 16:
                d0, d1 = tl.split(tl.sum(tl.reshape(d, (BN, WORDS // 4, 2, 2)), 3))
                part = tl.fma(d0.to(tl.float32), s * xs[None, :], sums[t])
                added = added + (tl.fma(d1.to(tl.float32), s1 * xs[None, :], part),)
            else:
                d = tl.sum(tl.reshape(d, (BN, WORDS // 4, 4)), 2)
                added = added + (tl.fma(d.to(tl.float32), s * xs[None, :], sums[t]),)
        sums = added
    return sums


@triton.jit
def byte_dots(
    codes: tl.tensor, scales: tl.tensor, rows: tl.tensor, x: tl.tensor, xrows: tl.tensor, one: tl.tensor,
    K: tl.constexpr, T: tl.constexpr, BN: tl.constexpr, SCALE: tl.constexpr, GROUP: tl.constexpr, ASM: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """T sums [BN, W/4] of rows of w8; see `row_dots`."""
    J: tl.constexpr = (K + 31) // 32
    natural = x[1].to(tl.pointer_type(tl.int32))
    sums = zero_sums(T, BN)
    for w0 in range(0, K // 4 * one, WORDS):
        w = w0 + tl.arange(0, WORDS)
        i = w0 // 4 + tl.arange(0, WORDS // 4)  # 16 weights each, as many as a thread has
        q = tl.load(codes + rows[:, None] * (K // 4) + w[None, :], mask=(w < K // 4)[None, :], other=0)
        group = (i // (GROUP // 16)) * one
        s = load_scale(scales + rows[:, None] * (K // GROUP) + group[None, :], (i < K // 16)[None, :], SCALE)
        v = q ^ -2139062144  # 0x80 in each byte: less 128
        added = ()
        for t in tl.static_range(T):
            row = xrows[t]
            xw = tl.load(natural + row * (J * 8) + w, mask=w < J * 8, other=0)
            xs = tl.load(x[2] + row * J + (i // 2) * one, mask=i // 2 < J, other=0.0)
            d = tl.sum(tl.reshape(bytes_dot(v, xw, ASM), (BN, WORDS // 4, 4)), 2)
            added = added + (tl.fma(d.to(tl.float32), s * xs[None, :], sums[t]),)
        sums = added
    return sums


@triton.jit
def bf16_dots(
    codes: tl.tensor, rows: tl.tensor, x: tl.tensor, xrows: tl.tensor, one: tl.tensor,
    K: tl.constexpr, T: tl.constexpr, BN: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """T sums [BN, W/4] of rows of bfloat16; see `row_dots`."""
    KP: tl.constexpr = (K + 31) // 32 * 32
    halves = x[3].to(tl.pointer_type(tl.int32))
    sums = zero_sums(T, BN)
    for w0 in range(0, K // 2 * one, WORDS):
        w = w0 + tl.arange(0, WORDS)
        q = tl.load(codes + rows[:, None] * (K // 2) + w[None, :], mask=(w < K // 2)[None, :], other=0)
        added = ()
        for t in tl.static_range(T):
            xw = tl.load(halves + xrows[t] * (KP // 2) + w, mask=w < KP // 2, other=0)
            p = tl.fma(low_float(q), low_float(xw)[None, :], high_float(q) * high_float(xw)[None, :])
            added = added + (sums[t] + tl.sum(tl.reshape(p, (BN, WORDS // 4, 4)), 2),)
        sums = added
    return sums


@triton.jit
def row_dots(
    codes: tl.tensor, scales: tl.tensor, row_scale: tl.tensor, table: tl.tensor, rows: tl.tensor,
    x: tl.tensor, xrows: tl.tensor, one: tl.tensor,
    FORMAT: tl.constexpr, K: tl.constexpr, T: tl.constexpr, BN: tl.constexpr, ASM: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Products of weight rows [BN] with T rows of activations: T times float32 [BN].

    Args:
        codes, scales, row_scale, table: of one matrix [N, K]; the last three where the format has them.
        rows: int32 [BN], each below N.
        x: prepared activations, see `activations`: planes, natural, scales, halves.
        xrows: T row numbers.
    """
    KIND: tl.constexpr = FORMAT % 4
    SCALE: tl.constexpr = FORMAT // 4 % 4
    GROUP: tl.constexpr = FORMAT // 16
    if KIND == 0:
        sums = bf16_dots(codes, rows, x, xrows, one, K, T, BN)
    elif KIND == 1:
        sums = nibble_dots(codes, scales, table, rows, x, xrows, one, K, T, BN, SCALE, GROUP, ASM)
    else:
        sums = byte_dots(codes, scales, rows, x, xrows, one, K, T, BN, SCALE, GROUP, ASM)
    answers = ()
    for t in tl.static_range(T):
        y = tl.sum(sums[t], 1)
        if KIND == 1 and SCALE == 0:
            y = y * tl.load(row_scale + rows)
        answers = answers + (y,)
    return answers
