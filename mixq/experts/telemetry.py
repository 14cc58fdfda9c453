"""Counts the work of a model's experts while it runs: devices, copies, seconds, predictions.

Contract: called after the work, by the thread that runs the network; decides nothing. Passes times on to the scheduler,
which compares them with its cost model.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from mixq.experts.accelerators.interface import Launch
from mixq.experts.lookahead import Recall
from mixq.experts.scheduler import LayerPlan, Scheduler
from mixq.experts.stats import ExpertCounters, ExpertStats
from mixq.experts.store import ExpertStore
from mixq.experts.transfer import Upload, Uploader
from mixq.kernels.reference import DECODE_ROWS

Interval = tuple[float, float]

COMPARABLE = 0.5e-3
"""Times of shorter experts are not compared with the calibration: the work around them takes longer."""

_RECENT = 4096
"""Most stored intervals."""


class ExpertTelemetry:
    """Counters of a model of which a token uses `active` experts in a layer.

    Attributes:
        counters: totals since the model was loaded; `snapshot` brings copies up to date.
        recall: of predictions.
    """

    def __init__(self, store: ExpertStore, active: int, scheduler: Scheduler, uploader: Uploader) -> None:
        self.counters = ExpertCounters()
        self.recall = Recall()
        self._store, self._active, self._scheduler, self._link = store, active, scheduler, uploader.link
        self._comparable = store.slot_bytes / scheduler.cost.hardware.cpu_bandwidth >= COMPARABLE
        self._counts = True
        self._predictions: dict[int, dict[int, list[int]]] = {}
        self._cpu_busy: deque[Interval] = deque(maxlen=_RECENT)
        self._gpu_busy: deque[Interval] = deque(maxlen=_RECENT)
        self._since = time.perf_counter()

    # Where experts were computed

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Do not count layers whose experts are all in slots."""
        self._counts = False
        try:
            yield
        finally:
            self._counts = True

    def count_whole_step(self) -> None:
        """Count a token whose experts were all in slots, in every layer."""
        for layer in range(self._store.layers):
            self.count_resident(layer, self._active)

    def count_resident(self, layer: int, experts: int) -> None:
        """Count experts of decode that were all in slots."""
        if not self._counts:
            return
        self.counters.requests += experts
        self.counters.hits += experts
        self.counters.hit_bytes += experts * self._store.expert_bytes(layer)

    def count_decode(self, layer: int, plan: LayerPlan) -> None:
        """Count where a layer's experts were computed in decode."""
        counters, nbytes = self.counters, self._store.expert_bytes(layer)
        hits, waits, fetches, on_cpu = len(plan.hits), len(plan.waits), len(plan.fetches), len(plan.cpu)
        counters.hits += hits
        counters.waits += waits
        counters.fetches += fetches
        counters.on_cpu += on_cpu
        counters.requests += hits + waits + fetches + on_cpu
        counters.hit_bytes += nbytes * hits
        counters.cpu_bytes += nbytes * on_cpu
        counters.fetched_bytes += nbytes * (waits + fetches)

    def count_prefill(self, plan: LayerPlan) -> None:
        """Count where a layer's experts were computed in prefill."""
        self.counters.prefill_resident += len(plan.hits)
        self.counters.prefill_streamed += len(plan.waits) + len(plan.fetches)
        self.counters.prefill_on_cpu += len(plan.cpu)

    # Predictions

    def note_prediction(self, layer: int, ahead: int, experts: Sequence[int]) -> None:
        """Record the prediction for a layer, to compare it with the router's choice."""
        self._predictions.setdefault(layer, {})[ahead] = list(experts)

    def note_choice(self, layer: int, experts: Sequence[int]) -> None:
        """Compare a layer's routed experts with the predictions."""
        for ahead, predicted in self._predictions.pop(layer, {}).items():
            self.recall.record(layer, ahead, predicted, experts)

    # Times

    def note_launch(self, launch: Launch) -> None:
        """Count the accelerator's time."""
        begun, ended = launch.busy
        self._gpu_busy.append((begun, ended))
        self.counters.gpu_seconds += ended - begun

    def note_cpu(self, experts: int, rows: int, begun: float, ended: float) -> None:
        """Count the CPU's time for experts."""
        self._cpu_busy.append((begun, ended))
        self.counters.cpu_seconds += ended - begun
        if rows <= DECODE_ROWS and self._comparable:
            self._scheduler.observe_cpu(experts, rows, ended - begun)

    def note_copy(self, upload: Upload) -> None:
        """Let the scheduler check the rate of copies, after one has arrived."""
        if self._link.measured and self._comparable:
            self._scheduler.observe_copy(upload.nbytes, upload.nbytes / self._link.rate)

    # Results

    def snapshot(self) -> ExpertCounters:
        """Return a copy of the counters, for `stats_since`."""
        copies, since = list(self._link.busy), self._since
        self._since = time.perf_counter()
        self.counters.uploaded_bytes = self._link.nbytes
        self.counters.copy_seconds += sum(end - max(begin, since) for begin, end in copies if end > since)
        self.counters.overlap_seconds += overlapping([self._cpu_busy, self._gpu_busy, copies], since)
        return replace(self.counters)

    def stats_since(self, earlier: ExpertCounters) -> ExpertStats:
        """Return the statistics since a snapshot."""
        counters = self.snapshot().since(earlier)
        limit = self._scheduler.calibrated.limit_seconds(counters.hit_bytes, counters.cpu_bytes, counters.fetched_bytes)
        return ExpertStats(counters, self.recall.by_lookahead(), limit)


def overlapping(groups: Iterable[Iterable[Interval]], since: float = 0.0) -> float:
    """Return the seconds after `since` in which at least two of the groups were busy."""
    edges: list[tuple[float, int, int]] = []
    for group, intervals in enumerate(groups):
        for begin, end in intervals:
            if end > max(begin, since):
                edges += [(max(begin, since), 1, group), (end, -1, group)]
    edges.sort(key=lambda edge: edge[0])
    depth: dict[int, int] = {}
    total, last = 0.0, 0.0
    for moment, step, group in edges:
        if sum(count > 0 for count in depth.values()) >= 2:
            total += moment - last
        depth[group] = depth.get(group, 0) + step
        last = moment
    return total
