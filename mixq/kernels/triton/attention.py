"""Rotary embedding with the write into the KV cache, and attention of single rows over it (flash decoding).

Contract: a cache layer [KV, capacity, C] of bfloat16 (as int16 bits), int8 with a float32 scale a position, or float32,
as `mixq.kernels.kv_layer` has it. A row attends in splits of SPLIT positions that begin at multiples of SPLIT, whatever
the length, so its result depends only on its position; a second kernel combines the splits.

`position` is a number, or a tensor on the device, which a captured graph reads each time it runs: the grid then
covers the whole capacity (or window), and splits past the end stop at once.

The heads that share a kv head are the rows of one small matrix product, 16 of them, the fewest for tensor
cores. PRECISION "tf32x3" keeps float32's accuracy on them; compute capability 7.5 does not have it and uses "ieee".

Axes: T tokens, H heads, KV kv heads, C head size, S splits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixq.kernels.kv_layer import KVLayer
from mixq.kernels.triton.scalars import bf16_of_float, float_of_bf16, quantize_blocks

SPLIT = 128
"""Positions of a program. 4096 positions are 32 splits x 8 kv heads: 256 programs for an H100's 132 SMs."""

TILE = 32
"""Positions per step: keys and values of 2 x 8 KiB in bfloat16. With 64, or with 4 warps, registers spill."""

ATTENTION_WARPS = 8
ATTENTION_STAGES = 2


@triton.jit
def store_kv(
    x: tl.tensor, cache: tl.tensor, scales: tl.tensor, head: tl.tensor, position: tl.tensor, capacity: tl.tensor,
    C: tl.constexpr, CP: tl.constexpr, KIND: tl.constexpr,
) -> None:  # fmt: skip
    """Write one head's key or value x [CP]. KIND 0 bfloat16, 1 int8, 2 float32."""
    c = tl.arange(0, CP)
    row = head.to(tl.int64) * capacity + position
    if KIND == 0:
        tl.store(cache + row * C + c, bf16_of_float(x), mask=c < C)
    elif KIND == 1:
        codes, scale = quantize_blocks(tl.reshape(x, (1, CP)), 0.0)
        tl.store(cache + row * C + c, tl.reshape(codes, (CP,)), mask=c < C)
        tl.store(scales + row + tl.arange(0, 1), scale)
    else:
        tl.store(cache + row * C + c, x, mask=c < C)


@triton.jit
def rotated(x: tl.tensor, cos: tl.tensor, sin: tl.tensor, C: tl.constexpr, CP: tl.constexpr) -> tl.tensor:
    """Load one head [CP] and rotate its pairs (i, i + C/2) by the angles at cos and sin [C/2]."""
    c = tl.arange(0, CP)
    here = tl.load(x + c, mask=c < C, other=0.0)
    other = tl.load(x + (c + C // 2) % C, mask=c < C, other=0.0)
    first = c < C // 2
    angle = c % (C // 2)
    turn = tl.load(sin + angle) * other
    return here * tl.load(cos + angle) + tl.where(first, -turn, turn)


@triton.jit(do_not_specialize=["position", "capacity"])
def rotary_append_kernel(
    q: tl.tensor, k: tl.tensor, v: tl.tensor, cos: tl.tensor, sin: tl.tensor, out: tl.tensor,
    keys: tl.tensor, values: tl.tensor, key_scale: tl.tensor, value_scale: tl.tensor,
    position: tl.tensor, capacity: tl.tensor,
    H: tl.constexpr, KV: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, KIND: tl.constexpr,
    ON_DEVICE: tl.constexpr,
) -> None:  # fmt: skip
    """Program (token, head): H heads of q, then KV of k, then KV of v."""
    token = tl.program_id(0)
    head = tl.program_id(1)
    if ON_DEVICE:
        at = tl.load(position).to(tl.int32) + token
        angles = at * (C // 2)
    else:
        at = position + token
        angles = token * (C // 2)
    c = tl.arange(0, CP)
    if head < H:
        y = rotated(q + (token * H + head) * C, cos + angles, sin + angles, C, CP)
        tl.store(out + (token * H + head) * C + c, y, mask=c < C)
    elif head < H + KV:
        y = rotated(k + (token * KV + head - H) * C, cos + angles, sin + angles, C, CP)
        store_kv(y, keys, key_scale, head - H, at, capacity, C, CP, KIND)
    else:
        y = tl.load(v + (token * KV + head - H - KV) * C + c, mask=c < C, other=0.0)
        store_kv(y, values, value_scale, head - H - KV, at, capacity, C, CP, KIND)


@triton.jit
def load_tile(
    cache: tl.tensor, scales: tl.tensor, base: tl.tensor, positions: tl.tensor, there: tl.tensor,
    C: tl.constexpr, CP: tl.constexpr, KIND: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Load keys or values float32 [TILE, CP], zeros where `there` is false."""
    c = tl.arange(0, CP)
    both = there[:, None] & (c < C)[None, :]
    x = tl.load(cache + (base + positions)[:, None] * C + c[None, :], mask=both, other=0)
    if KIND == 0:
        tile = float_of_bf16(x)
    elif KIND == 1:
        tile = x.to(tl.float32) * tl.load(scales + base + positions, mask=there, other=0.0)[:, None]
    else:
        tile = x
    return tile


@triton.jit(do_not_specialize=["position", "capacity", "window"])
def attention_kernel(
    q: tl.tensor, keys: tl.tensor, values: tl.tensor, key_scale: tl.tensor, value_scale: tl.tensor,
    parts: tl.tensor, position: tl.tensor, capacity: tl.tensor, window: tl.tensor, scale: tl.tensor,
    H: tl.constexpr, KV: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, KIND: tl.constexpr,
    ON_DEVICE: tl.constexpr, SPLIT: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Program (split, kv head, token): parts [T, H, S, C + 2]: a weighted sum, its largest score and its weight."""
    kv = tl.program_id(1)
    token = tl.program_id(2)
    end = (tl.load(position).to(tl.int32) if ON_DEVICE else position) + token + 1
    first = tl.maximum(end - window, 0)
    split = tl.program_id(0) + first // SPLIT
    begin = split * SPLIT
    if begin < end:
        GROUP: tl.constexpr = H // KV
        GP: tl.constexpr = 16 if GROUP <= 16 else triton.next_power_of_2(GROUP)
        g = tl.arange(0, GP)
        c = tl.arange(0, CP)
        heads = kv * GROUP + g
        mine = (g < GROUP)[:, None] & (c < C)[None, :]
        queries = tl.load(q + (token * H + heads)[:, None] * C + c[None, :], mask=mine, other=0.0) * scale
        base = kv.to(tl.int64) * capacity
        best = tl.full([GP], -1e30, tl.float32)
        weight = tl.zeros([GP], tl.float32)
        total = tl.zeros([GP, CP], tl.float32)
        for at in range(begin, tl.minimum(begin + SPLIT, end), TILE):
            positions = at + tl.arange(0, TILE)
            there = (positions >= first) & (positions < end)
            tile = load_tile(keys, key_scale, base, positions, there, C, CP, KIND)
            scores = tl.dot(queries, tl.trans(tile), input_precision=PRECISION)  # [GP, TILE]
            scores = tl.where(there[None, :], scores, -1e30)
            highest = tl.maximum(best, tl.max(scores, 1))
            powers = tl.where(there[None, :], tl.exp(scores - highest[:, None]), 0.0)
            shrink = tl.exp(best - highest)
            weight = weight * shrink + tl.sum(powers, 1)
            tile = load_tile(values, value_scale, base, positions, there, C, CP, KIND)
            total = tl.dot(powers, tile, total * shrink[:, None], input_precision=PRECISION)
            best = highest
        part = parts + ((token * H + heads) * tl.num_programs(0) + tl.program_id(0)) * (C + 2)
        tl.store(part[:, None] + c[None, :], total, mask=mine)
        tl.store(part + C, best, mask=g < GROUP)
        tl.store(part + C + 1, weight, mask=g < GROUP)


@triton.jit(do_not_specialize=["position", "window", "S"])
def join_kernel(
    parts: tl.tensor, out: tl.tensor, position: tl.tensor, window: tl.tensor, S: tl.tensor,
    H: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, ON_DEVICE: tl.constexpr, SPLIT: tl.constexpr,
) -> None:  # fmt: skip
    """Program (head, token): the splits in their order."""
    head = tl.program_id(0)
    token = tl.program_id(1)
    end = (tl.load(position).to(tl.int32) if ON_DEVICE else position) + token + 1
    first = tl.maximum(end - window, 0)
    count = (end + SPLIT - 1) // SPLIT - first // SPLIT
    c = tl.arange(0, CP)
    best = tl.full([1], -1e30, tl.float32)
    weight = tl.zeros([1], tl.float32)
    total = tl.zeros([CP], tl.float32)
    row = parts + (token * H + head) * S * (C + 2)
    one = tl.arange(0, 1)
    for s in range(0, count):
        part = row + s * (C + 2)
        theirs = tl.load(part + C + one)
        highest = tl.maximum(best, theirs)
        shrink = tl.exp(best - highest)
        grow = tl.exp(theirs - highest)
        weight = weight * shrink + tl.load(part + C + 1 + one) * grow
        total = total * shrink + tl.load(part + c, mask=c < C, other=0.0) * grow
        best = highest
    tl.store(out + (token * H + head) * C + c, total / weight, mask=c < C)


_KINDS = {torch.bfloat16: 0, torch.int8: 1, torch.float32: 2}
_NO_WINDOW = 2**30


def takes(kv: KVLayer) -> bool:
    """Whether the kernels can read a layer's cache: contiguous, of one of the three types."""
    tensors = [kv.keys, kv.values, *(scale for scale in (kv.key_scale, kv.value_scale) if scale is not None)]
    even = kv.keys.shape[2] % 2 == 0
    return even and kv.keys.dtype in _KINDS and all(tensor.is_contiguous() for tensor in tensors)


def _pointers(kv: KVLayer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if kv.key_scale is None or kv.value_scale is None:
        if kv.keys.dtype == torch.bfloat16:
            keys, values = kv.keys.view(torch.int16), kv.values.view(torch.int16)
            return keys, values, keys, values
        return kv.keys, kv.values, kv.keys, kv.values
    return kv.keys, kv.values, kv.key_scale, kv.value_scale


def rotary_append(
    q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, kv: KVLayer, position: int | Tensor
) -> Tensor:
    """Rotate q [T, H, C] and k [T, KV, C], write k and v into the cache, return the rotated q; all contiguous.

    With `position` on the device, cos and sin [positions, C/2] are those of every position, else [T, C/2].
    """
    T, H, C = q.shape
    KV, capacity = kv.keys.shape[:2]
    out = torch.empty_like(q)
    rotary_append_kernel[T, H + 2 * KV](
        q, k, v, cos, sin, out, *_pointers(kv), position, capacity,
        H=H, KV=KV, C=C, CP=triton.next_power_of_2(C), KIND=_KINDS[kv.keys.dtype],
        ON_DEVICE=isinstance(position, Tensor), num_warps=1,
    )  # fmt: skip
    return out


def splits(position: int | Tensor, T: int, capacity: int, window: int | None) -> int:
    """Return the splits of a launch: enough for any position, if the position is on the device."""
    end = capacity if isinstance(position, Tensor) else position + T
    whole = -(-end // SPLIT)
    return whole if window is None else min(-(-window // SPLIT) + 1, whole)


def attention_rows(
    q: Tensor, kv: KVLayer, position: int | Tensor, window: int | None, precision: str = "tf32x3"
) -> Tensor:
    """Attend from q [T, H, C], contiguous, from `position` on, each row separately -> [T, H, C]."""
    T, H, C = q.shape
    KV, capacity = kv.keys.shape[:2]
    CP = triton.next_power_of_2(max(C, 16))
    S = splits(position, T, capacity, window)
    on_device = isinstance(position, Tensor)
    seen = _NO_WINDOW if window is None else window
    parts = torch.empty(T, H, S, C + 2, dtype=torch.float32, device=q.device)
    attention_kernel[S, KV, T](
        q, *_pointers(kv), parts, position, capacity, seen, C**-0.5,
        H=H, KV=KV, C=C, CP=CP, KIND=_KINDS[kv.keys.dtype], ON_DEVICE=on_device,
        SPLIT=SPLIT, TILE=TILE, PRECISION=precision, num_warps=ATTENTION_WARPS, num_stages=ATTENTION_STAGES,
    )  # fmt: skip
    out = torch.empty_like(q)
    join_kernel[H, T](parts, out, position, seen, S, H=H, C=C, CP=CP, ON_DEVICE=on_device, SPLIT=SPLIT, num_warps=1)
    return out
