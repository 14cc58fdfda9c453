"""Experts that do not all fit into memory: read ahead from the disk, and advised away when others need the room.

Contract: weights are mapped, so whatever happens here an expert can be computed, at worst at the speed of page faults.
`RamTier` has their pages in memory in time, by a thread that reads first those that the router has chosen, then those
that are expected; and it keeps them within the budget by giving back the pages of those that `Residents` names.
`expect` and `use` never wait. What is in memory is presumed; of experts that are used the system is asked, because it
may have taken pages away. Nothing is computed here.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mixq.config import ModelConfig, format_size
from mixq.experts.residents import Key, Residents
from mixq.formats.folder import ModelFolder
from mixq.formats.mapped import MappedShard, why_no_advice
from mixq.formats.packed import PackedLinear
from mixq.formats.weights import Weights
from mixq.memory import available_memory

MARGIN = 0.1
"""Of the memory that is free, what is left to the system where no budget is given."""

CHUNK = 8 << 20
"""Bytes that are waited for at once."""

ASKED_AHEAD = 3
"""Chunks asked of the disk beyond the one that is waited for: a disk is fastest with several requests. A choice of the
router finds no more than these in front of it."""

THERE = 0.9
"""Share of an expert's pages from which on it is not read again."""

SAMPLED_EVERY = 1 << 20
"""Bytes between the pages that are looked at."""


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes start to end of a mapped file."""

    shard: MappedShard
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start


@dataclass(slots=True)
class RamCounters:
    """What the tier has done.

    Attributes:
        requests: experts that layers used, once for each pass and layer.
        hits: of them, those that were in memory.
        late: of them, those of which some bytes were.
        taken_away: of them, those that were presumed there and that the system had taken away.
        bytes_ahead: read because they were expected.
        bytes_demanded: read after the router had chosen them. The kernels read too, where they come first.
        bytes_advised_away: given back to stay within the budget.
    """

    requests: int = 0
    hits: int = 0
    late: int = 0
    taken_away: int = 0
    bytes_ahead: int = 0
    bytes_demanded: int = 0
    bytes_advised_away: int = 0


class RamTier:
    """The experts of a folder whose memory is smaller than they are; made by `open`.

    Attributes:
        layers: of the model.
        budget: bytes that the experts may take.
        counters: what was done.
        failure: why nothing is read ahead any more, None while it is; page faults do the work then.
    """

    def __init__(self, spans: Sequence[Sequence[Sequence[Span]]], budget: int) -> None:
        sizes = [[sum(span.nbytes for span in expert) for expert in layer] for layer in spans]
        self.layers = len(spans)
        self.budget = budget
        self.counters = RamCounters()
        self.failure: str | None = None
        self._spans = spans
        self._residents = Residents(sizes, budget)
        self._left: dict[Key, deque[Span]] = {}  # what is still to be read of those that are not there in full
        self._demanded: deque[Key] = deque()
        self._missing: set[Key] = set()  # demanded, and not there yet
        self._doubted: deque[Key] = deque()  # used and presumed there
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
        """Return the tier of a model, or None where it has nothing to do (`why_not` says why).

        Args:
            budget: bytes of memory for all weights; None takes what is free, less a margin.
            reserved: bytes that will be taken for something else, such as the KV cache; counted where budget is None.
            trunk_in_ram: whether the other weights are used from memory too, and not from an accelerator's.
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
        """Return the reason for which `open` gives None, or None; arguments as there."""
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
        """These experts are likely to be used when the layer comes next: they are read when nothing is more urgent."""
        keys = [(layer, expert) for expert in experts]
        with self._change:
            self._residents.expect(layer, (expert for _, expert in keys))
            wanted = [key for key in keys if not self._is_there(key) and key not in self._demanded]
            self._expected |= dict.fromkeys(wanted)
            self._change.notify_all()

    def use(self, layer: int, experts: Iterable[int]) -> None:
        """These experts are about to be computed: what is missing of them is read before all else."""
        keys = [(layer, expert) for expert in dict.fromkeys(experts)]
        with self._change:
            for key in self._residents.use(layer, (expert for _, expert in keys)):
                self._expected.pop(key, None)
            self._demanded.clear()  # of an earlier layer, which has been computed
            self._missing.clear()
            self._doubted.clear()
            for key in keys:
                self._expected.pop(key, None)
                there = self._is_there(key)
                self.counters.requests += 1
                self.counters.hits += there
                self.counters.late += not there and key in self._residents
                (self._doubted if there else self._demanded).append(key)
            self._missing |= set(self._demanded)
            self._change.notify_all()

    def wait(self) -> None:
        """Wait until what the last `use` missed is in memory.

        Kernels that begin before compete with the tier for the disk, by faults that read beyond what is needed.
        """
        with self._change:
            self._change.wait_for(lambda: self._closed or not self._missing)

    def drain(self) -> None:
        """Wait until everything has been read that was asked for."""
        with self._change:
            self._change.wait_for(lambda: self._closed or not (self._busy or self._has_work()))

    def close(self) -> None:
        """Stop reading. Pages stay where they are."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        self._thread.join()

    # The thread

    def _work(self) -> None:
        try:
            while (job := self._next()) is not None:
                key, demanded, leaving = job
                for other in leaving:
                    self._advise_away(other)
                self._read(key, demanded=demanded)
        except OSError as error:  # the kernels meet it too, where it matters
            with self._change:
                self.failure = f"reading ahead has stopped: {error.strerror or error}"
                self._closed = True
                self._busy = False
                self._change.notify_all()

    def _next(self) -> tuple[Key, bool, list[Key]] | None:
        """Wait for the most urgent expert; return it, whether it is demanded, and what leaves for it."""
        while True:
            with self._change:
                self._busy = False
                self._change.notify_all()
                self._change.wait_for(lambda: self._closed or self._has_work())
                if self._closed:
                    return None
                self._busy = True
                if self._demanded or not self._doubted:
                    demanded = bool(self._demanded)
                    key = self._demanded.popleft() if demanded else next(iter(self._expected))
                    self._expected.pop(key, None)
                    if self._is_there(key):
                        self._missing.discard(key)
                        continue
                    leaving = [] if key in self._residents else self._residents.admit(key, demanded=demanded)
                    if leaving is None:
                        continue
                    self._left.setdefault(key, deque(_chunks(self._spans[key[0]][key[1]])))
                    for other in leaving:
                        self._left.pop(other, None)
                    return key, demanded, leaving
                key = self._doubted.popleft()
            self._make_sure(key)

    def _make_sure(self, key: Key) -> None:
        """Ask the system about an expert that is presumed to be there; demand it where it is not."""
        if self._share_there(key) >= THERE:
            return
        with self._change:
            if self._is_there(key):
                self.counters.hits -= 1
                self.counters.taken_away += 1
                self._left[key] = deque(_chunks(self._spans[key[0]][key[1]]))
                self._demanded.append(key)

    def _read(self, key: Key, *, demanded: bool) -> None:
        """Read what is left of an expert; one that is only expected gives way to one that is demanded."""
        first = True
        while True:
            with self._change:
                left = self._left.get(key)
                if left is None or self._closed:
                    return
                if not demanded and self._demanded:
                    if key not in self._demanded:
                        self._expected = {key: None, **self._expected}
                    return
                span = left.popleft()
                ahead = [left[i] for i in range(min(ASKED_AHEAD, len(left)))]
            for asked in (span, *ahead) if first else ahead[ASKED_AHEAD - 1 :]:
                asked.shard.ask(asked.start, asked.end)
            first = False
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

    def _advise_away(self, key: Key) -> None:
        nbytes = sum(span.shard.advise_away(span.start, span.end) for span in self._spans[key[0]][key[1]])
        with self._change:
            self.counters.bytes_advised_away += nbytes

    def _take_stock(self) -> None:
        """Count what is in memory from before; what goes beyond the budget is given back."""
        for layer, experts in enumerate(self._spans):
            for expert in range(len(experts)):
                share = self._share_there((layer, expert))
                if share >= THERE and self._residents.admit((layer, expert), demanded=False) is not None:
                    continue
                if share:
                    self._advise_away((layer, expert))

    def _share_there(self, key: Key) -> float:
        """Return an expert's share in memory, by looking at a page here and there: to look at all takes milliseconds."""
        looks = [
            span.shard.resident(place, place + 1) > 0
            for span in self._spans[key[0]][key[1]]
            for place in range(span.start + min(SAMPLED_EVERY, span.nbytes) // 2, span.end, SAMPLED_EVERY)
        ]
        return sum(looks) / len(looks)

    def _has_work(self) -> bool:
        return bool(self._demanded or self._expected or self._doubted)

    def _is_there(self, key: Key) -> bool:
        return key in self._residents and key not in self._left


def expert_spans(folder: ModelFolder) -> list[list[list[Span]]]:
    """Return where each layer's experts lie in the files, neighbours joined: [layer][expert]."""
    shards = sorted(folder.mapped, key=lambda shard: shard.address)
    bases = [shard.address for shard in shards]
    config: ModelConfig = folder.config

    def spans(layer: int, expert: int) -> list[Span]:
        found: list[Span] = []
        for address, nbytes in sorted(_places(folder, layer, expert)):
            i = bisect_right(bases, address) - 1
            start = address - bases[i]
            if i < 0 or start + nbytes > shards[i].header.file_size:
                continue  # copied on reading, since it was not aligned in the file
            if found and found[-1].shard is shards[i] and found[-1].end == start:
                found[-1] = Span(shards[i], found[-1].start, start + nbytes)
            else:
                found.append(Span(shards[i], start, start + nbytes))
        return found

    return [
        [spans(layer, expert) for expert in range(config.num_local_experts)]
        for layer in range(config.num_hidden_layers)
    ]


def _places(folder: ModelFolder, layer: int, expert: int) -> Iterator[tuple[int, int]]:
    """Yield address and bytes of an expert's tensors."""
    for matrix in ("w1", "w2", "w3"):
        weight = folder.linear(f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{matrix}")
        tensors: list[Any] = list(weight.tensors.values()) if isinstance(weight, PackedLinear) else [weight]
        for tensor in tensors:
            assert isinstance(tensor, Tensor)
            yield tensor.data_ptr(), tensor.nbytes


def _chunks(spans: Sequence[Span]) -> Iterator[Span]:
    for span in spans:
        for start in range(span.start, span.end, CHUNK):
            yield Span(span.shard, start, min(start + CHUNK, span.end))


def _nbytes(spans: Sequence[Sequence[Sequence[Span]]]) -> int:
    return sum(span.nbytes for layer in spans for expert in layer for span in expert)


def _experts_share(
    folder: ModelFolder,
    spans: Sequence[Sequence[Sequence[Span]]],
    budget: int | None,
    reserved: int,
    trunk_in_ram: bool,
) -> int:
    """Return the bytes that are for experts; at least those of a token in one layer."""
    if budget is None:
        free = available_memory()
        if free is None:
            return _nbytes(spans)
        budget = int(free * (1 - MARGIN)) - reserved
    share = budget - (folder.nbytes - _nbytes(spans) if trunk_in_ram else 0)
    active = folder.config.num_experts_per_tok
    least = max(active * max(sum(span.nbytes for span in expert) for expert in layer) for layer in spans)
    return max(share, least)
