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
from mixq.formats.folder import ModelFolder
from mixq.kernels import reference as kernels
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

    def __init__(self, folder: ModelFolder, layer: int, rotary: RotaryTable, *, exact: bool) -> None:
        prefix = f"model.layers.{layer}.self_attn"
        self.q_proj = folder.linear(f"{prefix}.q_proj")
        self.k_proj = folder.linear(f"{prefix}.k_proj")
        self.v_proj = folder.linear(f"{prefix}.v_proj")
        self.o_proj = folder.linear(f"{prefix}.o_proj")
        self.config: ModelConfig = folder.config
        self.layer = layer
        self.rotary = rotary
        self.exact = exact

    def __call__(self, x: Tensor, chunks: Sequence[Chunk]) -> Tensor:
        """x: [T, D], the chunks' tokens one after the other -> [T, D]."""
        T, C = x.shape[0], self.config.head_dim
        q = kernels.linear(x, self.q_proj, exact=self.exact).view(T, -1, C)  # [T, H, C]
        k = kernels.linear(x, self.k_proj, exact=self.exact).view(T, -1, C)  # [T, KV, C]
        v = kernels.linear(x, self.v_proj, exact=self.exact).view(T, -1, C)  # [T, KV, C]

        one_by_one = kernels.DECODE_ROWS >= T
        attended, start = [], 0
        for chunk in chunks:
            rows = slice(start, start + len(chunk.token_ids))
            start = rows.stop
            cos, sin = self.rotary.at(chunk.kv_cache.length, len(chunk.token_ids))
            chunk.kv_cache.append(self.layer, kernels.rotary(k[rows], cos, sin), v[rows])
            rotated = kernels.rotary(q[rows], cos, sin)
            attended.append(self._rows(rotated, chunk) if one_by_one else self._chunk(rotated, chunk))
        out = torch.cat(attended).reshape(T, -1)  # [T, H*C]
        return kernels.linear(out, self.o_proj, exact=self.exact)

    def _rows(self, q: Tensor, chunk: Chunk) -> Tensor:
        out = []
        for i, row in enumerate(q):
            end = chunk.kv_cache.length + i + 1
            keys, values = chunk.kv_cache.read(self.layer, self._first_seen(end), end)
            out.append(kernels.attention_row(row, keys, values))
        return torch.stack(out)  # [T, H, C]

    def _chunk(self, q: Tensor, chunk: Chunk) -> Tensor:
        end = chunk.kv_cache.length + q.shape[0]
        first = self._first_seen(chunk.kv_cache.length + 1)
        keys, values = chunk.kv_cache.read(self.layer, first, end)
        return kernels.attention_chunk(q, keys, values, window=self.config.sliding_window, exact=self.exact)

    def _first_seen(self, end: int) -> int:
        """Return the first position that the query at position end - 1 sees."""
        window = self.config.sliding_window
        return 0 if window is None else max(0, end - window)
