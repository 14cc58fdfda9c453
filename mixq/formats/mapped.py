"""A safetensors file mapped into memory: tensors are views, nothing is read before it is used.

Contract: `MappedShard.tensor` returns a view of the mapping, which lives as long as any of its tensors. The mapping is
private: writing into a tensor never reaches the file. A file that shrinks while mapped kills the process (SIGBUS), as
with every mapping; shards are therefore only ever replaced by rename.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import torch
from torch import Tensor

from mixq.errors import StorageError, printable
from mixq.formats.header import ShardHeader, read_header


class MappedShard:
    """One mapped safetensors file.

    Raises:
        ModelFileError: see `read_header`.
        StorageError: the file cannot be mapped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: ShardHeader = read_header(path)
        try:
            with path.open("rb") as file:
                # Copy-on-write rather than read-only: torch.frombuffer wants a writable buffer, and no page is
                # ever copied as long as nobody writes.
                self._map = mmap.mmap(file.fileno(), self.header.file_size, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise StorageError(f"{printable(path)} cannot be mapped: {printable(error)}.") from error

    def tensor(self, name: str) -> Tensor:
        """Return a tensor by its exact name; KeyError where the header has none.

        Data that are not aligned to their dtype (a foreign file may have such) are copied.
        """
        entry = self.header.entries[name]
        if entry.nbytes == 0:
            return torch.empty(entry.shape, dtype=entry.dtype)
        if entry.start % entry.dtype.itemsize:
            aligned = torch.frombuffer(self._map, dtype=torch.uint8, count=entry.nbytes, offset=entry.start).clone()
            return aligned.view(entry.dtype).reshape(entry.shape)
        count = entry.nbytes // entry.dtype.itemsize
        return torch.frombuffer(self._map, dtype=entry.dtype, count=count, offset=entry.start).reshape(entry.shape)
