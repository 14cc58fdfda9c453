"""The keys and values of one layer in memory, for attention kernels.

Contract: views into a cache; the cache's owner keeps track of which positions hold a token. bfloat16 and float32 are
stored as such; int8 with one float32 scale per kv head and position: absmax / 127, codes half to even.

Axes: T tokens, KV kv heads, L positions, C head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class KVLayer:
    """Keys and values [KV, capacity, C]; scales [KV, capacity] if they are int8, else None."""

    keys: Tensor
    values: Tensor
    key_scale: Tensor | None = None
    value_scale: Tensor | None = None

    def write(self, keys: Tensor, values: Tensor, position: int) -> None:
        """Write float32 keys and values [T, KV, C] from `position` on."""
        for data, scale, x in ((self.keys, self.key_scale, keys), (self.values, self.value_scale, values)):
            _write(data[:, position : position + len(x)], scale, x.transpose(0, 1), position)

    def read(self, first: int, end: int) -> tuple[Tensor, Tensor]:
        """Return keys and values [KV, end - first, C]: views, or float32 copies of an int8 cache."""
        return _read(self.keys, self.key_scale, first, end), _read(self.values, self.value_scale, first, end)

    def head(self, index: int) -> KVLayer:
        """Return the layer with only this kv head."""
        one = slice(index, index + 1)
        if self.key_scale is None or self.value_scale is None:
            return KVLayer(self.keys[one], self.values[one])
        return KVLayer(self.keys[one], self.values[one], self.key_scale[one], self.value_scale[one])


def _write(place: Tensor, scale: Tensor | None, x: Tensor, position: int) -> None:
    if scale is None:
        place.copy_(x)
        return
    scales = x.abs().amax(-1) / 127.0  # [KV, T]
    inverse = torch.where(scales > 0, 1.0 / scales, 0.0).nan_to_num(posinf=0.0)
    scale[:, position : position + scales.shape[1]] = scales
    place.copy_(torch.round(x * inverse[..., None]))


def _read(data: Tensor, scale: Tensor | None, first: int, end: int) -> Tensor:
    rows = data[:, first:end]
    return rows if scale is None else rows.float() * scale[:, first:end, None]
