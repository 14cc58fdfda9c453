"""Decides, for each expert that a layer needs: computed on the accelerator, in place on the CPU, or after a copy.

Contract: `plan_layer` is pure arithmetic over the cache's state, the cost model and what is on its way. It moves slots
of the cache from one state to the next; copies and products are the caller's. The same code runs in the engine and, on a
virtual clock, in `mixq.plan.replay`. It knows no tensor, thread or clock.

Missing experts of a layer are of one size, so that what matters is how many of them are copied: `auto` tries every
number, with each number of experts that are on their way already, and takes the one with which the layer is done first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mixq.cost import CostModel
from mixq.experts.cache import ExpertCache, SlotState

FOLLOW_FACTOR = 1.5
"""Times by which what is measured must be off before decisions follow it: below, they come out the same."""

FOLLOW_AFTER = 64
"""Observations in a row that must be off: two tokens of 32 layers, so that a hiccup changes nothing."""

SMOOTHING = 0.05
"""Weight of an observation in the running average."""


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """Who computes the experts of one layer.

    Attributes:
        hits: expert: slot; on the accelerator, now. Their slots are acquired.
        waits: expert: slot that is loading; on the accelerator, once it has arrived.
        fetches: expert: slot that it was given; copied, then on the accelerator. None: through a staging buffer.
        cpu: in place.
        admissions: expert: slot; copied in the background, for later. They are among `cpu`.
    """

    hits: dict[int, int]
    waits: dict[int, int]
    fetches: dict[int, int | None]
    cpu: tuple[int, ...]
    admissions: dict[int, int]


class Copies(Protocol):
    """What is on its way to the accelerator."""

    def demand_seconds(self) -> float:
        """Return the seconds until a copy that is demanded now could begin."""
        ...

    def remaining_seconds(self, layer: int, expert: int) -> float:
        """Return the seconds until a copy that is under way would be complete, were it demanded now."""
        ...

    def room(self) -> bool:
        """Return whether the background takes one more."""
        ...


class Served(Protocol):
    """Bytes of experts by the place that served them."""

    @property
    def hit_bytes(self) -> int: ...

    @property
    def cpu_bytes(self) -> int: ...

    @property
    def fetched_bytes(self) -> int: ...


class Scheduler:
    """Plans layers, and checks the cost model against what is measured.

    Args:
        cost: of this model on this machine.
        miss: auto, cpu or fetch.
        adapt: whether decisions may follow the measurement; without, they depend on the cost model alone.

    Attributes:
        cost: what decisions go by now.
    """

    def __init__(self, cost: CostModel, miss: str = "auto", *, adapt: bool = True) -> None:
        self.cost = cost
        self.miss = miss
        self.adapt = adapt
        self._given = cost
        self._watches = {part: _Watch() for part in ("cpu", "gpu", "copy")}
        self._notices: list[str] = []
        self._choices: dict[tuple[int, int, int], int] = {}

    # Decisions

    def plan_layer(self, cache: ExpertCache, layer: int, needed: Sequence[int], rows: int, clock: Copies) -> LayerPlan:
        """Return who computes the experts that a layer needs.

        Args:
            needed: distinct experts, in the order in which the rows name them.
            rows: of the pass.

        The caller releases hits, finishes loads, and acquires what it waited for.
        """
        hits = cache.request(layer, needed)
        for slot in hits.values():
            cache.acquire(layer, slot)
        loading, absent = {}, []
        for expert in needed:
            if expert not in hits:
                place = cache.state(layer, expert)
                if place is None:
                    absent.append(expert)
                else:
                    loading[expert] = place[0]
        if self.miss == "fetch":
            waits, fetched = loading, absent
        elif self.miss == "cpu" or not (loading or absent):
            waits, fetched = {}, []
        else:
            waits, fetched = self._divide(layer, len(hits), loading, absent, rows, clock)
        fetches = {expert: cache.begin_load(layer, expert) for expert in fetched}
        cpu = tuple(expert for expert in needed if not (expert in hits or expert in waits or expert in fetches))
        admissions = {}
        for expert in cpu:
            if expert not in loading and clock.room():
                slot = cache.begin_load(layer, expert)
                if slot is not None:
                    admissions[expert] = slot
                break
        return LayerPlan(hits, waits, fetches, cpu, admissions)

    def plan_prefetch(self, cache: ExpertCache, layer: int, predicted: Sequence[int], clock: Copies) -> dict[int, int]:
        """Return the experts to copy in the background because a layer will want them: expert: slot."""
        for expert in predicted:
            if cache.state(layer, expert) is None and clock.room():
                slot = cache.begin_load(layer, expert)
                return {} if slot is None else {expert: slot}
        return {}

    def _divide(
        self,
        layer: int,
        hits: int,
        loading: dict[int, int],
        absent: list[int],
        rows: int,
        clock: Copies,
    ) -> tuple[dict[int, int], list[int]]:
        """Return which of the loading ones are waited for, and which of the absent ones fetched."""
        wait_until = sorted((clock.remaining_seconds(layer, expert), expert) for expert in loading)
        begin = clock.demand_seconds()
        key = (hits, len(absent), rows)
        if not loading and not begin and key in self._choices:
            return {}, absent[: self._choices[key]]
        best = (float("inf"), 0, 0)
        for waits in range(len(loading) + 1):
            for fetches in range(len(absent) + 1):
                arrivals = [seconds for seconds, _ in wait_until[:waits]]
                on_cpu = len(loading) - waits + len(absent) - fetches
                seconds = self.layer_seconds(hits, on_cpu, rows, arrivals, fetches, begin)
                best = min(best, (seconds, fetches, waits))
        _, fetches, waits = best
        if not loading and not begin:
            self._choices[key] = fetches
        return {expert: loading[expert] for _, expert in wait_until[:waits]}, absent[:fetches]

    def layer_seconds(
        self, hits: int, on_cpu: int, rows: int, arrivals: Sequence[float], fetches: int, begin: float
    ) -> float:
        """Return when a layer's experts are done.

        Args:
            hits, on_cpu: experts that begin at once, on the accelerator and on the CPU.
            arrivals: seconds until those on their way are there, soonest first.
            fetches: experts to be copied one after the other, from `begin` seconds on.
        """
        cost = self.cost
        cpu = cost.cpu_seconds(on_cpu, rows)
        cpu_rate, copy_rate = cost.hardware.shared()
        cpu_slowdown = cost.hardware.cpu_bandwidth / cpu_rate
        copy_slowdown = cost.hardware.copy_alone / copy_rate if on_cpu else 1.0
        gpu = cost.gpu_seconds(hits, rows)
        last = begin
        for arrival in arrivals:
            gpu = max(gpu, arrival * copy_slowdown) + cost.gpu_seconds(1, rows)
            last = max(last, arrival)
        for _ in range(fetches):
            last += cost.copy_seconds() * copy_slowdown
            gpu = max(gpu, last) + cost.gpu_seconds(1, rows)
        if fetches or arrivals:
            cpu = cpu * cpu_slowdown if cpu * cpu_slowdown < last else cpu + last * (1 - 1 / cpu_slowdown)
        return max(cpu, gpu)

    # What is measured

    def observe_cpu(self, experts: int, rows: int, seconds: float) -> None:
        """The CPU computed `experts` experts of a pass of `rows` rows."""
        self._observe("cpu", seconds, self._given.cpu_seconds(experts, rows))

    def observe_gpu(self, experts: int, rows: int, seconds: float) -> None:
        """The accelerator computed resident experts in one launch."""
        self._observe("gpu", seconds, self._given.gpu_seconds(experts, rows))

    def observe_copy(self, nbytes: int, seconds: float) -> None:
        """A copy took so long once it had begun."""
        self._observe("copy", seconds, self._given.copy_seconds(nbytes))

    def notice(self) -> str | None:
        """Return one line, once, when decisions have begun to follow the measurement."""
        return self._notices.pop(0) if self._notices else None

    def limit_seconds(self, served: Served) -> float:
        """Return the shortest time in which memories and link could have served experts."""
        return self._given.limit_seconds(served.hit_bytes, served.cpu_bytes, served.fetched_bytes)

    def _observe(self, part: str, seconds: float, expected: float) -> None:
        if not self.adapt or expected <= 0:
            return
        watch = self._watches[part]
        began = watch.note(seconds / expected)
        if not watch.following or (not began and not watch.moved()):
            return
        watch.followed = watch.ratio
        self.cost = self._given.slowed(**{p: w.followed for p, w in self._watches.items()})
        self._choices.clear()
        if began:
            self._notices.append(self._line(part))

    def _line(self, part: str) -> str:
        was, now = self._given.hardware, self.cost.hardware
        what, before, after = {
            "cpu": ("The CPU computes experts", was.cpu_bandwidth, now.cpu_bandwidth),
            "gpu": ("The GPU computes experts", was.gpu_bandwidth, now.gpu_bandwidth),
            "copy": ("Experts are copied to the GPU", was.copy_bandwidth, now.copy_bandwidth),
        }[part]
        return (
            f"{what} at {after / 1e9:.1f} GB/s, and {before / 1e9:.1f} GB/s were measured at the start: "
            "from now on this decides where experts are computed."
        )


class _Watch:
    """How far measured seconds are off, as a running average of measured over expected."""

    def __init__(self) -> None:
        self.ratio = 1.0
        self.followed = 1.0
        self.following = False
        self._off = 0

    def note(self, ratio: float) -> bool:
        """Take an observation; return whether from now on the measurement is followed."""
        self.ratio += SMOOTHING * (min(max(ratio, 0.1), 10.0) - self.ratio)
        self._off = self._off + 1 if max(self.ratio, 1 / self.ratio) > FOLLOW_FACTOR else 0
        if self.following or self._off < FOLLOW_AFTER:
            return False
        self.following = True
        return True

    def moved(self) -> bool:
        """Return whether the average is a tenth away from what is followed."""
        return not 0.9 < self.ratio / self.followed < 1.1
