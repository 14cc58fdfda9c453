"""Brings the weights that the CPU reads into huge pages, before the first token.

Contract: `into_huge_pages` maps each shard in huge pages if its file system has them, else copies it into anonymous
huge pages if the memory is enough, else leaves it as it is: mapped in pages of 4 KiB. The weights do not change.
`Caches` decides which files the page cache has to give back for that; it does not know how much memory is free.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from types import TracebackType

from mixq.config import format_size
from mixq.errors import DoesNotFitError, StorageError, printable
from mixq.formats.copied import CopiedShard, copy_part
from mixq.formats.folder import ModelFolder
from mixq.formats.mapped import MappedShard
from mixq.system import huge_pages
from mixq.system.memory import free_memory

SMALL = 256 << 20
"""Bytes of a model that stays mapped: a token reads so little of it that huge pages gain nothing."""

ENOUGH = 0.9
"""Share of a shard in huge pages that is enough: pages of 4 KiB are read at 0.75 times the speed, so the rest costs at
most 2.5 %."""

LEAST = 16 << 20
"""Bytes of a shard that is worth the look at its pages."""

SAMPLE = 8 << 20
"""Bytes that show whether a file can be mapped in huge pages."""

PIECE = 256 << 20
"""Bytes between two looks at the free memory."""

PART = 16 << 20
"""Bytes that a thread reads at once; Ctrl-C waits for them."""


@dataclass(frozen=True, slots=True)
class HostWeights:
    """The weights that the CPU reads."""

    folder: ModelFolder
    mapped: int = 0  # bytes of shards that are mapped in huge pages
    copied: int = 0  # bytes of shards that were copied into anonymous huge pages
    reason: str | None = (
        None  # why other shards are in pages of 4 KiB; None if there are none, or if the model is small
    )

    def __str__(self) -> str:
        if self.reason is None and not self.mapped and not self.copied:
            return "mapped from the disk, read as they are used"
        sizes = {"mapped in huge pages": self.mapped, "copied into huge pages": self.copied}
        rest = self.folder.nbytes - self.mapped - self.copied
        if self.reason is not None:
            sizes["mapped in pages of 4 KiB"] = rest
        parts = {what: nbytes for what, nbytes in sizes.items() if nbytes > 0}
        if len(parts) == 1:
            return next(iter(parts))
        return ", ".join(f"{format_size(nbytes)} {what}" for what, nbytes in parts.items())

    def note(self) -> str | None:
        """Return a sentence for the user if weights are in pages of 4 KiB."""
        return None if self.reason is None else f"Decoding is slower, with weights in pages of 4 KiB: {self.reason}."


class Caches:
    """Decides what the page cache gives back while a model is copied.

    The page cache keeps the files as long as there is free memory, so that the next start need not read the disk. When
    less than twice the next piece is free, pieces that have been copied are given back, the first copied first: so a
    copy needs the memory of the model and of about one piece, and evicts no other program's files.
    """

    def __init__(self) -> None:
        self._copied: deque[tuple[MappedShard, int, int]] = deque()

    def add(self, shard: MappedShard, start: int, end: int) -> None:
        """Note that bytes start to end of a file have been copied."""
        self._copied.append((shard, start, end))

    def give_back(self, wanted: int, free: Callable[[], int | None]) -> None:
        """Give back copied pieces until there is room to read and copy `wanted` bytes, or none is left.

        Args:
            free: returns the free bytes; None if they are not known, and nothing is given back.
        """
        while self._copied and (left := free()) is not None and left < 2 * wanted:
            shard, start, end = self._copied.popleft()
            shard.advise_away(start, end)


def into_huge_pages(
    folder: ModelFolder,
    *,
    no_copies: str | None = None,
    threads: int = 1,
    progress: Callable[[float], None] = lambda share: None,
) -> HostWeights:
    """Read a folder whose weights fit into memory.

    Args:
        folder: its tensors must not be in use yet.
        no_copies: why no weights may be copied; None if there is memory for all.
        threads: that read.
        progress: called with the share of the bytes done.

    Raises:
        StorageError: the disk failed.
    """
    with _Reading(folder, threads, progress) as reading:
        copies: dict[MappedShard, CopiedShard] = {}
        mapped = 0
        for shard in folder.mapped:
            if shard.header.file_size < LEAST or reading.map_huge(shard):
                mapped += shard.header.file_size
            elif no_copies is None:
                copied, no_copies = reading.copy(shard)
                if copied is not None:
                    copies[shard] = copied
            reading.done(shard)
    return _result(folder, mapped, copies, no_copies)


def _result(
    folder: ModelFolder, mapped: int, copies: Mapping[MappedShard, CopiedShard], no_copies: str | None
) -> HostWeights:
    copied = sum(shard.header.file_size for shard in copies)
    complete = mapped + copied == sum(shard.header.file_size for shard in folder.mapped)
    return HostWeights(
        folder.with_copies(copies) if copies else folder,
        mapped=mapped,
        copied=copied,
        reason=None if complete else no_copies,
    )


class _Reading:
    """Reads shards in threads. After an error or Ctrl-C no thread reads any more."""

    def __init__(self, folder: ModelFolder, threads: int, progress: Callable[[float], None]) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="mixq loading")
        self._caches = Caches()
        self._progress = progress
        self._total = sum(shard.header.file_size for shard in folder.mapped)
        self._finished = 0  # bytes of finished shards

    def __enter__(self) -> _Reading:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()

    def map_huge(self, shard: MappedShard) -> bool:
        """Read a shard into huge pages of the page cache; return whether enough of it is in them."""
        size = shard.header.file_size

        def read(start: int, end: int) -> None:
            try:
                shard.read_in(start, end)
            except OSError as error:
                raise StorageError(f"{printable(shard.path)} cannot be read: {printable(error.strerror)}.") from error

        shard.ask_for_huge_pages()
        middle = size // 2 // huge_pages.HUGE_PAGE * huge_pages.HUGE_PAGE  # opening the file has read its beginning
        read(middle, min(size, middle + SAMPLE))
        if _is_huge(shard):
            self._each_part(shard, read)
            if _is_huge(shard):
                return True
        shard.unmap(0, size)
        return False

    def copy(self, shard: MappedShard) -> tuple[CopiedShard | None, str | None]:
        """Return a copy of a shard in huge pages, or the reason why there is none."""
        if huge_pages.are_off():
            return None, "the system's transparent huge pages are off"
        try:
            memory = huge_pages.allocate(shard.header.file_size)
        except DoesNotFitError as error:
            return None, error.message.rstrip(".")
        with shard.path.open("rb", buffering=0) as file:

            def read(start: int, end: int) -> None:
                copy_part(shard.path, file.fileno(), memory, start, end)

            self._each_part(shard, read, caches=self._caches)
        if huge_pages.share_in_huge_pages(memory.data_ptr(), memory.nbytes) < ENOUGH / 2:
            return None, "the system has no huge pages left"
        return CopiedShard(shard.path, shard.header, memory), None

    def done(self, shard: MappedShard) -> None:
        """Count a shard as finished."""
        self._finished += shard.header.file_size
        self._progress(self._finished / self._total)

    def _each_part(self, shard: MappedShard, work: Callable[[int, int], None], *, caches: Caches | None = None) -> None:
        """Call `work` with the first and last byte of each part of a shard, in several threads."""
        size = shard.header.file_size
        for first in range(0, size, PIECE):
            last = min(first + PIECE, size)
            if caches is not None:
                caches.give_back(last - first, free_memory)
            parts = [(start, min(start + PART, last)) for start in range(first, last, PART)]
            futures = [self._pool.submit(work, *part) for part in parts]
            try:
                for future in futures:
                    future.result()
            finally:
                for future in futures:
                    future.cancel()
                wait(futures)
            if caches is not None:
                caches.add(shard, first, last)
            self._progress((self._finished + last) / self._total)


def _is_huge(shard: MappedShard) -> bool:
    return huge_pages.share_in_huge_pages(shard.address, shard.header.file_size) >= ENOUGH
