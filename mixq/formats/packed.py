"""A quantized linear layer: its scheme, its shape and its tensors as stored.

Contract: `PackedLinear` holds views of the folder's bytes, not repacked; `tensor_specs` defines the tensors of each
scheme and their sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from mixq.formats import int_groups, nf4, nl4
from mixq.formats.nl4 import Specs, look_up_nibbles
from mixq.formats.scheme import Scheme


def tensor_specs(scheme: Scheme, shape: tuple[int, int], scale_dtype: torch.dtype = torch.bfloat16) -> Specs:
    """Return {suffix: (dtype, shape)} of a linear layer [N, K] in this scheme; a suffix follows the linear layer's name
    and a dot.

    `scale_dtype` is the dtype of w4's and w8's scales; for nf4, the dtype of dequantized weights.
    """
    if not scheme.fits(shape):
        raise ValueError(f"{scheme} needs K to be a multiple of {scheme.group_size}; the shape is {list(shape)}")
    if scheme.name == "nl4":
        return nl4.specs(shape, scheme.group_size)
    if scheme.name == "nf4":
        return nf4.specs(shape, scheme.group_size, scale_dtype)
    return int_groups.specs(shape, scheme.group_size, scheme.bits, scale_dtype)


def packed_bytes(scheme: Scheme, shape: tuple[int, int]) -> int:
    """Return the exact bytes of a linear layer [N, K] in this scheme."""
    return sum(dtype.itemsize * prod(size) for dtype, size in tensor_specs(scheme, shape).values())


@dataclass(frozen=True, slots=True, eq=False)
class PackedLinear:
    """A quantized weight [N out, K in]."""

    scheme: Scheme
    shape: tuple[int, int]
    tensors: Mapping[str, Tensor]  # by suffix, for example `weight_codes`; see `tensor_specs`
    table: Tensor | None = None  # int8 [16], for nl4 only

    def __post_init__(self) -> None:
        if (self.table is not None) != (self.scheme.name == "nl4"):
            raise ValueError("nl4, and only nl4, has a table")
        if self.scheme.name == "nf4":  # has several layouts: plain, nested, stored as another dtype
            state = nf4.read_state(self.tensors)
            if state.shape != self.shape or state.blocksize != self.scheme.group_size:
                raise ValueError(f"the quant_state says {list(state.shape)}, blocks of {state.blocksize}")
            return
        scale_dtype = self.tensors["weight_scale"].dtype
        for suffix, (dtype, size) in tensor_specs(self.scheme, self.shape, scale_dtype).items():
            tensor = self.tensors[suffix]
            if tensor.dtype != dtype or tuple(tensor.shape) != size:
                raise ValueError(
                    f"{suffix} is {tensor.dtype} {list(tensor.shape)}; {self.scheme} requires {dtype} {list(size)}"
                )

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def integer_form(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return (values, scale, row_scale) with W[n, k] = values[n, k] * scale[n, k // g] * row_scale[n].

        values: int8 [N, K], the code values; scale: float32 [N, G]; row_scale: float32 [N], ones for w4 and w8.
        nf4 has no integer values: ValueError.
        """
        if self.table is not None:
            values = look_up_nibbles(self.tensors["weight_codes"], self.table)
            return values, self.tensors["weight_scale"].to(torch.float32), self.tensors["weight_row_scale"]
        if self.scheme.name == "nf4":
            raise ValueError("nf4 has no integer values: its levels are real numbers")
        q, scale = int_groups.unpack(self.tensors, self.scheme.bits)
        return q, scale.to(torch.float32), torch.ones(self.shape[0])

    def dequantize(self) -> Tensor:
        """Return the weights as float32 [N, K]: the reference that every kernel is tested against."""
        if self.table is not None:
            return nl4.dequantize(self.tensors, self.table)
        if self.scheme.name == "nf4":
            return nf4.dequantize(self.tensors)
        return int_groups.dequantize(self.tensors, self.scheme.bits)
