"""Device functions on single numbers: bfloat16 as bits, rounding, bytes of a word.

Contract: bfloat16 is handled as 16-bit integers throughout, because compute capability 7.5 does not have the type, and
the conversion is only two shifts. Every function also runs in Triton's interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl

ROUNDER = tl.constexpr(12582912.0)
"""1.5 * 2**23: adding and subtracting it rounds a small float32 to an integer, half to even."""


@triton.jit
def float_of_bf16(bits: tl.tensor) -> tl.tensor:
    """int16 bits -> float32."""
    return (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)


@triton.jit
def bf16_of_float(x: tl.tensor) -> tl.tensor:
    """float32 -> int16 bits, half to even; NaN stays NaN."""
    bits = x.to(tl.int32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where(x == x, rounded, 0x7FC0).to(tl.int16)


@triton.jit
def low_float(word: tl.tensor) -> tl.tensor:
    """The first of two bfloat16 in an int32."""
    return (word << 16).to(tl.float32, bitcast=True)


@triton.jit
def high_float(word: tl.tensor) -> tl.tensor:
    """The second of two bfloat16 in an int32."""
    return (word & -65536).to(tl.float32, bitcast=True)


@triton.jit
def load_float(pointer: tl.tensor, mask: tl.tensor, BF16: tl.constexpr) -> tl.tensor:
    """Load float32, float16, int8, or (BF16) the bits of bfloat16, as float32."""
    x = tl.load(pointer, mask=mask, other=0)
    return float_of_bf16(x) if BF16 else x.to(tl.float32)


@triton.jit
def round_half_even(x: tl.tensor) -> tl.tensor:
    """|x| < 2**22."""
    return (x + ROUNDER) - ROUNDER


@triton.jit
def signed_byte(word: tl.tensor, BYTE: tl.constexpr) -> tl.tensor:
    """Byte 0..3 of an int32, as a number of -128..127."""
    return (word << (24 - 8 * BYTE)) >> 24


@triton.jit
def quantize_blocks(x: tl.tensor, SMALLEST: tl.constexpr) -> tl.tensor:
    """Float32 [B, W] -> int8 codes [B, W] and scales [B]: absmax / 127, half to even; scales up to SMALLEST count as 0.

    A NaN or an infinity makes its block's scale NaN, and so everything computed from the block.
    """
    absmax = tl.max(tl.abs(x), 1)
    some = absmax > SMALLEST
    full = tl.full(absmax.shape, 127.0, tl.float32)
    inverse = tl.where(some, tl.div_rn(full, tl.where(some, absmax, 1.0)), 0.0)
    codes = round_half_even(x * inverse[:, None]).to(tl.int8)
    poison = tl.sum(x * 0.0, 1)
    return codes, tl.where(some, tl.div_rn(absmax, full), 0.0) + poison
