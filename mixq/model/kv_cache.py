"""The keys and values of one sequence, for every layer.

Contract: fixed capacity, taken once; positions are written in order and read as a prefix. A pass of the network
writes each layer's new positions with `append`, then moves `length` with `advance`, so a pass that is broken off
leaves the cache as it was. This module knows no tokens and no attention.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixq.config import ModelConfig, format_size
from mixq.errors import DoesNotFitError, PromptError


class KVCache:
    """KV cache of one sequence.

    Args:
        config: the model's shape.
        capacity: positions that fit, at most the model's own maximum.
        dtype: torch.bfloat16, torch.float32 (exact mode), or torch.int8: one float32 scale per kv head and position.

    Raises:
        DoesNotFitError: the system has no memory for it.

    Attributes:
        length: positions that hold a token.
    """

    def __init__(self, config: ModelConfig, capacity: int, dtype: torch.dtype = torch.bfloat16) -> None:
        shape = (config.num_hidden_layers, 2, config.num_key_value_heads, capacity, config.head_dim)
        self.capacity = capacity
        self.length = 0
        try:  # [layers, 2, KV, capacity, C]; pages are touched as they fill
            self._data = torch.empty(shape, dtype=dtype)
            self._scale = torch.empty(shape[:-1], dtype=torch.float32) if dtype == torch.int8 else None
        except RuntimeError as error:  # torch's word for a failed allocation
            needed = capacity * self.bytes_per_position(config, dtype)
            raise DoesNotFitError(
                f"The KV cache of {capacity} positions needs {format_size(needed)}, which the system refused.",
                hint="Give a smaller --context, or --kv int8.",
            ) from error

    @staticmethod
    def bytes_per_position(config: ModelConfig, dtype: torch.dtype) -> int:
        """Return the bytes that one position takes over all layers."""
        heads = 2 * config.num_hidden_layers * config.num_key_value_heads
        return heads * (config.head_dim * dtype.itemsize + (4 if dtype == torch.int8 else 0))

    def append(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Write float32 keys and values [T, KV, C] of the T positions after `length`.

        Raises:
            PromptError: the positions do not fit.
        """
        T = keys.shape[0]
        end = self.length + T
        if end > self.capacity:
            raise PromptError(
                f"{end} positions do not fit into a context of {self.capacity}.", hint="Give a larger --context."
            )
        both = torch.stack((keys, values)).transpose(1, 2)  # [2, KV, T, C]
        if self._scale is None:
            self._data[layer, :, :, self.length : end] = both.to(self._data.dtype)
            return
        scale = both.abs().amax(-1) / 127.0  # [2, KV, T]
        inverse = torch.where(scale > 0, 1.0 / scale, 0.0).nan_to_num(posinf=0.0)
        self._scale[layer, :, :, self.length : end] = scale
        self._data[layer, :, :, self.length : end] = torch.round(both * inverse[..., None]).to(torch.int8)

    def read(self, layer: int, first: int, end: int) -> tuple[Tensor, Tensor]:
        """Return keys and values [KV, end - first, C]: views, or float32 copies of an int8 cache."""
        data = self._data[layer, :, :, first:end]
        if self._scale is not None:
            data = data.float() * self._scale[layer, :, :, first:end, None]
        return data[0], data[1]

    def advance(self, count: int) -> None:
        """Count `count` appended positions as held."""
        self.length += count

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a cache of {self.length} positions to {length}")
        self.length = length

    @property
    def nbytes(self) -> int:
        """Bytes taken by the cache when it is full."""
        return self._data.nbytes + (self._scale.nbytes if self._scale is not None else 0)
