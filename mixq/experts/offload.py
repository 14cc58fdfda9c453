"""Moves a model's experts between host memory and an accelerator; shared by all layers.

Contract: `cache` and `scheduler` decide which experts have slots and which device computes; this module owns the memory
and executes their decisions. Only the thread that runs the network uses it. A slot is written only while it is loading
and read only while it is in use; the cache gives such slots to no other expert. `LayerExperts` in `executor` is one
layer's part; `telemetry` counts.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from mixq.config import format_size
from mixq.experts.accelerators.interface import Accelerator, Launch, OutOfMemory
from mixq.experts.cache import ExpertCache, SlotState
from mixq.experts.calibration import measure
from mixq.experts.cost import CostModel, ModelCost
from mixq.experts.memory_plan import MemoryPlan
from mixq.experts.policies import PolicyOfLayer
from mixq.experts.ram_tier import RamTier
from mixq.experts.scheduler import Scheduler
from mixq.experts.slot_memory import SlotMemory, Staging
from mixq.experts.store import ExpertStore
from mixq.experts.telemetry import ExpertTelemetry
from mixq.experts.transfer import Upload, Uploader
from mixq.kernels.dispatch import Kernels

STREAM_TOKENS = 16
"""From this many tokens of a prompt on, an expert is copied to the accelerator instead of being computed on the CPU.

A constant, not measured, because the choice of device must not depend on the computer's load. Up to about this many
rows, computing on the CPU costs one read of the expert (integer kernels); a copy costs one over the link.
"""


class ExpertOffload:
    """The slots and copies of a model.

    Args:
        store: the experts in host memory.
        accelerator: where the slots are.
        host_kernels: for experts computed on the CPU.
        plan: the memory for slots.
        cost: the model's sizes.
        miss: what to do with an expert without a slot: auto, cpu or fetch.
        policy, seed, popular: of the cache, see `ExpertCache`.
        tier: reads experts from the disk; None if all are in memory.
        say: called with a line for the user.

    Attributes:
        telemetry: counts.
        stream_tokens: from this many tokens on, an expert of a prompt is copied.
        lockstep: wait for every copy before each decision, and plan also layers whose experts are all in slots, so that
            hits do not depend on timing (tests).
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
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.store = store
        self.accelerator = accelerator
        self.host_kernels = host_kernels
        self.plan = plan
        self.cache = ExpertCache(plan.quotas, store.experts, policy, seed=seed, popular=popular)
        self.uploader = Uploader(accelerator)
        self.memory = SlotMemory(store, accelerator, self.cache, plan.slot_bytes, plan.staging // plan.slot_bytes)
        self.staging = Staging(self.memory.staging, store, self.uploader)
        hardware = measure(store, accelerator, host_kernels, self.uploader, self.memory.staging[0], cost.expert_flops)
        self.scheduler = Scheduler(CostModel(hardware, cost), miss)
        self.uploader.link.expect(hardware.copy_bandwidth)
        self.telemetry = ExpertTelemetry(store, cost.active, self.scheduler, self.uploader)
        self._in_use: deque[tuple[Launch, int, tuple[int, ...]]] = deque()
        self.tier = tier
        if tier is not None:
            self.uploader.on_copied(tier.copied)
        self.stream_tokens = STREAM_TOKENS
        self._rows: dict[str, Tensor] = {}
        self.say = say
        if self.memory.make():
            say(f"There is less GPU memory than planned: {self.slots} of {plan.slots} expert slots fit.")
        self.lockstep = False

    @property
    def slots(self) -> int:
        """Slots over all layers."""
        return len(self.memory)

    # Copies

    def upload(self, layer: int, expert: int, slot: int, *, demanded: bool) -> Upload:
        """Start to fill a slot that the cache has assigned."""
        pieces = self.store.pieces(layer, expert)
        return self.uploader.start((layer, expert), slot, self.memory.memory(layer, slot), pieces, demanded=demanded)

    def read_in(self, layer: int, experts: Sequence[int]) -> None:
        """Make sure that experts are in host memory before they are read."""
        if self.tier is not None and experts:
            self.tier.use(layer, experts)
            self.tier.wait()

    def all_resident(self, layer: int) -> bool:
        """Return whether all experts of a layer are in slots; True beyond the last layer."""
        return layer >= self.store.layers or self.memory.table(layer) is not None

    def residency(self) -> int | None:
        """Return a number that changes when an expert moves; None unless all have a slot."""
        if self.lockstep or not all(self.all_resident(layer) for layer in range(self.store.layers)):
            return None
        return self.memory.moves

    def settle(self) -> None:
        """Update the cache with finished copies and launches; free the memory of retired slots."""
        if self.lockstep:
            self.uploader.drain()
        for upload in self.uploader.finished():
            upload.done()  # raises its error
            self.telemetry.note_copy(upload)
            assert upload.slot is not None
            self.cache.finish_load(upload.key[0], upload.slot)
        while self._in_use and self._in_use[0][0].done():
            launch, layer, slots = self._in_use.popleft()
            self.telemetry.note_launch(launch)
            for slot in slots:
                self.cache.release(layer, slot)
        for layer, slot in self.cache.retired():
            self.memory.free(layer, slot)
        if (line := self.scheduler.notice()) is not None:
            self.say(line)

    def demand(self, layer: int, expert: int) -> Upload:
        """Return the upload of an expert whose slot is loading, moved before the background ones."""
        upload = self.uploader.under_way(layer, expert)
        assert upload is not None, "a loading slot has an upload"
        self.uploader.demand(upload)
        return upload

    def arrived(self, upload: Upload) -> int:
        """Wait for a demanded upload, update the cache, and return its slot."""
        self.wait_for(upload)
        self.settle()
        assert upload.slot is not None
        return upload.slot

    def wait_for(self, upload: Upload) -> None:
        """Wait for an upload, and count the time."""
        begun = time.perf_counter()
        upload.wait()
        self.telemetry.counters.wait_seconds += time.perf_counter() - begun

    def _cancel_unbegun(self) -> None:
        """Free loading slots whose upload has not started."""
        for layer in range(self.store.layers):
            for expert in range(self.store.experts):
                place = self.cache.state(layer, expert)
                loading = place is not None and place[1] is SlotState.LOADING
                if place is not None and loading and self.uploader.under_way(layer, expert) is None:
                    self.cache.cancel_load(layer, place[0])

    @contextmanager
    def acquired(self, layer: int, slots: Iterable[int]) -> Iterator[list[int]]:
        """Guard acquired slots until a launch reads them.

        If the forward pass is interrupted, those in the list are released, and loading slots whose upload has not
        started are freed.
        """
        held = list(slots)
        try:
            yield held
        except BaseException:
            for slot in held:
                self.cache.release(layer, slot)
            self._cancel_unbegun()
            raise

    def release_after(self, launch: Launch, layer: int, slots: list[int]) -> None:
        """Take over acquired slots (the list is emptied); `settle` releases them when `launch` is done."""
        self._in_use.append((launch, layer, tuple(slots)))
        slots.clear()

    def host_rows(self, name: str, like: Tensor) -> Tensor:
        """Return host memory for a layer's rows, the same for every layer, since one layer ends before the next
        starts."""
        rows = self._rows.get(name)
        if rows is None or rows.shape != like.shape or rows.dtype != like.dtype:
            rows = self._rows[name] = self.accelerator.host_rows(*like.shape, dtype=like.dtype)
        return rows

    # Prompts

    def streams(self, tokens: float) -> bool:
        """Return whether an expert for `tokens` tokens is copied to the accelerator."""
        return self.scheduler.miss == "fetch" or (self.scheduler.miss == "auto" and tokens >= self.stream_tokens)

    def stage_ahead(self, layer: int) -> None:
        """Start to copy the first experts of a layer without a slot, while the previous layer computes."""
        if layer < self.store.layers:
            absent = [e for e in range(self.store.experts) if self.cache.state(layer, e) is None]
            for expert in absent[: len(self.staging)]:
                self.staging.stage(layer, expert)

    def warm(self, progress: Callable[[float], None] = lambda share: None) -> None:
        """Fill every slot before the first token, with the popular experts if they are known, else the first."""
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
        """Free slots after the accelerator has run out of memory; return False if none are left."""
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
            f"GPU memory ran out: {had - left} of {had} expert slots ({format_size(freed)}) were freed, and "
            "generation continues."
        )
        return True

    def resize(self, quotas: Sequence[int]) -> None:
        """Change the slots of each layer; those in use are removed when they are free."""
        self.accelerator.synchronize()
        for layer, quota in enumerate(quotas):
            for slot in self.cache.resize(layer, quota):
                self.memory.free(layer, slot)
        self.memory.make()

    def quiesce(self) -> None:
        """Wait until no copies and no work are left."""
        for upload in self.uploader.cancel_waiting():
            assert upload.slot is not None
            self.cache.cancel_load(upload.key[0], upload.slot)
        self.uploader.drain()
        self.staging.forget()
        self.accelerator.synchronize()
        self.settle()

    def close(self) -> None:
        """End the threads; the slots' memory is freed with the accelerator."""
        self.uploader.close()
