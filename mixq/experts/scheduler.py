"""Decides for each expert of a layer: compute it on the accelerator, on the CPU, or after a copy.

Contract: `plan_layer` computes from the cache's state, the cost model and the running copies. It changes the states of
the cache's slots; the caller copies and computes. The same code runs in the engine and, with a virtual clock, in
`mixq.plan.replay`. No tensors, threads or clocks here.

How `auto` decides: the missing experts of a layer have the same size, so only the number of copies matters. It tries
every number, with each number of running copies, and takes the one that finishes the layer first, with a bonus for
copied experts, since they stay. A background copy takes RAM bandwidth from the CPU, so an expert is admitted only if
the uses gained (`admission.Ledger`) save more time than the copy costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mixq.experts.admission import Ledger, Worth
from mixq.experts.cache import ExpertCache
from mixq.experts.cost import CostModel
from mixq.experts.drift import Drift

CHUNK = 4 << 20
"""Bytes after which a background copy yields to a demanded one: 0.2 ms at 20 GB/s."""

BACKGROUND = 2
"""Most waiting background copies; more would arrive too late to be useful."""

SMOOTHING = 0.02
"""Weight of a layer in the running averages of the time saved by a hit and of the CPU's load."""


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """The plan for the experts of one layer."""

    hits: dict[int, int]  # expert: slot; on the accelerator, now. Their slots are acquired.
    waits: dict[int, int]  # expert: loading slot; on the accelerator, when it has arrived
    # expert: its new slot; copied, then on the accelerator. None: through a staging buffer.
    fetches: dict[int, int | None]
    cpu: tuple[int, ...]  # on the CPU
    admissions: dict[int, int]  # expert: slot; copied in the background, for later tokens. They are also in `cpu`.


class Copies(Protocol):
    """The running copies to the accelerator."""

    def demand_seconds(self) -> float:
        """Return the seconds until a copy demanded now could start."""

    def remaining_seconds(self, layer: int, expert: int) -> float:
        """Return the seconds until a copy would be complete if it were demanded now."""

    def room(self) -> bool:
        """Return whether another background copy may wait."""


class Scheduler:
    """Plans layers with a cost model, which follows the measurements if they differ a lot.

    Args:
        cost: of this model on this machine.
        miss: auto, cpu or fetch.
        adapt: whether the cost model may follow the measurements.

    Attributes:
        calibrated, cost: the given cost model, and the one in use.
    """

    def __init__(self, cost: CostModel, miss: str = "auto", *, adapt: bool = True) -> None:
        self.miss = miss
        self._drift = Drift(cost) if adapt else None
        self.calibrated = cost
        self._ledger: Ledger | None = None
        self._cpu_share = 0.0  # of the time, if the CPU computed every miss
        self._hit_saves = 0.0  # seconds
        self._use(cost)

    def _use(self, cost: CostModel) -> None:
        self.cost = cost
        self._options: dict[tuple[int, int, int], tuple[float, ...]] = {}
        self._between_layers = cost.trunk_seconds() + cost.hardware.handover_seconds

    # Decisions

    def plan_layer(self, cache: ExpertCache, layer: int, needed: Sequence[int], rows: int, clock: Copies) -> LayerPlan:
        """Return the plan for the experts that a layer needs.

        Args:
            needed: distinct experts, in the order of the rows.
            rows: tokens of the forward pass.

        The caller releases hits, finishes loads, and acquires slots that it waited for.
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
            fetches = {expert: cache.begin_load(layer, expert) for expert in absent}
            return LayerPlan(hits, loading, fetches, (), {})
        if self.miss == "cpu":
            admissions = self._admit(cache, layer, absent, clock)
            return LayerPlan(hits, {}, {}, tuple(e for e in needed if e not in hits), admissions)
        gains = self._gains(cache, layer, needed, len(hits), absent, rows)
        if not (loading or absent):
            return LayerPlan(hits, {}, {}, (), {})
        price = self._price()
        waits, count = self._divide(layer, len(hits), loading, gains, price, rows, clock)
        # An expert that is not worth a slot goes through a staging buffer.
        fetches = {g.expert: cache.begin_load(layer, g.expert) if g.soon > 0 else None for g in gains[:count]}
        worth_it = [g.expert for g in gains[count:] if self._pays(g, price)]
        admissions = self._admit(cache, layer, worth_it, clock)
        cpu = tuple(e for e in needed if not (e in hits or e in waits or e in fetches))
        return LayerPlan(hits, waits, fetches, cpu, admissions)

    def plan_prefetch(self, cache: ExpertCache, layer: int, predicted: Sequence[int], clock: Copies) -> dict[int, int]:
        """Return the experts to copy in the background because a layer is predicted to need them: expert: slot."""
        absent = [expert for expert in predicted if cache.state(layer, expert) is None]
        # If copying is faster than computing on the CPU, it will be copied anyway, and earlier is better.
        if self.miss == "auto" and self.cost.copy_seconds() > self.cost.cpu_seconds(1):
            if self._ledger is None:
                return {}
            price = self._price()
            absent = [g.expert for g in self._ledger.worth(cache, layer, absent) if self._pays(g, price)]
        return self._admit(cache, layer, absent, clock)

    def _admit(self, cache: ExpertCache, layer: int, newcomers: Sequence[int], clock: Copies) -> dict[int, int]:
        """Give the first new expert a slot if another background copy may wait: one per layer, as copies are slower
        than layers."""
        if newcomers and clock.room():
            slot = cache.begin_load(layer, newcomers[0])
            if slot is not None:
                return {newcomers[0]: slot}
        return {}

    def _divide(
        self,
        layer: int,
        hits: int,
        loading: dict[int, int],
        gains: Sequence[Worth],
        price: float,
        rows: int,
        clock: Copies,
    ) -> tuple[dict[int, int], int]:
        """Return which loading experts to wait for, and how many absent ones to fetch."""
        # A fetch's bonus for staying is at most the cost of an admission, which would keep the expert too.
        most = price if clock.room() else float("inf")
        stays = [0.0]
        for gain in gains:
            stays.append(stays[-1] + min(max(gain.soon * self._hit_saves, 0.0), most))
        begin = clock.demand_seconds()
        if not loading and not begin:
            options = self._by_fetches(hits, len(gains), rows)
            return {}, min(range(len(options)), key=lambda fetches: options[fetches] - stays[fetches])
        wait_until = sorted((clock.remaining_seconds(layer, expert), expert) for expert in loading)
        best = (float("inf"), 0, 0)
        for waits in range(len(loading) + 1):
            arrivals = [seconds for seconds, _ in wait_until[:waits]]
            for fetches in range(len(gains) + 1):
                on_cpu = len(loading) - waits + len(gains) - fetches
                seconds = self.cost.layer_seconds(hits, on_cpu, fetches, rows=rows, arrivals=arrivals, begin=begin)
                best = min(best, (seconds - stays[fetches], fetches, waits))
        _, fetches, waits = best
        return {expert: loading[expert] for _, expert in wait_until[:waits]}, fetches

    def _by_fetches(self, hits: int, missing: int, rows: int) -> tuple[float, ...]:
        """Return the seconds of a layer by how many of the missing experts are fetched, with no copies under way."""
        key = (hits, missing, rows)
        if key not in self._options:
            self._options[key] = tuple(
                self.cost.layer_seconds(hits, missing - fetches, fetches, rows=rows) for fetches in range(missing + 1)
            )
        return self._options[key]

    # What a slot is worth

    def _gains(
        self, cache: ExpertCache, layer: int, needed: Sequence[int], hits: int, absent: Sequence[int], rows: int
    ) -> list[Worth]:
        """Return the gains of absent experts, the largest first, and record the layer's use."""
        if self._ledger is None:
            self._ledger = Ledger(len(cache.quotas), cache.experts)
        self._ledger.note(cache, layer, needed)
        missing, share = len(needed) - hits, 0.0
        if missing:
            options = self._by_fetches(hits, missing, rows)
            share = self.cost.cpu_seconds(missing, rows) / (options[0] + self._between_layers)
            saved = min(options) - min(self._by_fetches(hits + 1, missing - 1, rows))
            self._hit_saves += SMOOTHING * (saved - self._hit_saves)
        self._cpu_share += SMOOTHING * (share - self._cpu_share)
        return self._ledger.worth(cache, layer, absent)

    def _pays(self, gain: Worth, price: float) -> bool:
        """Return whether a background copy gains more than it costs."""
        return gain.soon > 0 and gain.lasting * self._hit_saves > price

    def _price(self) -> float:
        """Return the seconds by which a background copy delays the CPU."""
        return self._cpu_share * self.cost.copy_costs_cpu()

    # What is measured

    def observe_cpu(self, experts: int, rows: int, seconds: float) -> None:
        """Record the seconds in which the CPU computed `experts` experts for `rows` rows."""
        cpu_rate, _ = self.calibrated.hardware.shared()
        alone = self.calibrated.cpu_seconds(experts, rows)
        self._observe("cpu", seconds, alone, alone * self.calibrated.hardware.cpu_bandwidth / cpu_rate)

    def observe_copy(self, nbytes: int, seconds: float) -> None:
        """Record the duration of a copy."""
        _, copy_rate = self.calibrated.hardware.shared()
        alone = self.calibrated.copy_seconds(nbytes)
        self._observe("copy", seconds, alone, alone * self.calibrated.hardware.copy_alone / copy_rate)

    def _observe(self, part: str, seconds: float, alone: float, shared: float) -> None:
        """Compare with the expected range: from `alone` to `shared`, where CPU and copies share the RAM."""
        if self._drift is not None and alone > 0:
            cost = self._drift.note(part, seconds / min(max(seconds, alone), shared))
            if cost is not None:
                self._use(cost)

    def notice(self) -> str | None:
        """Return a line for the user, once, when the cost model starts to follow the measurements."""
        return None if self._drift is None else self._drift.notice()
