"""Simulates cache and scheduler on recorded or synthetic routing, with a virtual clock.

Contract: `replay_hits` simulates only the cache; every copy is complete before the layer's next use. `replay` adds
time: the scheduler's plans, a copy engine that serves demanded copies first, CPU and accelerator in parallel, and the
RAM that they share. Costs come from `mixq.experts.cost`; no weights are read, torch is not imported, and a thousand
tokens of 32 layers take a second.

A trace has the experts that the router chose, by token and layer: trace[token][layer] = (5, 2).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from mixq.experts.cache import CacheCounters, ExpertCache
from mixq.experts.cost import CostModel, Hardware, ModelCost
from mixq.experts.policies import Belady, PolicyOfLayer
from mixq.experts.scheduler import BACKGROUND, CHUNK, Scheduler

Trace = Sequence[Sequence[Sequence[int]]]

_INSTANT = 1e-12
"""Shorter times are rounding errors."""


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """The cost of a trace on a computer."""

    # tokens, seconds: of the trace
    tokens: int
    seconds: float
    # requests, hits, waits, fetches, on_cpu: experts, by where they were computed
    requests: int
    hits: int
    waits: int
    fetches: int
    on_cpu: int
    copied_bytes: int  # over the link, including background copies
    # cpu_seconds, gpu_seconds, copy_seconds: how long each was busy
    cpu_seconds: float
    gpu_seconds: float
    copy_seconds: float
    overlap_seconds: float  # when at least two of the three were busy
    limit_seconds: float  # time for experts and trunk if all three memories were read at once

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def hit_rate(self) -> float:
        """Share of the experts that were in a slot when they were needed."""
        return self.hits / self.requests

    @property
    def share_of_limit(self) -> float:
        return self.limit_seconds / self.seconds


class _AllDone:
    """`Copies` that are complete as soon as they start."""

    def demand_seconds(self) -> float:
        return 0.0

    def remaining_seconds(self, layer: int, expert: int) -> float:
        return 0.0

    def room(self) -> bool:
        return True


def belady(trace: Trace) -> PolicyOfLayer:
    """Return the optimal policy, which knows the whole trace."""
    return lambda layer, quota: Belady([token[layer] for token in trace])


def replay_hits(
    trace: Trace,
    quotas: Sequence[int],
    policy: str | PolicyOfLayer = "lru",
    miss: str = "fetch",
    *,
    experts: int = 8,
    seed: int = 0,
    popular: Sequence[Sequence[int]] | None = None,
    scheduler: Scheduler | None = None,
) -> list[CacheCounters]:
    """Return the counts of each layer; every copy is complete before the layer's next use.

    Args:
        quotas: slots of each layer.
        policy, seed, popular: see `ExpertCache`. If `popular` is None, the slots start with the first experts.
        miss: cpu or fetch; auto needs a scheduler.
        scheduler: replaces one for `miss`.
    """
    cache = ExpertCache(quotas, experts, policy, seed=seed, popular=popular)
    planner = scheduler or Scheduler(_nothing_costs(len(quotas), experts), miss, adapt=False)
    clock = _AllDone()
    _warm_up(cache)
    for token in trace:
        for layer, needed in enumerate(token):
            plan = planner.plan_layer(cache, layer, needed, 1, clock)
            for slot in plan.hits.values():
                cache.release(layer, slot)
            for taken in (*plan.fetches.values(), *plan.admissions.values()):
                if taken is not None:
                    cache.finish_load(layer, taken)
    return cache.counters


def replay(
    trace: Trace,
    hardware: Hardware,
    model: ModelCost,
    quotas: Sequence[int],
    policy: str | PolicyOfLayer = "lru",
    miss: str = "auto",
    *,
    context: int = 0,
    seed: int = 0,
    popular: Sequence[Sequence[int]] | None = None,
    predicted: Sequence[Trace] = (),
    lead: int = 0,
) -> ReplayResult:
    """Return the cost of a trace on a computer, token after token.

    Args:
        quotas: slots of each layer; they are filled at the start, as in the engine.
        context: positions that attention reads.
        predicted: the predictions of the previous layer for each layer, as a trace; then those of the layer before it,
            and so on.
        lead: tokens at the start that are simulated but not counted, fewer than the trace has.
    """
    cache = ExpertCache(quotas, model.experts, policy, seed=seed, popular=popular)
    _warm_up(cache)
    run = _Run(CostModel(hardware, model), cache, miss)
    for number, token in enumerate(trace):
        if number == lead:
            run.begin_to_count()
        for layer, needed in enumerate(token):
            run.trunk(layer, context)
            run.experts(layer, needed)
            for ahead, guesses in enumerate(predicted, layer + 1):
                if ahead < len(token):
                    run.prefetch(ahead, guesses[number][ahead])
        run.head()
    return run.result(len(trace) - lead, context)


def _warm_up(cache: ExpertCache) -> None:
    for layer in range(len(cache.quotas)):
        for expert in cache.warm_up(layer):
            slot = cache.begin_load(layer, expert)
            if slot is not None:
                cache.finish_load(layer, slot)


def _nothing_costs(layers: int, experts: int) -> CostModel:
    """Return a cost model for modes that do not use it."""
    return CostModel(Hardware("any", 1.0, 1.0, 1.0, 1.0, 1.0), ModelCost(layers, experts, 1, 1, 1, 1, 1, 1))


@dataclass(slots=True, eq=False)
class _Copy:
    layer: int
    expert: int
    slot: int | None
    left: float


class _Machine:
    """CPU, accelerator and copy engine on a virtual clock; `step` advances it until one of them is done."""

    def __init__(self, cost: CostModel) -> None:
        self.now = 0.0
        self.cpu_left = 0.0  # bytes
        self.gpu_left = 0.0  # seconds, if nothing else reads its memory
        self.demand: deque[_Copy] = deque()
        self.background: deque[_Copy] = deque()
        self.cpu_busy = self.gpu_busy = self.copy_busy = self.overlap = 0.0
        # Latency is counted as the bytes that the link could have copied in that time.
        self._copy_bytes = cost.copy_seconds() * cost.hardware.copy_alone
        self._hardware = cost.hardware
        self._copy_alone = cost.hardware.copy_alone

    def copy(self, layer: int, expert: int, slot: int | None, *, demanded: bool) -> _Copy:
        copy = _Copy(layer, expert, slot, self._copy_bytes)
        (self.demand if demanded else self.background).append(copy)
        return copy

    def promote(self, layer: int, expert: int) -> _Copy:
        """Move a running background copy to the demanded ones, and return it."""
        under_way = (*self.demand, *self.background)
        copy = next(copy for copy in under_way if (copy.layer, copy.expert) == (layer, expert))
        if copy in self.background:
            self.background.remove(copy)
            self.demand.append(copy)
        return copy

    def _share(self, computing: bool, copying: bool, on_gpu: bool) -> float:
        """Return the share of its own rate that each reader of RAM gets."""
        hardware = self._hardware
        wanted = computing * hardware.cpu_bandwidth + copying * self._copy_alone
        if hardware.gpu_in_ram:
            wanted += on_gpu * hardware.gpu_bandwidth
        return min(1.0, hardware.ram / wanted) if wanted else 1.0

    def step(self, limit: float = float("inf")) -> list[_Copy]:
        """Advance the clock until something is done, at most until `limit`; return the finished copies."""
        queue = self.demand or self.background
        nbytes = queue[0].left if queue else 0.0
        if self.demand and self.background and (rest := self.background[0].left % CHUNK) >= 1:
            queue, nbytes = self.background, rest  # a started chunk is finished first
        computing, copying, busy_gpu = self.cpu_left > 0, bool(queue), self.gpu_left > 0
        share = self._share(computing, copying, busy_gpu)
        cpu_rate, copy_rate = share * self._hardware.cpu_bandwidth, share * self._copy_alone
        gpu_rate = share if self._hardware.gpu_in_ram else 1.0
        until = limit
        if computing:
            until = min(until, self.now + self.cpu_left / cpu_rate)
        if copying:
            until = min(until, self.now + nbytes / copy_rate)
        if busy_gpu:
            until = min(until, self.now + self.gpu_left / gpu_rate)
        passed = until - self.now
        self.now = until
        self.gpu_busy += passed * busy_gpu
        self.overlap += passed * (computing + copying + busy_gpu >= 2)
        if busy_gpu:
            left = self.gpu_left - passed * gpu_rate
            self.gpu_left = left if left > _INSTANT else 0.0
        if computing:
            self.cpu_busy += passed
            self.cpu_left = _less(self.cpu_left, passed * cpu_rate)
        if copying:
            self.copy_busy += passed
            queue[0].left -= nbytes - _less(nbytes, passed * copy_rate)
            if queue[0].left < 1:
                return [queue.popleft()]
        return []

    # What the scheduler needs (`Copies`)

    def demand_seconds(self) -> float:
        return sum(copy.left for copy in self.demand) / self._copy_alone

    def remaining_seconds(self, layer: int, expert: int) -> float:
        before = 0.0
        for copy in self.demand:
            before += copy.left
            if (copy.layer, copy.expert) == (layer, expert):
                return before / self._copy_alone
        left = sum(copy.left for copy in self.background if (copy.layer, copy.expert) == (layer, expert))
        return (before + left) / self._copy_alone

    def room(self) -> bool:
        return len(self.background) < BACKGROUND


def _less(nbytes: float, done: float) -> float:
    """Return the rest; a fraction of a byte is a rounding error."""
    return nbytes - done if nbytes - done >= 1 else 0.0


class _Run:
    """A replay: the computer, the cache, and the counts."""

    def __init__(self, cost: CostModel, cache: ExpertCache, miss: str) -> None:
        self.cost = cost
        self.cache = cache
        self.scheduler = Scheduler(cost, miss, adapt=False)
        self.machine = _Machine(cost)
        self.hits = self.waits = self.fetches = self.on_cpu = self.copied = 0
        self._begun_at: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0)

    def begin_to_count(self) -> None:
        """Remove the counts so far from the result."""
        self.hits = self.waits = self.fetches = self.on_cpu = self.copied = 0
        self._begun_at = self._times()

    def _times(self) -> tuple[float, ...]:
        machine = self.machine
        return machine.now, machine.cpu_busy, machine.gpu_busy, machine.copy_busy, machine.overlap

    def trunk(self, layer: int, context: int) -> None:
        self.machine.gpu_left += self.cost.trunk_seconds(context)
        self._finish_on_gpu()
        if self.cache.quotas[layer] < self.cache.experts:  # else there is nothing to decide, and the host does not wait
            self._pass_until(self.machine.now + self.cost.hardware.handover_seconds)

    def head(self) -> None:
        self.machine.gpu_left += self.cost.head_seconds()
        self._finish_on_gpu()

    def experts(self, layer: int, needed: Sequence[int]) -> None:
        machine, cache, cost = self.machine, self.cache, self.cost
        plan = self.scheduler.plan_layer(cache, layer, needed, 1, machine)
        machine.gpu_left += cost.gpu_seconds(len(plan.hits))
        awaited = [machine.promote(layer, expert) for expert in plan.waits]
        awaited += [machine.copy(layer, expert, slot, demanded=True) for expert, slot in plan.fetches.items()]
        for expert, slot in plan.admissions.items():
            machine.copy(layer, expert, slot, demanded=False)
        ready = machine.now + len(plan.admissions) * cost.hardware.begin_seconds
        to_compute = cost.cpu_seconds(len(plan.cpu)) * cost.hardware.cpu_bandwidth
        while machine.now < ready or to_compute or machine.cpu_left > 0 or awaited:
            if machine.now >= ready:
                machine.cpu_left, to_compute = machine.cpu_left + to_compute, 0.0
            for copy in self._step(ready if machine.now < ready else float("inf")):
                if copy in awaited:
                    awaited.remove(copy)
                    machine.gpu_left += cost.gpu_seconds(1)
        self._finish_on_gpu()
        for slot in plan.hits.values():
            cache.release(layer, slot)
        self.hits += len(plan.hits)
        self.waits += len(plan.waits)
        self.fetches += len(plan.fetches)
        self.on_cpu += len(plan.cpu)

    def prefetch(self, layer: int, predicted: Sequence[int]) -> None:
        for expert, slot in self.scheduler.plan_prefetch(self.cache, layer, predicted, self.machine).items():
            self.machine.copy(layer, expert, slot, demanded=False)

    def result(self, tokens: int, context: int) -> ReplayResult:
        size, cost = self.cost.model.expert_bytes, self.cost
        times = zip(self._times(), self._begun_at, strict=True)
        seconds, cpu_seconds, gpu_seconds, copy_seconds, overlap = (now - begun for now, begun in times)
        hit, cpu, fetched = size * self.hits, size * self.on_cpu, size * (self.waits + self.fetches)
        trunk = tokens * (cost.model.layers * cost.trunk_seconds(context) + cost.head_seconds())
        return ReplayResult(
            tokens=tokens,
            seconds=seconds,
            requests=self.hits + self.waits + self.fetches + self.on_cpu,
            hits=self.hits,
            waits=self.waits,
            fetches=self.fetches,
            on_cpu=self.on_cpu,
            copied_bytes=size * self.copied,
            cpu_seconds=cpu_seconds,
            gpu_seconds=gpu_seconds,
            copy_seconds=copy_seconds,
            overlap_seconds=overlap,
            limit_seconds=cost.limit_seconds(hit, cpu, fetched) + trunk,
        )

    def _finish_on_gpu(self) -> None:
        while self.machine.gpu_left > 0:
            self._step()

    def _pass_until(self, moment: float) -> None:
        while self.machine.now < moment:
            self._step(moment)

    def _step(self, limit: float = float("inf")) -> list[_Copy]:
        arrived = self.machine.step(limit)
        for copy in arrived:
            self.copied += 1
            if copy.slot is not None:
                self.cache.finish_load(copy.layer, copy.slot)
        return arrived
