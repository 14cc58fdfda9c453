"""The interface of a model's weights, as the network uses them.

Contract: `ModelFolder` implements it with mapped files, `mixq.measure.speed.synthetic` with random weights in memory.
Names are those of `architecture`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from mixq.config import ModelConfig
from mixq.formats.packed import PackedLinear


class Tensors(Protocol):
    """The weights of one model: what a network is built from."""

    @property
    def config(self) -> ModelConfig:
        """The model's configuration."""

    def tensor(self, name: str) -> Tensor:
        """Return an unquantized tensor by its name, such as `model.norm.weight`; KeyError if there is none."""

    def linear(self, module: str) -> Tensor | PackedLinear:
        """Return a linear layer's weight [N, K] by the linear layer's name: a tensor, or its packed tensors."""


class Weights(Tensors, Protocol):
    """The weights of one model, and the files that belong to it."""

    @property
    def path(self) -> Path:
        """Their folder, or a name."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""

    @property
    def tokenizer_path(self) -> Path | None:
        """tokenizer.model, else tokenizer.json, else None."""

    @property
    def generation_config(self) -> dict[str, Any]:
        """generation_config.json, or empty."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a reply."""
