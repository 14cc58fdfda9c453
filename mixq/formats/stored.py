"""A set of stored tensors, whatever file they lie in.

Contract: `entry` tells dtype and shape without reading anything of a tensor; `tensor` and `rows` hand it out, as a view
where the file is mapped. Names are those of the file; `layout` gives them meaning.
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
        """Return dtype, shape and place of a tensor, or None where there is no such tensor."""

    def tensor(self, name: str) -> Tensor:
        """Return a tensor; KeyError where there is none."""

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Return rows first to last of a tensor, seen as a matrix of its last axis: [last - first, K]."""

    def file_of(self, name: str) -> str:
        """Return the name of the file that holds a tensor, for messages."""
