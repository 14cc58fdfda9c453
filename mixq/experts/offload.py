"""A model's experts between host memory and an accelerator: what all layers share.

Contract: the policy (`cache`, `scheduler`) says what lies where and who computes; this module owns the memory and has
it done. It is used by the one thread that runs the network. A slot is written only while it is loading and read only
while it is in use, and the policy gives nobody else a slot that is either. `LayerExperts` in `executor` is one layer's
view.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from torch import Tensor

from mixq.config import format_size
from mixq.experts.accelerators.interface import Accelerator, Launch, OutOfMemory
from mixq.experts.cache import ExpertCache, SlotState
from mixq.experts.calibration import measure
from mixq.experts.cost import CostModel, ModelCost
from mixq.experts.memory_plan import MemoryPlan
from mixq.experts.policies import PolicyOfLayer
from mixq.experts.predictor import Recall
from mixq.experts.ram_tier import RamTier
from mixq.experts.scheduler import LayerPlan, Scheduler
from mixq.experts.slot_memory import SlotMemory
from mixq.experts.staging import Staging
from mixq.experts.stats import BusyTimes, ExpertCounters, ExpertStats
from mixq.experts.store import ExpertStore
from mixq.experts.transfer import Upload, Uploader
from mixq.kernels.dispatch import Kernels
from mixq.kernels.reference import DECODE_ROWS

STREAM_TOKENS = 16
"""From how many tokens of a prompt on an expert is copied to the accelerator rather than computed in place.

A constant, never timed while it runs: which device computes must not depend on the machine's mood. Computing in place
costs a read of the expert up to about this many rows (integer kernels), a copy costs one over the link.
"""


OBSERVED = 0.5e-3
"""Seconds of an expert below which times are not compared with the calibration: what is around them is longer."""


class ExpertOffload:
    """Slots, copies and counters of a model.

    Args:
        store: the experts in host memory.
        accelerator: where the slots are.
        host_kernels: compute in place what is not copied.
        plan: how much memory there is for slots.
        cost: the model's sizes.
        miss: what to do about an expert that is in no slot: auto, cpu or fetch.
        policy, seed, popular: of the cache, see `ExpertCache`.
        tier: reads from the disk what is not in memory; None where all is.
        say: takes one line that the user should see.

    Attributes:
        lockstep: wait for every copy before each decision, so that hits do not depend on timing (replays, tests).
        trace: where decode's choices are noted, token by token and layer by layer; None for nowhere.
    """

    def __init__(
        self,
        store: ExpertStore,
        accelerator: Accelerator,
        host_kernels: Kernels,
        plan: MemoryPlan,
        cost: ModelCost,
        *,
        miss: str = "auto",
        policy: str | PolicyOfLayer = "lru",
        seed: int = 0,
        popular: Sequence[Sequence[int]] | None = None,
        tier: RamTier | None = None,
        stream_tokens: int = STREAM_TOKENS,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.store = store
        self._active = cost.active
        self.accelerator = accelerator
        self.host_kernels = host_kernels
        self.plan = plan
        self.cache = ExpertCache(plan.quotas, store.experts, policy, seed=seed, popular=popular)
        self.uploader = Uploader(accelerator)
        self.memory = SlotMemory(store, accelerator, self.cache, plan.slot_bytes, plan.staging // plan.slot_bytes)
        self.staging = Staging(self.memory.staging, store, self.uploader)
        hardware = measure(store, accelerator, host_kernels, self.uploader, self.memory.staging[0], cost.expert_flops)
        self.scheduler = Scheduler(CostModel(hardware, cost), miss)
        self.uploader.expect(hardware.copy_bandwidth)
        self._observes = plan.slot_bytes / hardware.cpu_bandwidth >= OBSERVED
        self._in_use: deque[tuple[Launch, int, tuple[int, ...]]] = deque()
        self.tier = tier
        if tier is not None:
            self.uploader.tell(tier.copied)
        self.stream_tokens = stream_tokens
        self.counters = ExpertCounters()
        self._counts = True
        self.recall = Recall()
        self.times = BusyTimes()
        self._predictions: dict[int, dict[int, list[int]]] = {}
        self._rows: dict[str, Tensor] = {}
        self.say = say
        if self.memory.make():
            say(f"GPU memory is shorter than it was promised: {self.slots} of {plan.slots} expert slots were made.")
        self.lockstep = False
        self.trace: list[list[tuple[int, ...]]] | None = None
        self._overlap_from = time.perf_counter()

    @property
    def slots(self) -> int:
        """Slots over all layers."""
        return len(self.memory)

    # Copies

    def upload(self, layer: int, expert: int, slot: int, *, demanded: bool) -> Upload:
        """Begin to fill a slot that the cache has given for it."""
        pieces = self.store.pieces(layer, expert)
        return self.uploader.start((layer, expert), slot, self.memory.memory(layer, slot), pieces, demanded=demanded)

    def read_in(self, layer: int, experts: Sequence[int]) -> None:
        """These experts are about to be read from host memory."""
        if self.tier is not None and experts:
            self.tier.use(layer, experts)
            self.tier.wait()

    def all_resident(self, layer: int) -> bool:
        """Return whether all experts of a layer are in slots; so for one that there is not."""
        return layer >= self.store.layers or self.memory.table(layer) is not None

    def residency(self) -> int | None:
        """Return a number that changes whenever an expert moves, None while not all have a slot."""
        if self.trace is not None or not all(self.all_resident(layer) for layer in range(self.store.layers)):
            return None
        return self.memory.moves

    def settle(self) -> None:
        """Tell the cache what has arrived and what is not in use any more; free the memory of slots that retired."""
        if self.lockstep:
            self.uploader.drain()
        for upload in self.uploader.finished():
            upload.done()  # raises what went wrong
            if self.uploader.measured and self._observes:
                self.scheduler.observe_copy(upload.nbytes, upload.nbytes / self.uploader.rate)
            assert upload.slot is not None
            self.cache.finish_load(upload.key[0], upload.slot)
        while self._in_use and self._in_use[0][0].done():
            launch, layer, slots = self._in_use.popleft()
            self.note_launch(launch)
            for slot in slots:
                self.cache.release(layer, slot)
        for layer, slot in self.cache.retired():
            self.memory.free(layer, slot)
        if (line := self.scheduler.notice()) is not None:
            self.say(line)

    def demand(self, layer: int, expert: int) -> Upload:
        """Return the upload of an expert whose slot is loading; from now on somebody waits for it."""
        upload = self.uploader.under_way(layer, expert)
        assert upload is not None, "a loading slot has an upload"
        self.uploader.demand(upload)
        return upload

    def arrived(self, upload: Upload) -> int:
        """Wait for a demanded upload, tell the cache, and return its slot."""
        self.wait_for(upload)
        self.settle()
        assert upload.slot is not None
        return upload.slot

    def wait_for(self, upload: Upload) -> None:
        """Wait for an upload, and count how long."""
        begun = time.perf_counter()
        upload.wait()
        self.counters.wait_seconds += time.perf_counter() - begun

    def cancel_unbegun(self) -> None:
        """Free the slots that the cache gave for loading and that nobody began to fill."""
        for layer in range(self.store.layers):
            for expert in range(self.store.experts):
                place = self.cache.state(layer, expert)
                loading = place is not None and place[1] is SlotState.LOADING
                if place is not None and loading and self.uploader.under_way(layer, expert) is None:
                    self.cache.cancel_load(layer, place[0])

    def holding(self, layer: int, slots: Iterable[int]) -> Held:
        """Return a guard of slots that are about to be in use: what goes wrong before they are releases them."""
        return Held(self, layer, list(slots))

    def in_use_until(self, launch: Launch, layer: int, slots: Sequence[int]) -> None:
        """These acquired slots are read until `launch` is done; `settle` releases them."""
        self._in_use.append((launch, layer, tuple(slots)))

    def host_rows(self, name: str, like: Tensor) -> Tensor:
        """Return host memory for a layer's rows, the same for every layer: a layer is over before the next begins."""
        rows = self._rows.get(name)
        if rows is None or rows.shape != like.shape or rows.dtype != like.dtype:
            rows = self._rows[name] = self.accelerator.host_rows(*like.shape, dtype=like.dtype)
        return rows

    # Prompts

    def streams(self, tokens: float) -> bool:
        """Return whether an expert that so many tokens chose is copied to the accelerator."""
        return self.scheduler.miss == "fetch" or (self.scheduler.miss == "auto" and tokens >= self.stream_tokens)

    def stage_ahead(self, layer: int) -> None:
        """Begin to copy a layer's first experts that are not there, while the layer before it computes."""
        if layer < self.store.layers:
            absent = [e for e in range(self.store.experts) if self.cache.state(layer, e) is None]
            for expert in absent[: len(self.staging)]:
                self.staging.stage(layer, expert)

    # Notes

    def note_choice(self, layer: int, ids: Tensor) -> list[int]:
        """Note what the router chose, ids [T, A]; return the experts in the order in which they appear first."""
        chosen = ids.tolist()
        needed = list(dict.fromkeys(expert for row in chosen for expert in row))
        for ahead, experts in self._predictions.pop(layer, {}).items():
            self.recall.record(layer, ahead, experts, needed)
        if self.trace is not None and len(chosen) == 1:
            if layer == 0:
                self.trace.append([])
            self.trace[-1].append(tuple(chosen[0]))
        return needed

    def predicted(self, layer: int, ahead: int, experts: Sequence[int]) -> None:
        """Note what was expected of a layer, to be compared with what comes."""
        self._predictions.setdefault(layer, {})[ahead] = list(experts)

    def count_whole_step(self) -> None:
        """Count a token whose experts were all in slots, in every layer."""
        for layer in range(self.store.layers):
            self.count_resident(layer, self._active)

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Count nothing meanwhile of layers whose experts are all in slots."""
        self._counts = False
        try:
            yield
        finally:
            self._counts = True

    def count_resident(self, layer: int, experts: int) -> None:
        """Count experts of decode that were all in slots."""
        if not self._counts:
            return
        self.counters.requests += experts
        self.counters.hits += experts
        self.counters.hit_bytes += experts * self.store.expert_bytes(layer)

    def count_decode(self, layer: int, plan: LayerPlan) -> None:
        """Count where a layer's experts were computed."""
        counters, nbytes = self.counters, self.store.expert_bytes(layer)
        counters.hits += len(plan.hits)
        counters.waits += len(plan.waits)
        counters.fetches += len(plan.fetches)
        counters.on_cpu += len(plan.cpu)
        counters.requests += len(plan.hits) + len(plan.waits) + len(plan.fetches) + len(plan.cpu)
        counters.hit_bytes += nbytes * len(plan.hits)
        counters.cpu_bytes += nbytes * len(plan.cpu)
        counters.fetched_bytes += nbytes * (len(plan.waits) + len(plan.fetches))

    def note_launch(self, launch: Launch) -> None:
        """Count how long the accelerator computed."""
        begun, ended = launch.busy
        self.times.gpu.append((begun, ended))
        self.counters.gpu_seconds += ended - begun

    def note_cpu(self, experts: int, rows: int, begun: float, ended: float) -> None:
        """Count how long the CPU computed experts."""
        self.times.cpu.append((begun, ended))
        self.counters.cpu_seconds += ended - begun
        if rows <= DECODE_ROWS and self._observes:
            self.scheduler.observe_cpu(experts, rows, ended - begun)

    def warm(self, progress: Callable[[float], None] = lambda share: None) -> None:
        """Fill every slot before the first token, with the popular experts where they are known, else the first.

        Args:
            progress: is told which share of the layers has been asked for.
        """
        for layer in range(self.store.layers):
            progress(layer / self.store.layers)
            for expert in self.cache.warm_up(layer):
                slot = self.cache.begin_load(layer, expert)
                if slot is not None:
                    self.upload(layer, expert, slot, demanded=False)
        self.uploader.drain()
        self.settle()

    # Memory

    def make_room(self, error: OutOfMemory) -> bool:
        """Give slots back after the memory has run out; False if there are none left to give."""
        self.quiesce()
        missing = max(error.asked - error.free, 1)
        had = self.slots
        freed = 0
        while freed < missing and any(self.cache.quotas):
            layer = max(range(self.store.layers), key=lambda i: self.cache.quotas[i])
            for slot in self.cache.resize(layer, self.cache.quotas[layer] - 1):
                freed += self.memory.free(layer, slot)
        left = self.slots
        if left == had:
            return False
        self.say(
            f"GPU memory has run out: {had - left} of {had} expert slots ({format_size(freed)}) were given back, "
            "and generation goes on."
        )
        return True

    def resize(self, quotas: Sequence[int]) -> None:
        """Change the slots of each layer; those that are busy go when they are done with."""
        self.accelerator.synchronize()
        for layer, quota in enumerate(quotas):
            for slot in self.cache.resize(layer, quota):
                self.memory.free(layer, slot)
        self.memory.make()

    def quiesce(self) -> None:
        """Wait until no copy and no work is under way."""
        for upload in self.uploader.cancel_waiting():
            assert upload.slot is not None
            self.cache.cancel_load(upload.key[0], upload.slot)
        self.uploader.drain()
        self.staging.forget()
        self.accelerator.synchronize()
        self.settle()

    # Telemetry

    def snapshot(self) -> ExpertCounters:
        """Return the counters as they are, to be given to `stats_since`."""
        self.counters.uploaded_bytes = self.uploader.nbytes
        copies = self.uploader.busy()
        self.counters.copy_seconds += sum(
            end - max(begin, self._overlap_from) for begin, end in copies if end > self._overlap_from
        )
        self.counters.overlap_seconds += self.times.overlap(copies, self._overlap_from)
        self._overlap_from = time.perf_counter()
        return self.counters.copy()

    def stats_since(self, earlier: ExpertCounters) -> ExpertStats:
        """Return what has happened since a snapshot."""
        counters = self.snapshot().since(earlier)
        return ExpertStats(counters, self.recall.by_lookahead(), self.scheduler.limit_seconds(counters))

    def close(self) -> None:
        """End the threads; the slots' memory goes with the accelerator."""
        self.uploader.close()


class Held:
    """Slots that have been acquired and whose reader has not been launched yet.

    When a pass is broken off they are released, and slots that were to be loaded but are not are free again.
    """

    def __init__(self, offload: ExpertOffload, layer: int, slots: list[int]) -> None:
        self._offload, self._layer, self._slots = offload, layer, slots

    def __enter__(self) -> Held:
        return self

    def hand_over(self, launch: Launch) -> None:
        """They are read until `launch` is done."""
        self._offload.in_use_until(launch, self._layer, self._slots)
        self._slots = []

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            return
        for slot in self._slots:
            self._offload.cache.release(self._layer, slot)
        self._offload.cancel_unbegun()
