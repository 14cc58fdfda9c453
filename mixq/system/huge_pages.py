"""Huge pages: memory in them, and whether memory or a mapped file is in them.

Contract: `allocate` returns a tensor that starts on a huge page and owns its memory. With pages of 4 KiB, reading
weights spends part of the time on address translation. The system decides what is in huge pages; `share_in_huge_pages`
reads what it decided, on Linux.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from mixq.config import format_size
from mixq.errors import DoesNotFitError
from mixq.system.memory import text_of

if sys.platform == "linux":
    import fcntl

HUGE_PAGE = 2 << 20

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TRIED = 4 * HUGE_PAGE
_PAGES = Path("/proc/self/pagemap")
_SCAN = 3 << 30 | 96 << 16 | ord("f") << 8 | 16  # PAGEMAP_SCAN
_HUGE = 1 << 6  # PAGE_IS_HUGE
_RANGES = 1024  # for each call
_MAPPINGS = Path("/proc/self/smaps")
_IN_HUGE_PAGES = ("AnonHugePages:", "FilePmdMapped:", "ShmemPmdMapped:")


def allocate(nbytes: int) -> Tensor:
    """Return zeros, uint8 [nbytes]; a page uses memory from its first access on.

    Raises:
        DoesNotFitError: the system refused the memory.
    """
    length = nbytes + HUGE_PAGE
    try:
        # Without these flags the memory is shared, and another setting controls huge pages for shared memory.
        private = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
        pages = mmap.mmap(-1, length, flags=private) if private else mmap.mmap(-1, length)
    except (OSError, ValueError, OverflowError) as error:
        raise DoesNotFitError(
            f"{format_size(nbytes)} of memory could not be allocated.",
            hint="Close other programs, or use a smaller model or budget.",
        ) from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(pages, dtype=torch.uint8)  # keeps the mapping alive
    start = -whole.data_ptr() % HUGE_PAGE
    return whole[start : start + nbytes]


def are_off() -> bool:
    """Return whether the system gives no memory in huge pages to programs that ask for it."""
    return "[never]" in text_of(SETTING)


def files_can_be_in_them(folder: Path) -> bool | None:
    """Return whether files in a folder can be mapped in huge pages; None if that cannot be found out.

    Writes a file without a name, and reads it from the disk.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE") or not _MAPPINGS.exists():
        return None
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(_TRIED))
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            pages = mmap.mmap(file.fileno(), _TRIED, access=mmap.ACCESS_COPY)
            pages.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        return None
    content = torch.frombuffer(pages, dtype=torch.uint8)
    content.count_nonzero()
    return share_in_huge_pages(content.data_ptr(), content.nbytes) > 0


def ranges_in_huge_pages(address: int, nbytes: int) -> list[tuple[int, int]] | None:
    """Return first and last address of each range of memory in huge pages, in order; None before Linux 6.7.

    Source: the kernel's Documentation/admin-guide/mm/pagemap.rst.
    """
    if sys.platform != "linux":
        return None
    found: list[tuple[int, int]] = []
    ranges = (ctypes.c_uint64 * (3 * _RANGES))()  # start, end and kinds of each
    start, end = address, address + -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    try:
        with _PAGES.open("rb", buffering=0) as pages:
            while start < end:
                kinds = (0, _HUGE, 0, _HUGE)  # inverted, required, any of, returned
                asked = bytearray(
                    struct.pack("12Q", 96, 0, start, end, 0, ctypes.addressof(ranges), _RANGES, 0, *kinds)
                )
                count = fcntl.ioctl(pages, _SCAN, asked)
                found += [(ranges[3 * i], ranges[3 * i + 1]) for i in range(count)]
                start = struct.unpack("12Q", asked)[4]
    except OSError:
        return None
    return found


def share_in_huge_pages(address: int, nbytes: int) -> float:
    """Return the share of the memory from `address` on that is in huge pages; 0.0 if the system does not report it.

    Pages that are not in memory are not counted. The system reports whole mappings: memory next to it that was
    allocated in the same way is counted too.
    """
    resident = huge = 0
    inside = False
    for line in text_of(_MAPPINGS).splitlines():
        if not line[:1].isupper():  # 7f4f3ec00000-7f4f6d148000 rw-p ...; the fields of a mapping follow: Rss: 9000 kB
            start, _, end = line.partition(" ")[0].partition("-")
            inside = int(start, 16) < address + nbytes and address < int(end, 16)
        elif inside and line.startswith("Rss:"):
            resident += int(line.split()[1])
        elif inside and line.startswith(_IN_HUGE_PAGES):
            huge += int(line.split()[1])
    return huge / resident if resident else 0.0
