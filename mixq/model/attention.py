"""Grouped-query attention of one layer, over the KV caches of the sequences in a batch.

Contract: a decode pass (few rows in all) attends row by row, so that a row's bits do not depend on the others; a
prefill pass attends a chunk at a time. Axes: T tokens of the batch, H heads, KV kv heads, C head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixq.config import ModelConfig
from mixq.formats.weights import Weights
from mixq.kernels import reference
from mixq.kernels.dispatch import Kernels
from mixq.model.kv_cache import KVCache
from mixq.model.rope import RotaryTable


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next tokens of one sequence.

    `token_ids` is int64 [T]; they take the positions after `kv_cache.length`.
    """

    token_ids: Tensor
    kv_cache: KVCache


class Attention:
    """Self-attention with rotary positions and fewer kv heads than heads (GQA, Ainslie et al., 2023)."""

    def __init__(self, folder: Weights, layer: int, rotary: RotaryTable, kernels: Kernels) -> None:
        prefix = f"model.layers.{layer}.self_attn"
        self.qkv_proj = [folder.linear(f"{prefix}.{name}_proj") for name in "qkv"]
        self.o_proj = folder.linear(f"{prefix}.o_proj")
        self.config: ModelConfig = folder.config
        self.layer = layer
        self.rotary = rotary
        self.kernels = kernels

    def __call__(self, x: Tensor, chunks: Sequence[Chunk]) -> Tensor:
        """x: [T, D], the chunks' tokens one after the other -> [T, D]."""
        T, C = x.shape[0], self.config.head_dim
        q, k, v = (y.view(T, -1, C) for y in self.kernels.linears(x, self.qkv_proj))  # [T, H, C], 2 x [T, KV, C]

        one_by_one = reference.DECODE_ROWS >= T
        attended, start = [], 0
        for chunk in chunks:
            rows = slice(start, start + len(chunk.token_ids))
            start = rows.stop
            cos, sin = self.rotary.at(chunk.kv_cache.length, len(chunk.token_ids))
            chunk.kv_cache.append(self.layer, reference.rotary(k[rows], cos, sin), v[rows])
            rotated = reference.rotary(q[rows], cos, sin)
            attended.append(self._rows(rotated, chunk) if one_by_one else self._chunk(rotated, chunk))
        out = torch.cat(attended).reshape(T, -1)  # [T, H*C]
        return self.kernels.linear(out, self.o_proj)

    def _rows(self, q: Tensor, chunk: Chunk) -> Tensor:
        out = []
        for i, row in enumerate(q):
            end = chunk.kv_cache.length + i + 1
            keys, values = chunk.kv_cache.read(self.layer, self._first_seen(end), end)
            out.append(reference.attention_row(row, keys, values))
        return torch.stack(out)  # [T, H, C]

    def _chunk(self, q: Tensor, chunk: Chunk) -> Tensor:
        end = chunk.kv_cache.length + q.shape[0]
        first = self._first_seen(chunk.kv_cache.length + 1)
        keys, values = chunk.kv_cache.read(self.layer, first, end)
        return reference.attention_chunk(q, keys, values, window=self.config.sliding_window, exact=self.kernels.exact)

    def _first_seen(self, end: int) -> int:
        """Return the first position that the query at position end - 1 sees."""
        window = self.config.sliding_window
        return 0 if window is None else max(0, end - window)
