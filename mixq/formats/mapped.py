"""A safetensors file mapped into memory: tensors are views, and bytes are read when they are used.

Contract: `MappedShard.tensor` returns a view of the mapping, which lives as long as any of its tensors. The mapping is
private: writing to a tensor does not change the file. If a mapped file shrinks, the process is killed (SIGBUS), as with
every mapping; shards are therefore replaced only by rename.

The system decides which pages are in memory, but accepts advice: `ask`, `read_in`, `advise_away`, `unmap` and
`resident` take byte ranges of the file, work only on Linux (`why_no_advice`), release the interpreter's lock, and
change no content. `copy_in` replaces pages of the mapping by a copy of their bytes in huge pages, which no advice
releases.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import mmap
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from mixq.errors import DoesNotFitError, StorageError, printable
from mixq.formats.header import ShardHeader, read_header
from mixq.system.huge_block import HugeBlock, map_file

PAGE = mmap.PAGESIZE
_WILLNEED, _DONTNEED, _HUGEPAGE, _POPULATE_READ = 3, 4, 14, 22  # Linux; Python 3.11's mmap does not have the last
_SCRATCH = 1 << 20
_USUAL_READ_AHEAD = 128 << 10
_ASKED_AT_ONCE = 512 << 10
"""Most bytes per call: of more, the kernel reads only the device's read-ahead, or its largest request."""


def why_no_advice() -> str | None:
    """Return why pages cannot be read in and advised away on this system; None if they can."""
    return None if _libc() is not None else f"{sys.platform} does not report which pages of a file are in memory"


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
                # Copy-on-write rather than read-only: torch.frombuffer needs a writable buffer, and no page is
                # ever copied without a write.
                self._map = mmap.mmap(file.fileno(), self.header.file_size, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise StorageError(f"{printable(path)} cannot be mapped: {printable(error)}.") from error
        self._has_copies = False

    def tensor(self, name: str) -> Tensor:
        """Return a tensor by its exact name; KeyError if the header does not have it.

        Data that is not aligned to its dtype (possible in files of other programs) is copied.
        """
        entry = self.header.entries[name]
        if entry.nbytes == 0:
            return torch.empty(entry.shape, dtype=entry.dtype)
        if entry.start % entry.dtype.itemsize:
            aligned = torch.frombuffer(self._map, dtype=torch.uint8, count=entry.nbytes, offset=entry.start).clone()
            return aligned.view(entry.dtype).reshape(entry.shape)
        count = entry.nbytes // entry.dtype.itemsize
        return torch.frombuffer(self._map, dtype=entry.dtype, count=count, offset=entry.start).reshape(entry.shape)

    @property
    def address(self) -> int:
        """The address of the file's first byte."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    @functools.cached_property
    def read_ahead(self) -> int:
        """Bytes that the device reads around a page fault, and ahead of a sequence of them."""
        try:
            device = self.path.stat().st_dev
            text = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").read_text()
            return int(text) << 10
        except (OSError, ValueError):
            return _USUAL_READ_AHEAD

    def ask_for_huge_pages(self) -> None:
        """Ask the system to read the file into huge pages.

        Linux does so if the file system has them (XFS, ext4 from Linux 6.16 on) and the file is not in memory yet.
        """
        _call("madvise", self.address, self.header.file_size, _HUGEPAGE)

    def ask(self, start: int, end: int) -> None:
        """Start reading the pages of bytes start to end of the file, without waiting."""
        for part in range(start // PAGE * PAGE, end, _ASKED_AT_ONCE):
            _call("madvise", self.address + part, min(_ASKED_AT_ONCE, end - part), _WILLNEED)

    def read_in(self, start: int, end: int) -> None:
        """Read bytes start to end of the file into memory, and return when this is done.

        Pages that `ask` has not requested are read by faults, which also read the device's read-ahead on both sides.

        Raises:
            OSError: the disk failed, or there is no memory left.
        """
        start, end = start // PAGE * PAGE, min(-(-end // PAGE) * PAGE, self.header.file_size)
        if start >= end:
            return
        code = _call("madvise", self.address + start, end - start, _POPULATE_READ)
        if code == errno.EINVAL:  # a kernel before 5.14
            self._read_through(start, end)
        elif code:
            raise OSError(code, os.strerror(code), str(self.path))

    def _read_through(self, start: int, end: int) -> None:
        """Read through a small buffer: the pages stay in the page cache, though not yet in the mapping."""
        buffer = memoryview(bytearray(_SCRATCH))
        with self.path.open("rb", buffering=0) as file:
            file.seek(start)
            while start < end and (count := file.readinto(buffer[: min(_SCRATCH, end - start)])):
                start += count

    def advise_away(self, start: int, end: int) -> int:
        """Release the whole pages between bytes start and end from memory; return their bytes.

        They are read from the file again when they are used next; changes to them are lost.
        """
        self.unmap(start, end)  # else the page cache keeps them
        return self.forget(start, end)

    def unmap(self, start: int, end: int) -> None:
        """Take the whole pages between bytes start and end out of the mapping; the page cache may keep them."""
        start, end = -(-start // PAGE) * PAGE, end // PAGE * PAGE
        if start < end and not self._has_copies:
            _call("madvise", self.address + start, end - start, _DONTNEED)

    def forget(self, start: int, end: int) -> int:
        """Release the whole pages between bytes start and end from the page cache, unless a mapping has them.

        Returns:
            Their bytes.
        """
        start, end = -(-start // PAGE) * PAGE, end // PAGE * PAGE
        if start >= end:
            return 0
        if sys.platform == "linux":
            with contextlib.suppress(OSError), self.path.open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)
        return end - start

    def copy_in(self, start: int, end: int) -> None:
        """Replace bytes start to end of the mapping by a copy in huge pages, read from the file.

        Args:
            start, end: their addresses must be multiples of `HUGE_PAGE`.

        Raises:
            StorageError: the disk failed, or the file has become shorter; the mapping is unchanged.
            DoesNotFitError: the system refused the memory; the mapping is unchanged.
        """
        try:
            with HugeBlock(end - start) as block, self.path.open("rb", buffering=0) as file:
                done = 0
                while done < end - start:
                    count = os.preadv(file.fileno(), [block.view[done:]], start + done)
                    if count == 0:
                        raise StorageError(
                            f"{printable(self.path)} has become shorter while it was read.",
                            hint="Do not change a model folder while it is being loaded; then load it again.",
                        )
                    done += count
                self._has_copies = True
                try:
                    block.move_to(self.address + start)
                except DoesNotFitError:
                    map_file(self.address + start, end - start, file.fileno(), start)
                    raise
        except OSError as error:
            raise StorageError(f"{printable(self.path)} cannot be read: {printable(error.strerror)}.") from error

    def resident(self, start: int, end: int) -> int:
        """Return how many bytes from start to end are in memory, in whole pages."""
        start, end = start // PAGE * PAGE, min(-(-end // PAGE) * PAGE, self.header.file_size)
        if start >= end:
            return 0
        pages = ctypes.create_string_buffer(-(-(end - start) // PAGE))
        if _call("mincore", self.address + start, end - start, pages):
            return 0
        return pages.raw.count(b"\1") * PAGE


@functools.cache
def _libc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    return libc if hasattr(libc, "madvise") and hasattr(libc, "mincore") else None


def _call(name: str, address: int, nbytes: int, last: int | ctypes.Array[ctypes.c_char]) -> int:
    """Call madvise or mincore; return 0 or the error's number."""
    libc = _libc()
    if libc is None:
        return errno.ENOSYS
    failed: int = getattr(libc, name)(ctypes.c_void_p(address), ctypes.c_size_t(nbytes), last)
    return ctypes.get_errno() if failed else 0
