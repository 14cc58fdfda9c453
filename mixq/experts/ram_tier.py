"""Reads experts from the disk if they do not all fit into RAM, and releases others.

Contract: weights are mapped, so an expert can always be computed, at worst at the speed of page faults. `RamTier` reads
their pages in a thread, first those of experts that the router has chosen, then those of expected ones, and stays
within the budget by releasing the pages of experts that `Residents` chooses. `expect` and `use` never wait. `Residents`
remembers what was read; for used experts the tier checks what is still in memory, because the system may have evicted
pages.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mixq.config import format_size
from mixq.experts.memory_plan import RAM_MARGIN
from mixq.experts.residents import Key, Residents
from mixq.experts.spans import Span, expert_spans
from mixq.formats.folder import ModelFolder
from mixq.formats.mapped import why_no_advice
from mixq.formats.weights import Weights
from mixq.system.memory import available_memory

CHUNK = 8 << 20
"""Bytes per wait."""

REQUESTED_AHEAD = 3
"""Chunks requested in addition to the one that is waited for, since a disk is fastest with several requests. At most
these are read before a new choice of the router."""

STREAM = 2 << 20
"""With at least this read-ahead of the device, a sequence of page faults keeps the disk busy. It needs less than half
of the CPU time of requests (13 and 30 ms for 94 MB), but reads 16 MB beyond the ends, so the ends are requested
first."""

PRESENT = 0.9
"""An expert with at least this share of its pages in memory is not read again."""

SAMPLED_EVERY = 1 << 20
"""Bytes between the pages that are checked."""


@dataclass(slots=True)
class RamCounters:
    """Counters of the tier."""

    requests: int = 0  # experts that layers used, once per forward pass and layer
    hits: int = 0  # of them, those that were in memory
    late: int = 0  # of them, those that were partly in memory
    taken_away: int = 0  # of them, those that had been read and that the system had evicted
    bytes_ahead: int = 0  # read because they were expected
    bytes_demanded: int = 0  # read after the router had chosen them. Kernels may read some themselves first.
    bytes_advised_away: int = 0  # released to stay within the budget


class RamTier:
    """The experts of a folder that do not all fit into memory; created by `open`.

    Attributes:
        layers: of the model.
        budget: bytes that the experts may take.
        counters: see `RamCounters`.
        failure: why reading has stopped, so that page faults do the work; else None.
    """

    def __init__(self, spans: Sequence[Sequence[Sequence[Span]]], budget: int) -> None:
        self.layers = len(spans)
        self.budget = budget
        self.counters = RamCounters()
        self.failure: str | None = None
        self._spans = spans
        self._residents = Residents(len(spans), budget)
        self._left: dict[Key, deque[Span]] = {}  # the unread rest of experts that are partly in memory
        self._demanded: deque[Key] = deque()
        self._missing: set[Key] = set()  # demanded, and not in memory yet
        self._unchecked: deque[Key] = deque()  # used, and read before: the system may have evicted them
        self._expected: dict[Key, None] = {}  # in the order of arrival
        self._change = threading.Condition()
        self._busy = False
        self._closed = False
        self._take_stock()
        self._thread = threading.Thread(target=self._work, name="mixq RAM tier", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls, folder: Weights, budget: int | None = None, *, reserved: int = 0, trunk_in_ram: bool = True
    ) -> RamTier | None:
        """Return the tier of a model; None if it is not needed (`why_not` returns the reason).

        Args:
            budget: bytes of memory for all weights; None: the free memory minus a margin.
            reserved: bytes for other things, such as the KV cache; used if budget is None.
            trunk_in_ram: whether the other weights are in this memory too, not in an accelerator's.
        """
        if cls.why_not(folder, budget, reserved=reserved, trunk_in_ram=trunk_in_ram) is not None:
            return None
        assert isinstance(folder, ModelFolder)
        spans = expert_spans(folder)
        return cls(spans, _experts_share(folder, spans, budget, reserved, trunk_in_ram))

    @classmethod
    def why_not(
        cls, folder: Weights, budget: int | None = None, *, reserved: int = 0, trunk_in_ram: bool = True
    ) -> str | None:
        """Return the reason if `open` returns None; same arguments."""
        if not folder.config.is_moe:
            return "the model has no experts"
        if not isinstance(folder, ModelFolder):
            return "the weights are in memory already"
        if (reason := why_no_advice()) is not None:
            return reason
        spans = expert_spans(folder)
        share = _experts_share(folder, spans, budget, reserved, trunk_in_ram)
        needed = _nbytes(spans)
        if needed <= share:
            return f"the experts ({format_size(needed)}) fit into memory ({format_size(share)} for them)"
        return None

    def __str__(self) -> str:
        experts = sum(len(layer) for layer in self._spans)
        fitting = int(experts * self.budget / _nbytes(self._spans))
        return f"RAM holds {fitting} of {experts} experts; the others are read from the disk when they are needed."

    def expect(self, layer: int, experts: Iterable[int]) -> None:
        """Read these experts, which the layer will probably use next, when nothing is more urgent."""
        keys = [(layer, expert) for expert in experts]
        with self._change:
            self._residents.expect(layer, (expert for _, expert in keys))
            wanted = [key for key in keys if not self._is_present(key) and key not in self._demanded]
            self._expected |= dict.fromkeys(wanted)
            self._change.notify_all()

    def use(self, layer: int, experts: Iterable[int]) -> None:
        """Read the missing parts of these experts first; they will be computed now."""
        keys = [(layer, expert) for expert in dict.fromkeys(experts)]
        with self._change:
            for key in self._residents.use(layer, (expert for _, expert in keys)):  # expected, and not used
                self._expected.pop(key, None)
            self._demanded.clear()  # of an earlier layer, which is finished
            self._missing.clear()
            self._unchecked.clear()
            for key in keys:
                self._expected.pop(key, None)
                present = self._is_present(key)
                self.counters.requests += 1
                self.counters.hits += present
                self.counters.late += not present and key in self._residents
                (self._unchecked if present else self._demanded).append(key)
            self._missing |= set(self._demanded)
            self._change.notify_all()

    def wait(self) -> None:
        """Wait until the experts of the last `use` are in memory.

        Kernels that start earlier would compete with the tier for the disk, with faults that read more than needed.
        """
        with self._change:
            self._change.wait_for(lambda: self._closed or not self._missing)

    def copied(self, layer: int, expert: int) -> None:
        """Release an expert's pages after they have been copied elsewhere, unless it is a resident."""
        key = layer, expert
        with self._change:
            belongs = key in self._residents or key in self._left or key in self._demanded
        if not belongs:
            self._advise_away(key)

    def give_back_others(self) -> None:
        """Release the pages of experts that are not residents."""
        for layer, experts in enumerate(self._spans):
            for expert in range(len(experts)):
                self.copied(layer, expert)

    def drain(self) -> None:
        """Wait until all demanded and expected experts have been read."""
        with self._change:
            self._change.wait_for(lambda: self._closed or not (self._busy or self._has_work()))

    def close(self) -> None:
        """Stop reading. Pages stay in memory."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        self._thread.join()

    # The thread

    def _work(self) -> None:
        try:
            while (job := self._next()) is not None:
                self._read(*job)
        except OSError as error:  # the kernels raise it too, if it matters
            with self._change:
                self.failure = f"reading experts from the disk has stopped: {error.strerror or error}"
                self._closed = True
                self._busy = False
                self._change.notify_all()

    def _next(self) -> tuple[Key, bool] | None:
        """Wait for work; return the most urgent expert to read and whether it is demanded, None at the end."""
        while True:
            with self._change:
                self._busy = False
                self._change.notify_all()
                self._change.wait_for(lambda: self._closed or self._has_work())
                if self._closed:
                    return None
                self._busy = True
                if self._demanded or not self._unchecked:
                    demanded = bool(self._demanded)
                    key = self._demanded.popleft() if demanded else next(iter(self._expected))
                    self._expected.pop(key, None)
                    if not self._is_present(key):
                        self._left.setdefault(key, self._all_of(key))
                        return key, demanded
                    self._missing.discard(key)
                    continue
                key = self._unchecked.popleft()
            self._check_present(key)

    def _check_present(self, key: Key) -> None:
        """Check whether an expert that was read is still in memory; demand it if it is not."""
        if self._share_present(key) >= PRESENT:
            return
        with self._change:
            if self._is_present(key):
                self.counters.hits -= 1
                self.counters.taken_away += 1
                self._residents.remove(key)
                self._demanded.append(key)

    def _read(self, key: Key, demanded: bool) -> None:
        """Read the rest of an expert; an expected one is postponed when another is demanded."""
        beginning = True
        requested = 0  # chunks already requested from the disk
        while True:
            with self._change:
                left = self._left.get(key)
                if self._closed or left is None:
                    return
                if not demanded and self._demanded:
                    if key not in self._demanded:
                        self._expected = {key: None, **self._expected}
                    return
                leaving = self._residents.admit(key, left[0].nbytes, demanded=demanded)
                if leaving is None:
                    if key not in self._residents:
                        del self._left[key]
                    return
                for other in leaving:
                    self._left.pop(other, None)
                begin = list(left)[requested : 1 + (REQUESTED_AHEAD if demanded else 1)]
                span = left.popleft()
            for other in leaving:
                self._advise_away(other)
            if beginning:
                self._request_ends(key)
            beginning = False
            for chunk in begin:
                if chunk.shard.read_ahead < STREAM:
                    chunk.shard.ask(chunk.start, chunk.end)
            requested += len(begin) - 1
            span.shard.read_in(span.start, span.end)
            with self._change:
                if demanded:
                    self.counters.bytes_demanded += span.nbytes
                else:
                    self.counters.bytes_ahead += span.nbytes
                if not left:
                    self._left.pop(key, None)
                    self._missing.discard(key)
                    self._change.notify_all()
                    return

    def _request_ends(self, key: Key) -> None:
        """Request the bytes that a sequence of faults would read beyond the ends; it stops when it finds them in
        memory."""
        for span in self._spans[key[0]][key[1]]:
            reach = span.shard.read_ahead
            if reach >= STREAM:
                span.shard.ask(max(span.start, span.end - 2 * reach), span.end)
                span.shard.ask(span.start, min(span.start + reach, span.end - 2 * reach))

    def _all_of(self, key: Key) -> deque[Span]:
        """Return an expert's bytes in the pieces in which they are read."""
        return deque(
            Span(span.shard, start, min(start + CHUNK, span.end))
            for span in self._spans[key[0]][key[1]]
            for start in range(span.start, span.end, CHUNK)
        )

    def _advise_away(self, key: Key) -> None:
        nbytes = sum(span.shard.advise_away(span.start, span.end) for span in self._spans[key[0]][key[1]])
        with self._change:
            self.counters.bytes_advised_away += nbytes

    def _take_stock(self) -> None:
        """Add experts that are already in memory; release those beyond the budget."""
        for layer, experts in enumerate(self._spans):
            for expert in range(len(experts)):
                key = layer, expert
                share = self._share_present(key)
                if share >= PRESENT and self._residents.taken + self._nbytes(key) <= self.budget:
                    self._residents.admit(key, self._nbytes(key), demanded=False)
                elif share:
                    self._advise_away(key)

    def _share_present(self, key: Key) -> float:
        """Return an expert's share in memory by a sample of its pages (checking all takes milliseconds)."""
        sample = [
            span.shard.resident(place, place + 1) > 0
            for span in self._spans[key[0]][key[1]]
            for place in range(span.start + min(SAMPLED_EVERY, span.nbytes) // 2, span.end, SAMPLED_EVERY)
        ]
        return sum(sample) / len(sample)

    def _nbytes(self, key: Key) -> int:
        return sum(span.nbytes for span in self._spans[key[0]][key[1]])

    def _has_work(self) -> bool:
        return bool(self._demanded or self._expected or self._unchecked)

    def _is_present(self, key: Key) -> bool:
        return key in self._residents and key not in self._left


def _nbytes(spans: Sequence[Sequence[Sequence[Span]]]) -> int:
    return sum(span.nbytes for layer in spans for expert in layer for span in expert)


def _experts_share(
    folder: ModelFolder,
    spans: Sequence[Sequence[Sequence[Span]]],
    budget: int | None,
    reserved: int,
    trunk_in_ram: bool,
) -> int:
    """Return the bytes for experts; at least those of a token in one layer."""
    if budget is None:
        free = available_memory()
        if free is None:
            return _nbytes(spans)
        budget = int(free * (1 - RAM_MARGIN)) - reserved
    share = budget - (folder.nbytes - _nbytes(spans) if trunk_in_ram else 0)
    active = folder.config.num_experts_per_tok
    least = max(active * max(sum(span.nbytes for span in expert) for expert in layer) for layer in spans)
    return max(share, least)
