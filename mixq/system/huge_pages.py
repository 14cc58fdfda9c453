"""Memory for what is read at full speed: anonymous, in huge pages where the system gives them.

Contract: the tensor returned starts on a huge page and owns its memory. With pages of 4 KiB a stream of weights spends
part of its time on address translation, and a figure would measure that.
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
    """Return uint8 [nbytes], all zero; a page is taken when it is first touched.

    Raises:
        DoesNotFitError: the system refused.
    """
    length = nbytes + HUGE_PAGE
    try:
        # Without the flags it would be shared memory, for which huge pages are a setting of their own.
        private = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
        pages = mmap.mmap(-1, length, flags=private) if private else mmap.mmap(-1, length)
    except (OSError, ValueError, OverflowError) as error:
        raise DoesNotFitError(
            f"The system refused {format_size(nbytes)} of memory.", hint="Close other programs, or ask for less."
        ) from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(pages, dtype=torch.uint8)  # keeps the mapping alive
    start = -whole.data_ptr() % HUGE_PAGE
    return whole[start : start + nbytes]
