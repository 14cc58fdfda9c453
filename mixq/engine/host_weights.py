"""Brings the weights that the CPU reads into huge pages, before the first token.

Contract: `into_huge_pages` reads each shard into huge pages of the page cache if its file system has them. What is
still in pages of 4 KiB it copies into anonymous huge pages, if the memory is enough; else it stays as it is. Tensors
keep their addresses and their bytes. After an error or Ctrl-C no thread reads any more.

Pages of 4 KiB are read at 0.75 to 1 times the speed of huge pages, because more addresses are translated
(`tests/bench/folder.py`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType

from mixq.config import format_size
from mixq.errors import DoesNotFitError, StorageError, printable
from mixq.formats.folder import ModelFolder
from mixq.formats.mapped import MappedShard
from mixq.system import huge_pages
from mixq.system.huge_pages import HUGE_PAGE
from mixq.system.memory import free_memory

SMALL = 256 << 20
"""Bytes of a model that stays mapped: a token reads so little of it that huge pages gain nothing."""

ENOUGH = 0.9
"""Share in huge pages that is enough: the rest, read at 0.75 times the speed or more, costs at most 3 %."""

FEW = 0.02
"""Share of a model that is not worth a mention."""

SAMPLE = 8 << 20
"""Bytes that show whether a file can be mapped in huge pages."""

PART = 16 << 20
"""Bytes that a thread reads at once; Ctrl-C waits for them. A multiple of `HUGE_PAGE`."""

AT_ONCE = 16
"""Parts between two looks at the free memory."""

Part = tuple[int, int]
"""First byte of a shard, and the byte after the last."""


@dataclass(frozen=True, slots=True)
class HostWeights:
    """Bytes of a model's shards, by how they are in memory."""

    total: int
    mapped: int = 0  # mapped in huge pages
    copied: int = 0  # copied into anonymous huge pages
    reason: str | None = None  # why others are in pages of 4 KiB; None if these are few, or the model is small

    def __str__(self) -> str:
        if not self.mapped and not self.copied:
            small = "mapped in pages of 4 KiB" if self.reason is not None else "mapped from the disk"
            return f"{small}, read as they are used"
        sizes = {"mapped in huge pages": self.mapped, "copied into huge pages": self.copied}
        if self.reason is not None:
            sizes["mapped in pages of 4 KiB"] = self.total - self.mapped - self.copied
        sizes = {how: nbytes for how, nbytes in sizes.items() if nbytes >= FEW * self.total} or sizes
        if len(sizes) == 1:
            return next(iter(sizes))
        return ", ".join(f"{format_size(nbytes)} {how}" for how, nbytes in sizes.items())

    def note(self) -> str | None:
        """Return a sentence for the user if more than a few weights are in pages of 4 KiB."""
        return None if self.reason is None else f"Decoding is slower, with weights in pages of 4 KiB: {self.reason}."


class Caches:
    """Decides what the page cache gives back while parts of a model are copied.

    The page cache keeps the files as long as there is free memory, so that the next start need not read the disk. When
    less than twice the next parts are free, parts that have been copied are given back, the first copied first: so the
    copies need the memory of the model and little more, and evict no other program's files.
    """

    def __init__(self) -> None:
        self._copied: deque[tuple[MappedShard, Part]] = deque()

    def add(self, shard: MappedShard, part: Part) -> None:
        """Note that bytes of a file have been copied."""
        self._copied.append((shard, part))

    def give_back(self, wanted: int, free: Callable[[], int | None]) -> None:
        """Give back copied parts until there is room to read and copy `wanted` bytes, or none is left.

        Args:
            free: returns the free bytes; None if they are not known, and nothing is given back.
        """
        while self._copied and (left := free()) is not None and left < 2 * wanted:
            shard, part = self._copied.popleft()
            shard.forget(*part)


def into_huge_pages(
    folder: ModelFolder,
    *,
    no_copies: str | None = None,
    threads: int = 1,
    progress: Callable[[float], None] = lambda share: None,
) -> HostWeights:
    """Read a folder whose weights fit into memory.

    Args:
        no_copies: why no weights may be copied; None if there is memory for all.
        threads: that read.
        progress: called with the share of the bytes done.

    Raises:
        StorageError: the disk failed.
    """
    total = sum(shard.header.file_size for shard in folder.mapped)
    mapped = copied = done = 0
    told = 0.0
    with _Reading(threads) as reading:
        for shard in folder.mapped:
            size = shard.header.file_size

            def count(share: float, done: int = done, size: int = size) -> None:
                nonlocal told
                told = max(told, (done + share * size) / total)  # what is read and then copied counts once
                progress(told)

            huge = reading.into_page_cache(shard, count)
            mapped += sum(end - start for start, end in huge)
            if no_copies is None:
                nbytes, no_copies = reading.copy(shard, _between(shard, huge), count)
                copied += nbytes
            count(1.0)
            done += size
    few = mapped + copied >= ENOUGH * total
    return HostWeights(total, mapped=mapped, copied=copied, reason=None if few else no_copies)


class _Reading:
    """Reads shards in threads."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="mixq loading")
        self._caches = Caches()

    def __enter__(self) -> _Reading:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def into_page_cache(self, shard: MappedShard, count: Callable[[float], None]) -> list[Part]:
        """Read a shard into the page cache, if that gives huge pages; return the parts that are in them."""

        def read(start: int, end: int) -> None:
            try:
                shard.read_in(start, end)
            except OSError as error:
                raise StorageError(f"{printable(shard.path)} cannot be read: {printable(error.strerror)}.") from error

        size = shard.header.file_size
        shard.ask_for_huge_pages()
        middle = size // 2 // HUGE_PAGE * HUGE_PAGE  # opening the file has read its beginning
        read(middle, min(size, middle + SAMPLE))
        if _in_huge_pages(shard):
            parts = [(start, min(start + PART, size)) for start in range(0, size, PART)]
            for done, _ in self._in_groups(read, parts):
                count(done / size)
        return _in_huge_pages(shard)

    def copy(self, shard: MappedShard, parts: Sequence[Part], count: Callable[[float], None]) -> tuple[int, str | None]:
        """Copy parts of a shard into huge pages; return the bytes copied, and why others were not."""
        if parts and huge_pages.are_off():
            return 0, "the system's transparent huge pages are off"
        copied = 0

        def prepare(group: Sequence[Part]) -> None:
            self._caches.give_back(sum(end - start for start, end in group), free_memory)

        try:
            for done, (start, end) in self._in_groups(shard.copy_in, parts, prepare):
                if not _is_huge(shard.address + start, end - start):
                    return copied, "the system has no huge pages left"
                copied = done
                count(done / shard.header.file_size)
        except DoesNotFitError as error:
            return copied, error.message
        for part in parts:
            self._caches.add(shard, part)
        return copied, None

    def _in_groups(
        self,
        work: Callable[[int, int], None],
        parts: Sequence[Part],
        prepare: Callable[[Sequence[Part]], None] = lambda group: None,
    ) -> Iterator[tuple[int, Part]]:
        """Call `work` for each part, some at once; yield the bytes done, and the range of the last ones."""
        done = 0
        for first in range(0, len(parts), AT_ONCE):
            group = parts[first : first + AT_ONCE]
            prepare(group)
            futures = [self._pool.submit(work, *part) for part in group]
            try:
                for future in futures:
                    future.result()
            finally:
                for future in futures:
                    future.cancel()
                wait(futures)
            done += sum(end - start for start, end in group)
            yield done, (group[0][0], group[-1][1])


def _in_huge_pages(shard: MappedShard) -> list[Part]:
    """Return the parts of a shard that are in huge pages now."""
    address, size = shard.address, shard.header.file_size
    ranges = huge_pages.ranges_in_huge_pages(address, size)
    if ranges is None:  # an older kernel tells their sum only
        return [(0, size)] if huge_pages.share_in_huge_pages(address, size) >= ENOUGH else []
    return [(max(start - address, 0), min(end - address, size)) for start, end in ranges]


def _is_huge(address: int, nbytes: int) -> bool:
    """Return whether most of the memory from `address` on is in huge pages."""
    ranges = huge_pages.ranges_in_huge_pages(address, nbytes)
    if ranges is None:
        return huge_pages.share_in_huge_pages(address, nbytes) > 0.5
    return 2 * sum(end - start for start, end in ranges) > nbytes


def _between(shard: MappedShard, huge: Sequence[Part]) -> list[Part]:
    """Return the other parts of a shard, as far as they are whole huge pages; none is larger than `PART`."""
    ahead = -shard.address % HUGE_PAGE
    found: list[Part] = []
    begin = 0
    for start, end in [*huge, (shard.header.file_size, shard.header.file_size)]:
        first = begin + (ahead - begin) % HUGE_PAGE
        last = start - (start - ahead) % HUGE_PAGE
        found += [(part, min(part + PART, last)) for part in range(first, last, PART)]
        begin = end
    return found
