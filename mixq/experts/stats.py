"""Statistics of a run's experts, as plain data for events and `--json`: hits, copies, and seconds per device.

Contract: `mixq.experts.telemetry` counts; `since` returns the difference of two snapshots. Seconds are wall time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(slots=True)
class ExpertCounters:
    """Totals since the model was loaded."""

    # requests, hits: experts needed in decode, and those that were in a slot
    requests: int = 0
    hits: int = 0
    # waits, fetches, on_cpu: the others: already being copied, copied on demand, or computed on the CPU
    waits: int = 0
    fetches: int = 0
    on_cpu: int = 0
    # prefill_resident, prefill_streamed, prefill_on_cpu: the same for prompts, whose experts serve many tokens
    prefill_resident: int = 0
    prefill_streamed: int = 0
    prefill_on_cpu: int = 0
    uploaded_bytes: int = 0  # copied to the accelerator, including background copies
    # hit_bytes, cpu_bytes, fetched_bytes: weights that decode used, by place
    hit_bytes: int = 0
    cpu_bytes: int = 0
    fetched_bytes: int = 0
    # cpu_seconds, gpu_seconds, copy_seconds: how long each was busy
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    copy_seconds: float = 0.0
    wait_seconds: float = 0.0  # while the CPU only waited for a copy
    overlap_seconds: float = 0.0  # when at least two of the three were busy

    def since(self, earlier: ExpertCounters) -> ExpertCounters:
        """Return the difference to `earlier`."""
        return ExpertCounters(**{f.name: getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)})

    @property
    def hit_rate(self) -> float | None:
        """Share of decode's experts that were in a slot; None before the first."""
        return self.hits / self.requests if self.requests else None


@dataclass(frozen=True, slots=True)
class ExpertStats:
    """The statistics of an answer."""

    counters: ExpertCounters
    # share of the used experts that were predicted, by the number of layers ahead
    recall: Mapping[int, float] = field(default_factory=dict)
    # the shortest time in which memories and link could have served decode's experts: the longest of hit bytes over the
    # GPU's bandwidth, CPU bytes over the RAM's, fetched bytes over the link's. None if the bandwidths are not known.
    limit_seconds: float | None = None

    @classmethod
    def joined(cls, parts: Sequence[ExpertStats]) -> ExpertStats:
        """Return the sum of statistics; recall is that of the last."""
        names = [f.name for f in fields(ExpertCounters)]
        counters = ExpertCounters(**{name: sum(getattr(p.counters, name) for p in parts) for name in names})
        limits = [part.limit_seconds for part in parts if part.limit_seconds is not None]
        return cls(counters, parts[-1].recall, sum(limits) if limits else None)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            **asdict(self.counters),
            "hit_rate": self.counters.hit_rate,
            "recall": {str(ahead): value for ahead, value in self.recall.items()},
            "limit_seconds": self.limit_seconds,
        }

    def line(self) -> str:
        """Return the line for the chat; empty if decode used no expert."""
        counters = self.counters
        if counters.hit_rate is None:
            return ""
        parts = [f"experts: {counters.hit_rate:.0%} hits"]
        if counters.on_cpu:
            parts.append(f"{counters.on_cpu / counters.requests:.0%} on the CPU")
        if (counters.fetches + counters.waits) / counters.requests >= 0.005:
            parts.append(f"{(counters.fetches + counters.waits) / counters.requests:.0%} waited for")
        if 1 in self.recall:
            parts.append(f"{self.recall[1]:.0%} predicted")
        parts.append(f"{counters.uploaded_bytes / 1e9:.2f} GB copied to the GPU")
        return " · ".join(parts)
