"""Decides, for each expert that a layer needs: computed on the accelerator, in place on the CPU, or after a copy.

Contract: `plan_layer` is pure arithmetic over the cache's state, the cost model and the copies under way. It moves
slots of the cache from one state to the next; the caller copies and computes. The same code runs in the engine and, on
a virtual clock, in `mixq.plan.replay`. It knows no tensor, thread or clock.

How `auto` decides: missing experts of a layer are of one size, so only how many of them are copied matters. It tries
every number, with each number of experts whose copies are under way, and takes the one with which the layer is done
first; that a copied expert stays counts in its favour. A copy in the background takes bandwidth of the host's RAM from
the CPU, so an expert is admitted only if the uses that this gains (`admission.Ledger`) save more time than it costs.
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
"""Bytes after which a background copy lets a demanded one pass: 0.2 ms at 20 GB/s."""

BACKGROUND = 2
"""Background copies that may wait at once; more would arrive too late to be of use."""

SMOOTHING = 0.02
"""Weight of a layer in the running averages of what a hit saves and of how busy the CPU is."""


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """Where the experts of one layer are computed.

    Attributes:
        hits: expert: slot; on the accelerator, now. Their slots are acquired.
        waits: expert: slot that is loading; on the accelerator, once it has arrived.
        fetches: expert: slot it was given; copied, then on the accelerator. None: through a staging buffer.
        cpu: in place.
        admissions: expert: slot; copied in the background, for later. They are among `cpu`.
    """

    hits: dict[int, int]
    waits: dict[int, int]
    fetches: dict[int, int | None]
    cpu: tuple[int, ...]
    admissions: dict[int, int]


class Copies(Protocol):
    """The copies to the accelerator that are under way."""

    def demand_seconds(self) -> float:
        """Return the seconds until a copy that is demanded now could begin."""

    def remaining_seconds(self, layer: int, expert: int) -> float:
        """Return the seconds until a copy would be complete if it were demanded now."""

    def room(self) -> bool:
        """Return whether one more copy may wait in the background."""


class Scheduler:
    """Plans layers by a cost model, which follows the measurements if they differ much.

    Args:
        cost: of this model on this machine.
        miss: auto, cpu or fetch.
        adapt: whether the cost model may follow the measurements.

    Attributes:
        calibrated, cost: the cost model that was given, and the one in use.
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
        """Return where the experts that a layer needs are computed.

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
        # An expert that is not worth a slot passes through a staging buffer.
        fetches = {g.expert: cache.begin_load(layer, g.expert) if g.soon > 0 else None for g in gains[:count]}
        worth_it = [g.expert for g in gains[count:] if self._pays(g, price)]
        admissions = self._admit(cache, layer, worth_it, clock)
        cpu = tuple(e for e in needed if not (e in hits or e in waits or e in fetches))
        return LayerPlan(hits, waits, fetches, cpu, admissions)

    def plan_prefetch(self, cache: ExpertCache, layer: int, predicted: Sequence[int], clock: Copies) -> dict[int, int]:
        """Return the experts to copy in the background because a layer is predicted to need them: expert: slot."""
        absent = [expert for expert in predicted if cache.state(layer, expert) is None]
        # If copying is quicker than computing here, it will be copied anyway, and sooner is better.
        if self.miss == "auto" and self.cost.copy_seconds() > self.cost.cpu_seconds(1):
            if self._ledger is None:
                return {}
            price = self._price()
            absent = [g.expert for g in self._ledger.worth(cache, layer, absent) if self._pays(g, price)]
        return self._admit(cache, layer, absent, clock)

    def _admit(self, cache: ExpertCache, layer: int, newcomers: Sequence[int], clock: Copies) -> dict[int, int]:
        """Give the first newcomer a slot if the background has room: one a layer, as copies are slower than layers."""
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
        """Return which of the loading ones are waited for, and how many of the absent ones are fetched."""
        # A fetch gets no more credit for staying than an admission, which would keep the expert too, costs.
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
        """Return what absent experts gain by staying, the most first, and note the layer's pass."""
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
        """Return whether a copy in the background gains more than it costs."""
        return gain.soon > 0 and gain.lasting * self._hit_saves > price

    def _price(self) -> float:
        """Return the seconds that the CPU loses to a copy in the background."""
        return self._cpu_share * self.cost.copy_costs_cpu()

    # What is measured

    def observe_cpu(self, experts: int, rows: int, seconds: float) -> None:
        """Note the seconds in which the CPU computed `experts` experts for `rows` rows."""
        cpu_rate, _ = self.calibrated.hardware.shared()
        alone = self.calibrated.cpu_seconds(experts, rows)
        self._observe("cpu", seconds, alone, alone * self.calibrated.hardware.cpu_bandwidth / cpu_rate)

    def observe_copy(self, nbytes: int, seconds: float) -> None:
        """Note how long a copy took once it had begun."""
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
        """Return one line, once, when the cost model has begun to follow the measurements."""
        return None if self._drift is None else self._drift.notice()
