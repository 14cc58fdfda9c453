"""Every operation of the network in plain torch: the reference for tests of the faster kernels.

Contract: the arithmetic that the formats define (mixq/README.md).

* Up to `integer_rows` rows (`DECODE_ROWS` here and on a GPU; any number in the native kernels): activations go to int8
  per 32 inputs, a group's dot product is an exact integer, scales and sums are float32. Each row is summed by
  operations whose shapes do not depend on the other rows, so a row's result does not depend on the batch. Unquantized
  weights are multiplied in bfloat16 and summed in float32.
* More rows: weights are dequantized to bfloat16 and multiplied with float32 accumulation.
* `exact=True`: float32 throughout, for parity tests.
* Router, norms, softmax: float32 always.

Hidden states are float32 [T, D] between operations.

Axes: T tokens, N out, K in, J blocks of inputs with one activation scale and one weight scale, H heads, KV kv heads,
L positions, C head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mixq.formats.packed import PackedLinear
from mixq.kernels.kv_layer import KVLayer

DECODE_ROWS = 8
ACTIVATION_GROUP = 32
_SMALLEST_ABSMAX = 1e-30
"""Blocks of activations with a smaller absmax count as zero, since 127 / absmax must be finite."""

Weight = Tensor | PackedLinear

Expert = tuple[Weight, Weight, Weight]
"""The gate (w1), down (w2) and up (w3) projections of one expert."""

Linear = Callable[[Tensor, Weight], Tensor]
"""x [T, K], weight [N, K] -> [T, N]."""


def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round activations to int8 per block of 32 inputs: scale = absmax / 127, half to even.

    Args:
        x: float32 [T, K]; K need not be a multiple of 32 (the last block is padded with zeros).

    Returns:
        codes: float32 [T, ceil(K/32)*32] holding integers in [-127, 127].
        scales: float32 [T, ceil(K/32)].
    """
    T, K = x.shape
    blocks = F.pad(x, (0, -K % ACTIVATION_GROUP)).view(T, -1, ACTIVATION_GROUP)  # [T, K/32, 32]
    absmax = blocks.abs().amax(-1)
    # torch computes float / tensor as a reciprocal and a product, which rounds twice.
    inverse = torch.where(absmax > _SMALLEST_ABSMAX, absmax.new_tensor(127.0) / absmax, 0.0)
    codes = torch.round(blocks * inverse[..., None])
    scales = torch.where(absmax > _SMALLEST_ABSMAX, absmax / 127.0, 0.0)
    return codes.view(T, -1), scales


def linear(x: Tensor, weight: Weight, *, exact: bool = False, integer_rows: int = DECODE_ROWS) -> Tensor:
    """Return x @ weight.T in the arithmetic of the module's contract.

    Args:
        x: float32 [T, K].
        weight: a tensor [N, K] or a packed linear of that shape.

    Returns:
        float32 [T, N].
    """
    if exact:
        return F.linear(x, _dense(weight, torch.float32))
    if x.shape[0] > integer_rows:
        return F.linear(x.bfloat16().float(), _dense(weight, torch.bfloat16).float())
    if isinstance(weight, PackedLinear) and weight.scheme.name != "nf4":
        return _integer_linear(x, weight)
    # Not quantized; or nf4, which has no integer code values: bfloat16 factors, float32 products and sums.
    dense = _dense(weight, torch.bfloat16).float()
    return torch.cat([F.linear(row.bfloat16().float(), dense) for row in torch.split(x, 1)])


def _dense(weight: Weight, dtype: torch.dtype) -> Tensor:
    return (weight.dequantize() if isinstance(weight, PackedLinear) else weight).to(dtype)


def _integer_linear(x: Tensor, weight: PackedLinear) -> Tensor:
    codes, activation_scales = quantize_activations(x)
    values, weight_scales, row_scale = weight.integer_form()  # [N, K], [N, G], [N]
    N, K = values.shape
    T = x.shape[0]
    block = min(weight.scheme.group_size, ACTIVATION_GROUP)
    J = K // block
    values = values.float().view(N, J, block)
    codes = codes[:, :K].reshape(T, J, block)
    weight_scales = weight_scales.repeat_interleave(weight.scheme.group_size // block, dim=1)  # [N, J]
    activation_scales = activation_scales.repeat_interleave(ACTIVATION_GROUP // block, dim=1)[:, :J]  # [T, J]
    rows = []
    for t in range(T):
        # A block's dot product stays below 2**24 (32 * 127 * 128): float32 holds it exactly, summed in any order.
        dots = (values * codes[t]).sum(-1)  # [N, J]
        rows.append((dots * (weight_scales * activation_scales[t])).sum(-1) * row_scale)
    return torch.stack(rows)  # [T, N]


def router_logits(x: Tensor, weight: Tensor) -> Tensor:
    """Return the router's float32 scores [T, E] of x [T, D] for weight [E, D], row by row."""
    dense = weight.float()
    if x.shape[0] > DECODE_ROWS:
        return F.linear(x, dense)
    return torch.cat([F.linear(row, dense) for row in torch.split(x, 1)])


def route(logits: Tensor, A: int) -> tuple[Tensor, Tensor]:
    """Return weights and ids [T, A] of the experts for scores [T, E]: softmax over all, top A, made to sum to one.

    The largest come first, and of equal scores the lower number; `topk` leaves that order open.
    """
    topk_ids = logits.sort(dim=-1, descending=True, stable=True).indices[:, :A]  # [T, A]
    topk_weights = logits.softmax(-1).gather(-1, topk_ids)
    return topk_weights / topk_weights.sum(-1, keepdim=True), topk_ids


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / rms(x) * weight over the last axis, in float32 (Zhang and Sennrich, 2019)."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + C/2) of each head by the angle of its position (RoFormer, in Hugging Face's row order).

    Args:
        x: [T, heads, C] float32.
        cos, sin: [T, C/2] float32.
    """
    first, second = x.chunk(2, dim=-1)  # [T, heads, C/2]
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def angles(cos: Tensor, sin: Tensor, position: int | Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return cos and sin [count, C/2] from `position` on; if it is a tensor, the given ones are of all positions."""
    if isinstance(position, int):
        return cos, sin
    rows = slice(int(position), int(position) + count)
    return cos[rows], sin[rows]


def rotary_append(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, kv: KVLayer, position: int) -> Tensor:
    """Write rotated keys and the values of T positions into the cache, and return the rotated queries.

    Args:
        q: float32 [T, H, C]; its memory may be used for the result.
        k, v: float32 [T, KV, C].
        cos, sin: float32 [T, C/2], of positions `position` and after.
        kv: the layer's cache, which has space for them.
    """
    kv.write(rotary(k, cos, sin), v, position)
    return rotary(q, cos, sin)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up, the product inside SwiGLU (Shazeer, 2020).

    Row by row in decode: torch rounds exp differently in the last elements of a vectorized loop.
    """
    if gate.shape[0] > DECODE_ROWS:
        return F.silu(gate) * up
    return torch.cat([F.silu(row) for row in torch.split(gate, 1)]) * up


def attention_row(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attend from one query to all given positions, in float32, as in decode.

    Args:
        q: float32 [H, C].
        keys, values: [KV, L, C], any float dtype; query head h reads kv head h // (H / KV).

    Returns:
        float32 [H, C].
    """
    KV, _, C = keys.shape
    grouped = q.view(KV, -1, C)  # [KV, H/KV, C]
    scores = torch.matmul(grouped, keys.float().transpose(1, 2)) * C**-0.5  # [KV, H/KV, L]
    return torch.matmul(scores.softmax(-1), values.float()).view(q.shape)


def attention_rows(q: Tensor, kv: KVLayer, position: int, window: int | None) -> Tensor:
    """Attend from each of a few queries, from `position` on, row by row, as in decode.

    Args:
        q: float32 [T, H, C].
        kv: the layer's cache, including the rows' positions.
        window: positions that a query sees, itself included; None means all.

    Returns:
        float32 [T, H, C].
    """
    ends = range(position + 1, position + 1 + len(q))
    firsts = [0 if window is None else max(0, end - window) for end in ends]
    return torch.stack(
        [attention_row(row, *kv.read(first, end)) for row, first, end in zip(q, firsts, ends, strict=True)]
    )


def attention_prefill(q: Tensor, kv: KVLayer, position: int, window: int | None, *, exact: bool = False) -> Tensor:
    """Attend from the queries [T, H, C] of a chunk, from `position` on; see `attention_chunk`.

    An int8 cache is dequantized one kv head at a time: 32k positions are 32 MiB, instead of 256.
    """
    end = position + q.shape[0]
    first = 0 if window is None else max(0, position + 1 - window)
    if kv.key_scale is None:
        return attention_chunk(q, *kv.read(first, end), window=window, exact=exact)
    KV = len(kv.keys)
    heads = [
        attention_chunk(group, *kv.head(i).read(first, end), window=window, exact=exact)
        for i, group in enumerate(q.chunk(KV, dim=1))
    ]
    return torch.cat(heads, dim=1)


def attention_chunk(q: Tensor, keys: Tensor, values: Tensor, *, window: int | None, exact: bool = False) -> Tensor:
    """Attend causally from the last T of L positions, as in prefill.

    Args:
        q: float32 [T, H, C], the queries of positions L-T .. L-1.
        keys, values: [KV, L, C].
        window: positions that a query sees, itself included; None means all.

    Returns:
        float32 [T, H, C].
    """
    T, L = q.shape[0], keys.shape[1]
    dtype = torch.float32 if exact else torch.bfloat16
    position = torch.arange(L - T, L)[:, None]
    seen = torch.arange(L)[None]
    mask = seen <= position  # [T, L]
    if window is not None:
        mask &= seen > position - window
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None].to(dtype),  # [1, H, T, C]
        keys[None].to(dtype),
        values[None].to(dtype),
        attn_mask=mask,
        enable_gqa=True,
    )
    return out[0].transpose(0, 1).float()


def experts(
    x: Tensor,
    experts: Sequence[Expert],
    topk_ids: Tensor,
    topk_weights: Tensor,
    linear: Linear,
) -> Tensor:
    """Return sum over a of topk_weights[t, a] * expert[topk_ids[t, a]](x[t]).

    Tokens are grouped by expert, so an expert's weights are read once however many tokens chose it. A token's sum runs
    over its experts in the router's order, so its result does not depend on the other tokens.

    Args:
        x: float32 [T, D].
        experts: E of them.
        topk_ids: int64 [T, A]; no expert twice in a row. A negative one is computed elsewhere and adds nothing.
        topk_weights: float32 [T, A].
        linear: how a product is computed.
    """
    T, A = topk_ids.shape
    answers = x.new_zeros(T, A, x.shape[1])  # [T, A, D]
    for expert in sorted({expert for expert in topk_ids.flatten().tolist() if expert >= 0}):
        tokens, slots = torch.where(topk_ids == expert)  # [R], [R] rows that chose it
        w1, w2, w3 = experts[expert]
        answers[tokens, slots] = swiglu(x[tokens], w1, w2, w3, linear)
    total = torch.zeros_like(x)
    for slot in range(A):
        total += topk_weights[:, slot, None] * answers[:, slot]
    return total


def swiglu(x: Tensor, w1: Weight, w2: Weight, w3: Weight, linear: Linear) -> Tensor:
    """Return w2(silu(w1 x) * w3 x): one expert, or a dense feed-forward block. x: [T, D] -> [T, D]."""
    return linear(silu_mul(linear(x, w1), linear(x, w3)), w2)
