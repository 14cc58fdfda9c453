"""The interface of a set of stored tensors, independent of the file format.

Contract: `entry` returns dtype and shape without reading the tensor; `tensor` and `rows` return it, as a view if the
file is mapped. Names are those of the file; `layout` maps them to parameters.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from torch import Tensor

from mixq.formats.header import TensorEntry


class StoredTensors(Protocol):
    """Tensors by name: the safetensors files of a folder, or another container."""

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
