"""A packed linear layer's layout as one whole number, which kernels take as a compile-time constant.

Contract: `Format` on the host; on the device the number is taken apart by remainders. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mixq.formats.packed import PackedLinear
from mixq.kernels.reference import Weight

BF16, NIBBLES, BYTES = range(3)
"""Kinds of weights: two bfloat16 in a 32-bit word, eight nibbles into a table, four bytes less 128."""

_SCALE_TYPES = {torch.int8: 0, torch.bfloat16: 1, torch.float16: 2}
ABSENT = -1
"""In place of a format's number: there is no such matrix."""


@dataclass(frozen=True, slots=True)
class Format:
    """How weights lie.

    Attributes:
        kind: BF16, NIBBLES or BYTES.
        scale: type of the group scales: 0 int8 with a float32 scale a row (nl4), 1 bfloat16, 2 float16.
        group: weights that share a scale; 0 for bfloat16 weights.
    """

    kind: int
    scale: int = 0
    group: int = 0

    @property
    def number(self) -> int:
        """What the kernels take: kind + 4 * scale + 16 * group."""
        return self.kind + 4 * self.scale + 16 * self.group

    @classmethod
    def of(cls, weight: Weight) -> Format | None:
        """Return a weight's format, None if no kernel here reads it (nf4; float16 and float32 weights)."""
        if isinstance(weight, Tensor):
            return cls(BF16) if weight.dtype == torch.bfloat16 else None
        if weight.scheme.name == "nf4":
            return None
        kind = BYTES if weight.scheme.name == "w8" else NIBBLES
        scale = _SCALE_TYPES.get(weight.tensors["weight_scale"].dtype)
        return None if scale is None else cls(kind, scale, weight.scheme.group_size)


def codes_of(weight: Weight) -> Tensor:
    """Return the tensor that holds the weights or their codes."""
    if isinstance(weight, Tensor):
        return weight
    return weight.tensors["weight_codes" if weight.scheme.name == "nl4" else "weight_packed"]


def tensors_of(weight: Weight) -> list[Tensor]:
    """Return what a kernel reads: codes, scales, row scales; fewer where the format has no such thing."""
    if isinstance(weight, PackedLinear):
        names = ("weight_scale", "weight_row_scale")
        return [codes_of(weight), *[weight.tensors[name] for name in names if name in weight.tensors]]
    return [weight]
