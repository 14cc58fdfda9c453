"""What the network asks of a model's weights, wherever they lie.

Contract: `ModelFolder` has them in mapped files; `mixq.measure.speed.synthetic` makes them up in memory. Names are
those of `architecture`.
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
        """The model's shape."""

    def tensor(self, name: str) -> Tensor:
        """Return an unquantized tensor by its name, such as `model.norm.weight`; KeyError where there is none."""

    def linear(self, module: str) -> Tensor | PackedLinear:
        """Return a Linear's weight [N, K] by the Linear's name: a tensor, or its packed tensors."""


class Weights(Tensors, Protocol):
    """The weights of one model, and what belongs to them."""

    @property
    def path(self) -> Path:
        """Where they lie, or the name that they go by."""

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
        """Tokens that end an answer."""
