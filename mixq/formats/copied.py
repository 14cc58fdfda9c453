"""A safetensors file copied into memory: tensors are views of the copy.

Contract: `copy_part` reads a part of the file, and several threads may read several parts; a `CopiedShard` is created
when all parts have been read. Its memory lives as long as any of its tensors.
"""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from mixq.errors import StorageError, printable
from mixq.formats.header import ShardHeader
from mixq.formats.mapped import tensor_at


class CopiedShard:
    """One safetensors file in memory.

    Args:
        path: of the file.
        header: of the file.
        memory: all its bytes, uint8 [file size].
    """

    def __init__(self, path: Path, header: ShardHeader, memory: Tensor) -> None:
        self.path = path
        self.header = header
        self._bytes = memory.numpy().data

    def tensor(self, name: str) -> Tensor:
        """Return a tensor by its exact name; KeyError if the header does not have it.

        Data that is not aligned to its dtype (possible in files of other programs) is copied again.
        """
        return tensor_at(self._bytes, self.header.entries[name])


def copy_part(path: Path, handle: int, memory: Tensor, start: int, end: int) -> None:
    """Read bytes start to end of a file to the same place in `memory`, uint8 [file size].

    Args:
        path: of the file, for messages.
        handle: the file, opened for reading.

    Raises:
        StorageError: the disk failed, or the file has become shorter.
    """
    view = memory.numpy().data
    while start < end:
        try:
            count = os.preadv(handle, [view[start:end]], start)
        except OSError as error:
            raise StorageError(f"{printable(path)} cannot be read: {printable(error.strerror)}.") from error
        if count == 0:
            raise StorageError(
                f"{printable(path)} has become shorter while it was read: it ends after {start:,} bytes.",
                hint="Do not change a model folder while it is being loaded; then load it again.",
            )
        start += count
