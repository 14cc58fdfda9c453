"""Brings files into the page cache in huge pages or in pages of 4 KiB. Linux."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import torch

HUGE, SMALL = "huge", "4k"
STATES = (HUGE, SMALL)
"""In huge pages, as far as the file system has them; in pages of 4 KiB."""

_PIECE = 1 << 20


def bring_into_cache(path: Path, state: str) -> None:
    """Read a file into the page cache; nothing may have mapped it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        if state == HUGE:
            map_file(path)
            return
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead, so no large pages
        buffer = bytearray(_PIECE)
        while os.readv(handle, [buffer]):
            pass
    finally:
        os.close(handle)


def map_file(path: Path) -> torch.Tensor:
    """Return a file's bytes, mapped, all of them in memory, in huge pages if it was not in memory before."""
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    pages.madvise(mmap.MADV_HUGEPAGE)
    content = torch.frombuffer(pages, dtype=torch.uint8)
    content[:: mmap.PAGESIZE].sum()
    return content
