"""Grouped-query attention of one layer, over the KV caches of the sequences in a batch.

Contract: decode (few rows in total) attends row by row, so that a row's result does not depend on the others; prefill
attends one chunk at a time. Axes: T tokens of the batch, H heads, KV kv heads, C head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixq.config import ModelConfig
from mixq.formats.weights import Tensors
from mixq.kernels import reference
from mixq.kernels.dispatch import Kernels
from mixq.kernels.kv_layer import KVLayer
from mixq.model.kv_cache import KVCache


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next tokens of one sequence.

    `token_ids` is int64 [T]; their positions follow `kv_cache.length`. A captured step, which is replayed for many
    tokens, reads its position when it runs: `position` is then an int64 [1] on the device, else None.
    """

    token_ids: Tensor
    kv_cache: KVCache
    position: Tensor | None = None


class RotaryTable:
    """Cosines and sines of every position up to `positions`, in float32; rotating by them is a kernel.

    Source: RoFormer (Su et al., 2021), with the frequencies and the row order of Hugging Face's Llama.
    """

    def __init__(self, config: ModelConfig, positions: int, device: torch.device | None = None) -> None:
        exponent = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim  # [C/2]
        frequency = 1.0 / (config.rope_theta**exponent)
        angle = torch.arange(positions, dtype=torch.float32)[:, None] * frequency  # [positions, C/2]
        self.cos, self.sin = angle.cos().to(device), angle.sin().to(device)

    def at(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Return cos and sin [count, C/2] of positions first .. first + count - 1."""
        return self.cos[first : first + count], self.sin[first : first + count]


class Attention:
    """Self-attention with rotary positions and fewer kv heads than heads (GQA, Ainslie et al., 2023)."""

    def __init__(self, folder: Tensors, layer: int, rotary: RotaryTable, kernels: Kernels) -> None:
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
        attend = self.kernels.attention_rows if one_by_one else self.kernels.attention_prefill
        attended, start = [], 0
        for chunk in chunks:
            rows = slice(start, start + len(chunk.token_ids))
            start = rows.stop
            kv, position = chunk.kv_cache.layers[self.layer], chunk.kv_cache.length
            chunk.kv_cache.check_room(len(chunk.token_ids))
            if chunk.position is not None:
                attended.append(self._captured(q[rows], k[rows], v[rows], kv, chunk.position))
                continue
            cos, sin = self.rotary.at(position, len(chunk.token_ids))
            rotated = self.kernels.rotary_append(q[rows], k[rows], v[rows], cos, sin, kv, position)
            attended.append(attend(rotated, kv, position, self.config.sliding_window))
        out = torch.cat(attended).reshape(T, -1)  # [T, H*C]
        return self.kernels.linear(out, self.o_proj)

    def _captured(self, q: Tensor, k: Tensor, v: Tensor, kv: KVLayer, position: Tensor) -> Tensor:
        """Attend from one row, whose position is read when the kernel runs."""
        rotated = self.kernels.rotary_append(q, k, v, self.rotary.cos, self.rotary.sin, kv, position)
        return self.kernels.attention_rows(rotated, kv, position, self.config.sliding_window)
