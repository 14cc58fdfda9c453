"""The code values that a weight, divided by its scale, is rounded to: whole numbers, or an nl4 table.

Contract: `limit` is the largest magnitude; `nearest` returns the code value nearest to each element of a float32
tensor, which it may overwrite, exact for every finite number, ties as stated; `codes` returns the codes of code values.
The schemes differ in nothing else for the scale search.
"""

from __future__ import annotations

import torch
from torch import Tensor


class IntegerLevels:
    """Whole numbers of `bits` bits, ties to even; codes are the numbers themselves, int8."""

    def __init__(self, bits: int) -> None:
        self.limit = float(1 << (bits - 1))

    def nearest(self, x: Tensor) -> Tensor:
        return x.round_().clamp_(-self.limit, self.limit - 1)

    def codes(self, values: Tensor) -> Tensor:
        return values.to(torch.int8)


class TableLevels:
    """The 16 ascending int8 values of an nl4 table, ties to the larger value; codes are indices in the table, uint8.

    Midpoints between int8 values are multiples of one half, so the nearest value depends on floor(2x) alone and is read
    from a table of 512: several times faster than a binary search, and the same for every x.
    """

    def __init__(self, table: Tensor) -> None:
        values = table.to(torch.int32)
        self.limit = float(values.abs().max())
        halves = torch.arange(-256, 256, dtype=torch.int32)
        place = torch.bucketize(halves, (values[1:] + values[:-1]), right=True)  # 2x >= a + b: the larger value
        self._nearest = values.to(torch.float32)[place]
        self._code = torch.zeros(256, dtype=torch.uint8)
        self._code[(values + 128).long()] = torch.arange(16, dtype=torch.uint8)

    def nearest(self, x: Tensor) -> Tensor:
        place = x.mul_(2).floor_().clamp_(-256, 255).add_(256).to(torch.int32)
        return self._nearest.index_select(0, place.view(-1)).view(x.shape)

    def codes(self, values: Tensor) -> Tensor:
        return self._code.index_select(0, (values + 128).to(torch.int32).view(-1)).view(values.shape)


Levels = IntegerLevels | TableLevels
