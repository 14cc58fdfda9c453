"""Encodes a packed linear layer's layout in one integer, a compile-time constant of kernels.

Contract: `Format` on the host; on the device the integer is decoded by division.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mixq.formats.packed import PackedLinear
from mixq.kernels.reference import Weight

BF16, NIBBLES, BYTES = range(3)
"""Kinds of weights: two bfloat16 per 32-bit word, eight indices into a table, four bytes minus 128."""

_SCALE_TYPES = {torch.int8: 0, torch.bfloat16: 1, torch.float16: 2}
ABSENT = -1
"""Instead of a format's integer: there is no such matrix."""


@dataclass(frozen=True, slots=True)
class Format:
    """A layout of weights."""

    kind: int  # BF16, NIBBLES or BYTES
    scale: int = 0  # type of the group scales: 0 int8 with a float32 scale per row (nl4), 1 bfloat16, 2 float16
    group: int = 0  # weights that share a scale; 0 for bfloat16 weights

    @property
    def number(self) -> int:
        """The integer for kernels: kind + 4 * scale + 16 * group."""
        return self.kind + 4 * self.scale + 16 * self.group

    @classmethod
    def of(cls, weight: Weight) -> Format | None:
        """Return a weight's format; None if the kernels do not support it (nf4; float16 and float32 weights)."""
        if isinstance(weight, Tensor):
            return cls(BF16) if weight.dtype == torch.bfloat16 else None
        if weight.scheme.name == "nf4":
            return None
        kind = BYTES if weight.scheme.name == "w8" else NIBBLES
        scale = _SCALE_TYPES.get(weight.tensors["weight_scale"].dtype)
        return None if scale is None else cls(kind, scale, weight.scheme.group_size)


def codes_of(weight: Weight) -> Tensor:
    """Return the tensor of weights or codes."""
    if isinstance(weight, Tensor):
        return weight
    return weight.tensors["weight_codes" if weight.scheme.name == "nl4" else "weight_packed"]


def tensors_of(weight: Weight) -> list[Tensor]:
    """Return the tensors for a kernel: codes, scales, row scales, if the format has them."""
    if isinstance(weight, PackedLinear):
        names = ("weight_scale", "weight_row_scale")
        return [codes_of(weight), *[weight.tensors[name] for name in names if name in weight.tensors]]
    return [weight]
