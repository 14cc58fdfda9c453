"""Anonymous memory in huge pages, where the system has them.

Contract: the tensor returned starts on a huge page and owns its memory. Reading weights from pages of 4 KiB spends part
of the time on address translation.
"""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

from mixq.config import format_size
from mixq.errors import DoesNotFitError

HUGE_PAGE = 2 << 20


def allocate(nbytes: int) -> Tensor:
    """Return uint8 [nbytes] of zeros; a page takes memory when it is first touched.

    Raises:
        DoesNotFitError: the system refused the memory.
    """
    length = nbytes + HUGE_PAGE
    try:
        # Without the flags the memory is shared; huge pages for shared memory are another setting.
        private = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
        pages = mmap.mmap(-1, length, flags=private) if private else mmap.mmap(-1, length)
    except (OSError, ValueError, OverflowError) as error:
        raise DoesNotFitError(
            f"The system refused {format_size(nbytes)} of memory.",
            hint="Close other programs, or use a smaller model or budget.",
        ) from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(pages, dtype=torch.uint8)  # keeps the mapping alive
    start = -whole.data_ptr() % HUGE_PAGE
    return whole[start : start + nbytes]
