"""A block of anonymous memory in huge pages that can take the place of other memory, on Linux.

Contract: the block is filled first; then its pages replace those of the other memory, in one step and without a copy.
A thread that reads the other memory meanwhile gets either the old bytes or the new ones.
"""

from __future__ import annotations

import ctypes
import functools
import os
from types import TracebackType

from mixq.config import format_size
from mixq.errors import DoesNotFitError
from mixq.system.huge_pages import HUGE_PAGE

_READ_WRITE, _PRIVATE_ANONYMOUS, _PRIVATE_FIXED, _HUGEPAGE, _MAYMOVE_FIXED = 3, 0x22, 0x12, 14, 3
_FAILED = ctypes.c_void_p(-1).value


class HugeBlock:
    """Anonymous memory; freed at the end of the `with` block unless it has been moved.

    Args:
        nbytes: its size, a multiple of `HUGE_PAGE`.

    Attributes:
        view: its bytes.

    Raises:
        DoesNotFitError: the system refused the memory.
    """

    def __init__(self, nbytes: int) -> None:
        assert nbytes > 0
        assert nbytes % HUGE_PAGE == 0
        self.nbytes = nbytes
        length = nbytes + HUGE_PAGE
        start = _libc().mmap(None, length, _READ_WRITE, _PRIVATE_ANONYMOUS, -1, 0)
        if start in (None, _FAILED):
            raise _refused(nbytes)
        self._address: int | None = -(-start // HUGE_PAGE) * HUGE_PAGE
        before = self._address - start  # the rest around whole huge pages is given back
        for address, rest in ((start, before), (self._address + nbytes, HUGE_PAGE - before)):
            if rest:
                _libc().munmap(address, rest)
        _libc().madvise(self._address, nbytes, _HUGEPAGE)
        self.view = memoryview((ctypes.c_uint8 * nbytes).from_address(self._address)).cast("B")

    def move_to(self, address: int) -> None:
        """Take the place of the memory from `address` on, a multiple of `HUGE_PAGE`; `view` must not be used any more.

        Raises:
            DoesNotFitError: the system refused it; nothing may be at the address then.
        """
        assert address % HUGE_PAGE == 0
        self.view.release()
        moved = _libc().mremap(self._address, self.nbytes, self.nbytes, _MAYMOVE_FIXED, ctypes.c_void_p(address))
        if moved in (None, _FAILED):
            raise _refused(self.nbytes)
        self._address = None

    def __enter__(self) -> HugeBlock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._address is not None:
            self.view.release()
            _libc().munmap(self._address, self.nbytes)
            self._address = None


def map_file(address: int, nbytes: int, handle: int, offset: int) -> None:
    """Map a file privately at an address, instead of what is there.

    Raises:
        OSError: the system refused it.
    """
    if _libc().mmap(ctypes.c_void_p(address), nbytes, _READ_WRITE, _PRIVATE_FIXED, handle, offset) in (None, _FAILED):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _refused(nbytes: int) -> DoesNotFitError:
    reason = os.strerror(ctypes.get_errno())
    return DoesNotFitError(f"the system refused {format_size(nbytes)} of memory: {reason}")


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    size, address = ctypes.c_size_t, ctypes.c_void_p
    libc.mmap.argtypes = [address, size, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
    libc.mmap.restype = address
    libc.mremap.argtypes = [address, size, size, ctypes.c_int, address]
    libc.mremap.restype = address
    libc.munmap.argtypes = [address, size]
    libc.madvise.argtypes = [address, size, ctypes.c_int]
    return libc
