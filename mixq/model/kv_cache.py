"""The keys and values of one sequence, for every layer.

Contract: fixed capacity, allocated once; positions are written in order and read as a prefix. A forward pass checks
that its positions fit, writes them layer by layer, then moves `length` with `advance`, so an interrupted pass leaves
the cache unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from mixq.config import ModelConfig, format_size
from mixq.errors import DoesNotFitError, PromptError
from mixq.kernels.kv_layer import KVLayer


class KVCache:
    """KV cache of one sequence.

    Args:
        config: the model's shape.
        capacity: positions that fit, at most the model's maximum.
        dtype: torch.bfloat16, torch.float32 (exact mode), or torch.int8: one float32 scale per kv head and position.
        allocate: returns uint8 memory of an accelerator; None: host memory.

    Raises:
        DoesNotFitError: the system has no memory for it.

    Attributes:
        length: positions that hold a token.
        layers: the keys and values of each layer.
    """

    def __init__(
        self,
        config: ModelConfig,
        capacity: int,
        dtype: torch.dtype = torch.bfloat16,
        allocate: Callable[[int], Tensor] | None = None,
    ) -> None:
        shape = (config.num_hidden_layers, 2, config.num_key_value_heads, capacity, config.head_dim)
        self.capacity = capacity
        self.length = 0
        needed = capacity * self.bytes_per_position(config, dtype)
        codes = dtype.itemsize * prod(shape)
        try:
            memory = torch.empty(needed, dtype=torch.uint8) if allocate is None else allocate(needed)
        except RuntimeError as error:  # what torch raises for a failed allocation
            raise DoesNotFitError(
                f"The KV cache of {capacity} positions needs {format_size(needed)}; the system has no memory for it.",
                hint="Give a smaller --context, or --kv int8.",
            ) from error
        self._memory = memory  # freed with this object
        # [layers, 2, KV, capacity, C]; pages are used as they fill
        self._data = memory[:codes].view(dtype).view(shape)
        self._scale = memory[codes:].view(torch.float32).view(shape[:-1]) if dtype == torch.int8 else None
        scales = self._scale if self._scale is not None else [(None, None)] * config.num_hidden_layers
        self.layers = [KVLayer(*data, *scale) for data, scale in zip(self._data, scales, strict=True)]

    @staticmethod
    def bytes_per_position(config: ModelConfig, dtype: torch.dtype) -> int:
        """Return the bytes of one position in all layers."""
        heads = 2 * config.num_hidden_layers * config.num_key_value_heads
        return heads * (config.head_dim * dtype.itemsize + (4 if dtype == torch.int8 else 0))

    def check_room(self, count: int) -> None:
        """Raise PromptError if `count` more positions do not fit."""
        if self.length + count > self.capacity:
            raise PromptError(
                f"{self.length + count} positions do not fit into a context of {self.capacity}.",
                hint="Use a larger --context.",
            )

    def advance(self, count: int) -> None:
        """Add `count` appended positions to `length`."""
        self.length += count

    def truncate(self, length: int) -> None:
        """Remove every position from `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a cache of {self.length} positions to {length}")
        self.length = length

    def copy_prefix(self, other: KVCache, length: int) -> None:
        """Replace the content by the first `length` positions of another cache of the same model."""
        if not 0 <= length <= min(other.length, self.capacity):
            raise ValueError(f"cannot copy {length} positions of {other.length} into a cache of {self.capacity}")
        self._data[:, :, :, :length].copy_(other._data[:, :, :, :length])
        if self._scale is not None and other._scale is not None:
            self._scale[:, :, :, :length].copy_(other._scale[:, :, :, :length])
        self.length = length

    @property
    def nbytes(self) -> int:
        """Bytes of the full cache."""
        return self._data.nbytes + (self._scale.nbytes if self._scale is not None else 0)
