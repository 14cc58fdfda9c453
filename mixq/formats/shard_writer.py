"""Writes a safetensors shard, tensor by tensor, in any order, and renames it when it is complete.

Contract: the header is written first from the specs, in safetensors' order (descending dtype, then name) and padded
with spaces so that the data starts on a 4096-byte boundary; the whole file is allocated before the first tensor.
`finish` syncs, renames and returns the sha256. Until then the file is called `NAME.partial`; leaving the writer without
`finish` removes it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from mixq.formats.atomic import partial_path, storage_error, sync_folder
from mixq.formats.header import DTYPES, MAX_HEADER_BYTES, NAME, TensorEntry

DATA_ALIGNMENT = 4096
HASH_BLOCK = 1 << 20
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_DTYPE_RANK = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}

ShardSpecs = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


def shard_layout(specs: ShardSpecs) -> tuple[bytes, dict[str, TensorEntry]]:
    """Return the shard's first bytes (length, header, padding) and the place of each tensor."""
    order = sorted(specs, key=lambda name: (-_DTYPE_RANK[specs[name][0]], name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    spans: dict[str, tuple[int, int]] = {}
    position = 0
    for name in order:
        dtype, shape = specs[name]
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot be a tensor's name")
        spans[name] = (position, position + prod(shape) * dtype.itemsize)
        position = spans[name][1]
        header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": list(spans[name])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % DATA_ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(f"{len(specs)} tensors need a header above {MAX_HEADER_BYTES} bytes; use more shards")
    start = 8 + len(text)
    entries = {name: TensorEntry(*specs[name], start + a, start + b) for name, (a, b) in spans.items()}
    return len(text).to_bytes(8, "little") + text, entries


def shard_size(specs: ShardSpecs) -> int:
    """Return the exact bytes of the shard's file."""
    head, entries = shard_layout(specs)
    return max((entry.end for entry in entries.values()), default=len(head))


def _allocate(handle: int, size: int) -> None:
    """Allocate the file if the file system can, so that a full disk is noticed now and not halfway."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(handle, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    os.ftruncate(handle, size)


class ShardWriter:
    """A shard in progress; use it as a context manager.

    Raises:
        StorageError: the disk is full (the partial shard is removed), or the folder cannot be written.
    """

    def __init__(self, path: Path, specs: ShardSpecs) -> None:
        self.path = path
        self.partial = partial_path(path)
        head, self._entries = shard_layout(specs)
        self.size = max((entry.end for entry in self._entries.values()), default=len(head))
        self._missing = set(self._entries)
        try:
            self._file = self.partial.open("w+b")
        except OSError as error:
            raise storage_error(path, error, self.size) from error
        try:
            _allocate(self._file.fileno(), self.size)
            self._file.write(head)
        except BaseException as error:  # after a Ctrl-C here, the caller has no writer yet to close
            self.close()
            if isinstance(error, OSError):
                raise storage_error(path, error, self.size) from error
            raise

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one tensor to its place; it must have the dtype and shape of its spec."""
        entry = self._entries[name]
        if tensor.dtype != entry.dtype or tuple(tensor.shape) != entry.shape:
            raise ValueError(
                f"{name} is {tensor.dtype} {list(tensor.shape)}; its spec says {entry.dtype} {list(entry.shape)}"
            )
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        try:
            self._file.seek(entry.start)
            self._file.write(content.data)
        except OSError as error:
            self.close()
            raise storage_error(self.path, error, self.size) from error
        self._missing.discard(name)

    def finish(self) -> str:
        """Give the shard its final name and return its sha256 in hex."""
        if self._missing:
            raise ValueError(f"{len(self._missing)} tensors were not written, such as {min(self._missing)}")
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            digest = hashlib.sha256()
            self._file.seek(0)
            while block := self._file.read(HASH_BLOCK):
                digest.update(block)
            self._file.close()
            self.partial.replace(self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            self.close()
            raise storage_error(self.path, error, self.size) from error
        return digest.hexdigest()

    def close(self) -> None:
        """Close; remove the file if it was not finished."""
        with contextlib.suppress(OSError):  # a failed flush does not matter: the file is removed anyway
            self._file.close()
        with contextlib.suppress(OSError):
            self.partial.unlink(missing_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
