"""w4 and w8: compressed-tensors' "pack-quantized" layout with symmetric signed groups.

Contract: W[n, k] = q[n, k] * scale[n, k // g]; q is -8..7 (w4) or -128..127 (w8) and is stored as q + 2**(bits-1),
least significant bits first, in int32 words. As bytes this is `nl4`'s order of nibbles (w4), or one byte per weight
(w8). Tensors of a linear layer [N out, K in]: `weight_packed` i32 [N, K*bits/32], `weight_scale` bf16 or f16 [N, K/g]
(may be negative), `weight_shape` i64 [2] = (N, K). Layout as in compressed_tensors/compressors/pack_quantized, version
0.20.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mixq.formats.nl4 import Specs, look_up_nibbles, pack_nibbles

_INT4 = torch.arange(-8, 8, dtype=torch.int8)
SCALE_DTYPES = (torch.bfloat16, torch.float16)


def specs(shape: tuple[int, int], group_size: int, bits: int, scale_dtype: torch.dtype) -> Specs:
    """Return dtype and shape of each tensor of a linear layer [N, K]."""
    N, K = shape
    return {
        "weight_packed": (torch.int32, (N, K * bits // 32)),
        "weight_scale": (scale_dtype, (N, K // group_size)),
        "weight_shape": (torch.int64, (2,)),
    }


def pack(q: Tensor, scale: Tensor, bits: int) -> dict[str, Tensor]:
    """Return the tensors of q int8 [N, K] and scale bf16 or f16 [N, G]; K must fill whole int32 words."""
    N, K = q.shape
    if q.dtype != torch.int8 or bits not in (4, 8) or K * bits % 32:
        raise ValueError(f"q must be int8 [N, K] with K a multiple of {32 // bits}, not {q.dtype} {list(q.shape)}")
    if scale.dtype not in SCALE_DTYPES or scale.ndim != 2 or scale.shape[0] != N:
        raise ValueError(f"scale must be bf16 or f16 [{N}, G], not {scale.dtype} {list(scale.shape)}")
    if bits == 4:
        if q.numel() and (int(q.min()) < -8 or int(q.max()) > 7):
            raise ValueError("a 4-bit q is outside -8..7")
        stored = pack_nibbles((q + 8).view(torch.uint8))
    else:
        stored = q.view(torch.uint8) ^ 0x80
    return {
        "weight_packed": stored.contiguous().view(torch.int32),
        "weight_scale": scale.contiguous(),
        "weight_shape": torch.tensor((N, K), dtype=torch.int64),
    }


def unpack(tensors: Mapping[str, Tensor], bits: int) -> tuple[Tensor, Tensor]:
    """Return q int8 [N, K] and scale [N, G]; the inverse of `pack`."""
    stored = tensors["weight_packed"].view(torch.uint8)
    q = look_up_nibbles(stored, _INT4) if bits == 4 else (stored ^ 0x80).view(torch.int8)
    return q, tensors["weight_scale"]


def dequantize(tensors: Mapping[str, Tensor], bits: int) -> Tensor:
    """Return the weights as float32 [N, K]; exact, since q has 8 bits and a scale at most 11."""
    q, scale = unpack(tensors, bits)
    N, G = scale.shape
    return (q.to(torch.float32).reshape(N, G, -1) * scale.to(torch.float32)[:, :, None]).reshape(N, -1)
