"""Anonymous memory in huge pages, if the system has them.

Contract: the tensor returned starts on a huge page and owns its memory. With pages of 4 KiB, reading
weights spends part of the time on address translation.
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
