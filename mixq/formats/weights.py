"""The interfaces of weights: tensors by their names in a file, and a model's weights as the network uses them.

Contract: `ModelFolder` implements `Weights` with mapped files, `mixq.measure.speed.synthetic` with random weights in
memory. Names in `Tensors` and `Weights` are those of `architecture`; `layout` finds them among `StoredTensors`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from mixq.config import ModelConfig
from mixq.formats.header import TensorEntry
from mixq.formats.packed import PackedLinear


class StoredTensors(Protocol):
    """Tensors by their names in a file: the safetensors files of a folder, or another container.

    `entry` reads nothing of a tensor; `tensor` and `rows` are views where the file is mapped.
    """

    @property
    def names(self) -> Collection[str]:
        """All names."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""

    def entry(self, name: str) -> TensorEntry | None:
        """Return dtype, shape and place of a tensor; None if there is no such tensor."""

    def tensor(self, name: str) -> Tensor:
        """Return a tensor; KeyError if there is none."""

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Return rows first to last of a tensor, taken as a matrix of its last axis: [last - first, K]."""

    def file_of(self, name: str) -> str:
        """Return the name of a tensor's file, for messages."""


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
