"""Many rows: packed weights are dequantized to 16 bits in a workspace, cuBLAS multiplies, torch's SDPA attends.

Contract: bfloat16 factors (float16 if the GPU has no bfloat16) and float32 sums. The workspace holds WORKSPACE_WEIGHTS
weights at a time, in torch's allocator. `experts` reads once from the GPU how many tokens chose each expert.

Axes: T tokens, N out, K in, S slots, A active experts, H heads, KV kv heads, L positions, C head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from mixq.kernels.kv_layer import KVLayer
from mixq.kernels.reference import Expert, Linear
from mixq.kernels.triton.dequantize import dequantize
from mixq.kernels.triton.experts import weighted_sum
from mixq.kernels.triton.weights import Matrix

WORKSPACE_WEIGHTS = 1 << 25
"""64 MiB of bfloat16: 8192 rows of 4096, enough for cuBLAS to fill any GPU."""

SILU_BLOCK = 1024


def multiply(rows: Tensor, weight: Tensor) -> Tensor:
    """Return rows @ weight.T as float32; both of one 16-bit type."""
    if rows.is_cuda:
        return torch.mm(rows, weight.T, out_dtype=torch.float32)
    return F.linear(rows.float(), weight.float())


def packed_linear(x: Tensor, matrix: Matrix, dtype: torch.dtype) -> Tensor:
    """Return x @ weight.T, float32 [T, N], of a packed weight."""
    N, K = matrix.shape
    rows = x.to(dtype)
    step = max(1, WORKSPACE_WEIGHTS // K)
    room = torch.empty(min(step, N), K, dtype=dtype, device=x.device)
    if step >= N:
        return multiply(rows, dequantize(matrix, 0, room))
    out = torch.empty(x.shape[0], N, dtype=torch.float32, device=x.device)
    for begin in range(0, N, step):
        tile = room[: min(step, N - begin)]
        out[:, begin : begin + len(tile)] = multiply(rows, dequantize(matrix, begin, tile))
    return out


@triton.jit
def silu_mul_kernel(gate: tl.tensor, up: tl.tensor, count: tl.tensor, BLOCK: tl.constexpr) -> None:
    """Program (block): gate becomes silu(gate) * up."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(gate + i, mask=i < count, other=0.0)
    u = tl.load(up + i, mask=i < count, other=0.0)
    tl.store(gate + i, g / (1.0 + tl.exp(-g)) * u, mask=i < count)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up in gate's memory; both contiguous."""
    silu_mul_kernel[triton.cdiv(gate.numel(), SILU_BLOCK),](gate, up, gate.numel(), BLOCK=SILU_BLOCK, num_warps=4)
    return gate


def experts(x: Tensor, experts: Sequence[Expert], ids: Tensor, weights: Tensor, linear: Linear) -> Tensor:
    """Return the weighted sum of the chosen experts, each of which multiplies its tokens together.

    Args:
        x: float32 [T, D].
        ids: int64 [T, A], contiguous; negative ones add nothing.
        weights: float32 [T, A], contiguous.
        linear: multiplies an expert's tokens.
    """
    T, A = ids.shape
    flat = ids.flatten()
    order = flat.argsort(stable=True)  # pairs t * A + a, by slot
    tokens = order // A
    counts = torch.bincount(flat.clamp(min=-1) + 1, minlength=len(experts) + 1).tolist()
    answers = torch.empty(T * A, x.shape[1], dtype=torch.float32, device=x.device)
    begin = counts[0]  # pairs of experts computed elsewhere
    for slot, count in enumerate(counts[1:]):
        if count:
            mine = slice(begin, begin + count)
            begin += count
            w1, w2, w3 = experts[slot]
            rows = x.index_select(0, tokens[mine])
            answers.index_copy_(0, order[mine], linear(silu_mul(linear(rows, w1), linear(rows, w3)), w2))
    return weighted_sum(answers.view(T, A, -1), ids, weights)


def attention(q: Tensor, kv: KVLayer, position: int, window: int | None, dtype: torch.dtype, *, flash: bool) -> Tensor:
    """Attend causally from q [T, H, C] at `position` and after -> [T, H, C]; see `reference.attention_chunk`.

    An int8 cache is dequantized one kv head at a time. flash: whether the GPU supports torch's flash attention.
    """
    end = position + q.shape[0]
    first = 0 if window is None else max(0, position + 1 - window)
    if kv.key_scale is None:
        return _attend(q, *kv.read(first, end), window, dtype, flash=flash)
    heads = [
        _attend(group, *kv.head(i).read(first, end), window, dtype, flash=flash)
        for i, group in enumerate(q.chunk(len(kv.keys), dim=1))
    ]
    return torch.cat(heads, dim=1)


def _attend(q: Tensor, keys: Tensor, values: Tensor, window: int | None, dtype: torch.dtype, *, flash: bool) -> Tensor:
    T, H, C = q.shape
    KV, L = keys.shape[:2]
    keys, values = keys[None].to(dtype), values[None].to(dtype)  # [1, KV, L, C]
    if flash and (window is None or window >= L):
        query = q.transpose(0, 1)[None].to(dtype)  # [1, H, T, C]
        causal = causal_lower_right(T, L)
        out = F.scaled_dot_product_attention(query, keys, values, attn_mask=causal, enable_gqa=True)
        return out[0].transpose(0, 1).float()
    # The queries of heads that share a kv head are adjacent, so that keys need not be copied.
    grouped = q.view(T, KV, -1, C).permute(1, 2, 0, 3).reshape(1, KV, -1, C).to(dtype)  # [1, KV, H/KV * T, C]
    position = torch.arange(L - T, L, device=q.device)[:, None]
    seen = torch.arange(L, device=q.device)[None]
    mask = seen <= position  # [T, L]
    if window is not None:
        mask &= seen > position - window
    out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask.repeat(H // KV, 1))
    return out.view(KV, H // KV, T, C).permute(2, 0, 1, 3).reshape(T, H, C).float()
