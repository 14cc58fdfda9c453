"""Rotary position embedding: the angles. Rotating by them is a kernel.

Source: RoFormer (Su et al., 2021), with the frequencies and the row order of Hugging Face's Llama.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixq.config import ModelConfig


class RotaryTable:
    """Cosines and sines of every position up to `positions`, computed once in float32."""

    def __init__(self, config: ModelConfig, positions: int, device: torch.device | None = None) -> None:
        exponent = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim  # [C/2]
        frequency = 1.0 / (config.rope_theta**exponent)
        angle = torch.arange(positions, dtype=torch.float32)[:, None] * frequency  # [positions, C/2]
        self.cos, self.sin = angle.cos().to(device), angle.sin().to(device)

    def at(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Return cos and sin [count, C/2] of positions first .. first + count - 1."""
        return self.cos[first : first + count], self.sin[first : first + count]
