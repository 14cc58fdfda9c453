"""What pages of 4 KiB cost when memory is read, and why: address translation, or prefetching that ends at a page.

Contract: compiles page_walks.c with the system's compiler. The same bytes are read from memory and from a mapped file,
in huge pages and in pages of 4 KiB: in order, in order with a prefetch for each page that translates its address ahead
of time, and page by page in random order, where prefetching ends at each page. All pages have been accessed before.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import shutil
import statistics
import subprocess
import threading
import time
from pathlib import Path

import torch
from torch import Tensor

from mixq.system.huge_pages import allocate
from tests.accept.tables import markdown
from tests.bench.page_cache import HUGE, SMALL, bring_into_cache, map_file

SOURCE = Path(__file__).with_name("page_walks.c")
NBYTES = 512 << 20
WAYS = {
    "in order": (False, 0),
    "in order, each page's address translated ahead": (False, 1),
    "pages in random order": (True, 0),
    "pages in random order, addresses translated ahead": (True, 1),
}
"""Whether the order is random, and whether a prefetch asks for each page."""


class Reader:
    """The compiled loop.

    Raises:
        OSError: there is no compiler, or it failed.
    """

    def __init__(self, folder: Path) -> None:
        library = folder / "page_walks.so"
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if compiler is None:
            raise OSError("no C compiler")
        command = [compiler, "-O2", "-march=native", "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
        made = subprocess.run(command, check=False, capture_output=True, text=True)
        if made.returncode:
            raise OSError(made.stderr)
        self._read = ctypes.CDLL(str(library)).read_pages
        self._read.restype = ctypes.c_uint64
        size, address = ctypes.c_int64, ctypes.c_void_p
        self._read.argtypes = [address, address, size, size, ctypes.c_int]

    def sum(self, memory: Tensor, order: Tensor, ask: int = 0, threads: int = 1) -> int:
        """Return the sum of the 64-bit numbers in the pages `order`, int32, of `memory`, uint8; some threads read."""
        sums = [0] * threads
        ends = [len(order) * i // threads for i in range(threads + 1)]

        def read(i: int) -> None:
            sums[i] = self._read(memory.data_ptr(), order.data_ptr(), ends[i], ends[i + 1], ask)

        workers = [threading.Thread(target=read, args=(i,)) for i in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return sum(sums) % 2**64


def table(folder: Path, threads: int, rounds: int) -> str:
    """Measure, and return GB/s as a Markdown table.

    Raises:
        OSError: there is no compiler, or it failed.
    """
    reader, memories = Reader(folder), _memories(folder)
    pages = NBYTES // mmap.PAGESIZE
    in_order = torch.arange(pages, dtype=torch.int32)
    mixed = torch.tensor(random.Random(0).sample(range(pages), pages), dtype=torch.int32)
    rows = []
    for count in sorted({1, threads}):
        for title, (is_random, ask) in WAYS.items():
            order = mixed if is_random else in_order
            rates: dict[str, list[float]] = {name: [] for name in memories}
            for _ in range(rounds):
                for name, memory in memories.items():
                    begun = time.perf_counter()
                    reader.sum(memory, order, ask, count)
                    rates[name].append(NBYTES / (time.perf_counter() - begun))
            rows.append(
                [f"{count} {'thread' if count == 1 else 'threads'}, {title}"]
                + [f"{statistics.median(each) / 1e9:.1f}" for each in rates.values()]
            )
    return markdown(["GB/s", *memories], rows)


def _memories(folder: Path) -> dict[str, Tensor]:
    """Return the same bytes in four kinds of pages."""
    content = torch.randint(256, (1 << 20,), dtype=torch.uint8).repeat(NBYTES >> 20)
    huge = allocate(NBYTES)
    pages = mmap.mmap(-1, NBYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_NOHUGEPAGE)
    small = torch.frombuffer(pages, dtype=torch.uint8)
    for memory in (huge, small):
        memory.copy_(content)
    files = {}
    for state in (HUGE, SMALL):
        path = folder / state
        path.write_bytes(memoryview(content.numpy()))
        bring_into_cache(path, state)
        files[state] = map_file(path)
    return {
        "memory, huge pages": huge,
        "memory, 4 KiB": small,
        "file, huge pages": files[HUGE],
        "file, 4 KiB": files[SMALL],
    }
