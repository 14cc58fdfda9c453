"""The read bandwidth of the kernels' threads, which limits decode speed; measured in the same run.

Contract: `Bandwidth.best` is the highest of four probes (a plain sum, one with prefetch, one of four rows at a time,
one that fetches as the kernels' plan says) over all calls of `probe`, which the caller makes between its measurements.
The buffer is far larger than the caches, and in huge pages like synthetic weights.
"""

from __future__ import annotations

import time

from mixq.kernels import native_library
from mixq.kernels.native_kernels import NativeKernels
from mixq.system.huge_pages import allocate
from mixq.system.memory import available_memory

PROBES = (0, 1, 2, 3)
LARGEST = 1 << 30
_SHARE = 4  # at most a quarter of the free memory


class Bandwidth:
    """Read bandwidth of some kernels' threads.

    Attributes:
        best: bytes per second, 0.0 before the first probe.
        nbytes: size of the buffer.
    """

    def __init__(self, kernels: NativeKernels, *, largest: int = LARGEST) -> None:
        free = available_memory()
        self.nbytes = largest if free is None else min(largest, free // _SHARE)
        self.best = 0.0
        self._kernels = kernels
        self._data = allocate(self.nbytes)
        self._data.fill_(1)  # unwritten pages would all be mapped to one zero page, which stays in the cache

    def probe(self) -> float:
        """Read the buffer in each of the four ways and return the highest rate of this call, in bytes per second."""
        library = native_library.library()
        assert library is not None, "there are NativeKernels"
        best = 0.0
        for kind in PROBES:
            begun = time.perf_counter()
            library.mixq_read(self._kernels.context, self._data.data_ptr(), self.nbytes, kind)
            best = max(best, self.nbytes / (time.perf_counter() - begun))
        self.best = max(self.best, best)
        return best
