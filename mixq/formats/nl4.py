"""nl4: 4-bit indices into a table of 16 int8 values, int8 group scales, a float32 scale per row.

Contract: W[n, k] = table[code[n, k]] * scale[n, k // g] * row_scale[n]. The tensors of a linear layer
[N out, K in] are `weight_codes` u8 [N, K/2], `weight_scale` i8 [N, K/g] and `weight_row_scale` f32 [N]; the
table is in the folder's config.json. `quantize` chooses codes and scales.

Nibbles, also in `int_groups`: byte j of a row holds code 2j in its low half and code 2j+1 in its high half. Kernels
split the activations once into even and odd ones and need not reorder weights. (In `nf4` the halves are swapped.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from mixq.errors import is_integer

DEFAULT_TABLE: tuple[int, ...] = (-123, -92, -71, -54, -39, -26, -14, -3, 9, 20, 33, 46, 61, 78, 100, 127)
"""Found by minimizing the squared error of the scale search on Gaussian weights."""

Specs = dict[str, tuple[torch.dtype, tuple[int, ...]]]


def is_table(values: object) -> bool:
    """Whether `values` can be a table: 16 strictly ascending whole numbers from -128 to 127."""
    return (
        isinstance(values, Sequence)
        and not isinstance(values, str | bytes)
        and len(values) == 16
        and all(is_integer(value, -128, 127) for value in values)
        and all(low < high for low, high in pairwise(values))
    )


def pack_nibbles(codes: Tensor) -> Tensor:
    """Pack codes uint8 [N, K] in 0..15, K even, into uint8 [N, K/2]."""
    if codes.dtype != torch.uint8 or codes.ndim != 2 or codes.shape[1] % 2:
        raise ValueError(f"codes must be uint8 [N, even K], not {codes.dtype} {list(codes.shape)}")
    if codes.numel() and int(codes.max()) > 15:
        raise ValueError("a 4-bit code is above 15")
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """Unpack uint8 [N, K/2] into codes uint8 [N, K]."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).reshape(packed.shape[0], -1)


def look_up_nibbles(packed: Tensor, table: Tensor) -> Tensor:
    """Return table[code] as int8 [N, K] for packed uint8 [N, K/2] and a table int8 [16].

    One look-up per byte, in a table of 256 pairs, is four times as fast in torch as one per code.
    """
    pairs = torch.stack((table.repeat(16), table.repeat_interleave(16)), dim=-1).view(torch.int16)[:, 0]  # [256]
    return pairs.index_select(0, packed.flatten().int()).view(torch.int8).view(packed.shape[0], -1)


def table_tensor(table: Sequence[int] = DEFAULT_TABLE) -> Tensor:
    """Return the table as int8 [16]."""
    if not is_table(table):
        raise ValueError(f"a table is 16 ascending int8 values, not {list(table)!r}")
    return torch.tensor(table, dtype=torch.int8)


def specs(shape: tuple[int, int], group_size: int) -> Specs:
    """Return dtype and shape of each tensor of a linear layer [N, K]."""
    N, K = shape
    return {
        "weight_codes": (torch.uint8, (N, K // 2)),
        "weight_scale": (torch.int8, (N, K // group_size)),
        "weight_row_scale": (torch.float32, (N,)),
    }


def pack(codes: Tensor, scale: Tensor, row_scale: Tensor) -> dict[str, Tensor]:
    """Return the tensors of codes uint8 [N, K] in 0..15, scale int8 [N, G] and row_scale float32 [N]."""
    N = codes.shape[0]
    if scale.dtype != torch.int8 or scale.ndim != 2 or scale.shape[0] != N:
        raise ValueError(f"scale must be int8 [{N}, G], not {scale.dtype} {list(scale.shape)}")
    if row_scale.dtype != torch.float32 or row_scale.shape != (N,):
        raise ValueError(f"row_scale must be float32 [{N}], not {row_scale.dtype} {list(row_scale.shape)}")
    return {
        "weight_codes": pack_nibbles(codes),
        "weight_scale": scale.contiguous(),
        "weight_row_scale": row_scale.contiguous(),
    }


def unpack(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes uint8 [N, K], scale int8 [N, G] and row_scale float32 [N]; the inverse of `pack`."""
    return unpack_nibbles(tensors["weight_codes"]), tensors["weight_scale"], tensors["weight_row_scale"]


def dequantize(tensors: Mapping[str, Tensor], table: Tensor) -> Tensor:
    """Return the weights as float32 [N, K].

    table * scale is at most 2**14 and exact, so each weight is rounded once, by the row scale.
    """
    scale = tensors["weight_scale"]
    N, G = scale.shape
    values = look_up_nibbles(tensors["weight_codes"], table).to(torch.float32).reshape(N, G, -1)  # [N, G, g]
    return ((values * scale.to(torch.float32)[:, :, None]).reshape(N, -1)) * tensors["weight_row_scale"][:, None]
