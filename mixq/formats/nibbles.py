"""Two 4-bit codes in a byte, the order that `nl4` and `w4` share.

Contract: byte j of a row holds code 2j in its low half and code 2j+1 in its high half, so a kernel splits the
activations once into even and odd halves and never shuffles weights. (`nf4` has the halves the other way round.)
"""

from __future__ import annotations

import torch
from torch import Tensor


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

    One look-up a byte, in a table of 256 pairs: four times as fast in torch as one a code.
    """
    pairs = torch.stack((table.repeat(16), table.repeat_interleave(16)), dim=-1).view(torch.int16)[:, 0]  # [256]
    return pairs.index_select(0, packed.flatten().int()).view(torch.int8).view(packed.shape[0], -1)
