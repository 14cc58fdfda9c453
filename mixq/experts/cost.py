"""The cost model: seconds of experts on the CPU, on the accelerator and on the link between them.

Contract: computed from given speeds, measured (`mixq.experts.calibration`) or from data sheets
(`mixq.plan.presets`). Bytes, bytes per second, floating-point operations per second, seconds. The
scheduler, the planner and the replay share it. It imports neither torch nor numpy, and measures nothing.

The model is the roofline: an expert takes the time that its bytes need or the time that its rows' arithmetic needs,
whichever is longer. Uploads read host RAM too, so CPU and copies share its bandwidth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mixq.errors import UsageError


@dataclass(frozen=True, slots=True)
class Hardware:
    """The speeds of a computer with mixq's kernels and copies."""

    name: str  # for tables
    cpu_bandwidth: float  # bytes per second at which the CPU's kernels read experts with few rows
    cpu_flops: float  # of the CPU with many rows
    gpu_bandwidth: float  # bytes per second at which the accelerator's kernels read its memory
    gpu_flops: float  # of the accelerator with many rows
    copy_bandwidth: float  # from host memory to the accelerator, bytes per second
    copy_latency: float = 20e-6  # seconds added to each expert's copy
    handover_seconds: float = 60e-6  # to copy a hidden row and the router's choice to the host, and a result back
    launch_seconds: float = 15e-6  # until the accelerator starts a launch
    begin_seconds: float = 0.0  # for the host to start a background copy, before it computes
    ram_bandwidth: float = 0.0  # most that CPU and copies read together; 0: the CPU's bandwidth
    # whether the accelerator's memory is a part of the RAM, read at the cost of CPU and copies: a GPU on the
    # processor's chip, or a simulated one
    gpu_in_ram: bool = False
    disk_bandwidth: float | None = None  # of reads; None if the experts are in RAM

    def __post_init__(self) -> None:
        for field in ("cpu_bandwidth", "cpu_flops", "gpu_bandwidth", "gpu_flops", "copy_bandwidth"):
            if not 0 < getattr(self, field) < math.inf:
                raise UsageError(f"{field} is {getattr(self, field)!r}; it must be above 0.")
        for field in ("copy_latency", "handover_seconds", "launch_seconds", "begin_seconds", "ram_bandwidth"):
            if not 0 <= getattr(self, field) < math.inf:
                raise UsageError(f"{field} is {getattr(self, field)!r}; it must not be negative.")

    @property
    def ram(self) -> float:
        """Most bytes per second that CPU and copies read together."""
        return self.ram_bandwidth or self.cpu_bandwidth

    @property
    def copy_alone(self) -> float:
        """Bytes per second of a copy while the CPU reads nothing: no copy is faster than the RAM."""
        return min(self.copy_bandwidth, self.ram)

    def shared(self) -> tuple[float, float]:
        """Return the bytes per second of (CPU, copy) while both read, each in proportion to its separate rate."""
        share = min(1.0, self.ram / (self.cpu_bandwidth + self.copy_alone))
        return self.cpu_bandwidth * share, self.copy_alone * share


@dataclass(frozen=True, slots=True)
class ModelCost:
    """A model's sizes: bytes that one token reads, by place."""

    # layers, experts, active: of the model; experts of each layer, of which a token uses `active`
    layers: int
    experts: int
    active: int
    expert_bytes: int  # of one expert
    trunk_bytes: int  # of attention, norms and router, one layer
    head_bytes: int  # of the output head
    kv_bytes: int  # of one position in one layer's KV cache
    expert_flops: int  # of one expert for one row


@dataclass(frozen=True, slots=True)
class CostModel:
    """Seconds of a model's parts on a computer."""

    hardware: Hardware
    model: ModelCost

    def cpu_seconds(self, experts: int, rows: int = 1) -> float:
        """Return the seconds of `experts` experts on the CPU, with `rows` rows each, while nothing is copied."""
        nbytes, flops = self.model.expert_bytes, self.model.expert_flops
        return experts * max(nbytes / self.hardware.cpu_bandwidth, rows * flops / self.hardware.cpu_flops)

    def gpu_seconds(self, experts: int, rows: int = 1) -> float:
        """Return the seconds of `experts` resident experts on the accelerator in one launch, with `rows` rows each."""
        if not experts:
            return 0.0
        nbytes, flops = self.model.expert_bytes, self.model.expert_flops
        each = max(nbytes / self.hardware.gpu_bandwidth, rows * flops / self.hardware.gpu_flops)
        return self.hardware.launch_seconds + experts * each

    def copy_seconds(self, nbytes: int | None = None) -> float:
        """Return the seconds of a copy of some bytes, by default of an expert, while the CPU reads nothing."""
        size = self.model.expert_bytes if nbytes is None else nbytes
        return self.hardware.copy_latency + size / self.hardware.copy_alone

    def trunk_seconds(self, context: int = 0) -> float:
        """Return the seconds of a layer on the accelerator without its experts, with `context` positions to attend
        to."""
        nbytes = self.model.trunk_bytes + context * self.model.kv_bytes
        return self.hardware.launch_seconds + nbytes / self.hardware.gpu_bandwidth

    def head_seconds(self) -> float:
        """Return the seconds of the output head on the accelerator."""
        return self.hardware.launch_seconds + self.model.head_bytes / self.hardware.gpu_bandwidth

    def layer_seconds(
        self,
        hits: int,
        on_cpu: int,
        fetches: int,
        *,
        rows: int = 1,
        arrivals: Sequence[float] = (),
        begin: float = 0.0,
    ) -> float:
        """Return the seconds until the experts of a layer are done.

        Args:
            hits, on_cpu: experts that start at once, on the accelerator and on the CPU.
            fetches: experts that are copied one after the other, from `begin` seconds on, and computed as they arrive.
            rows: of each.
            arrivals: seconds until running copies of experts are complete, soonest first.
        """
        cpu = self.cpu_seconds(on_cpu, rows)
        cpu_rate, copy_rate = self.hardware.shared()
        slower = self.hardware.copy_alone / copy_rate if on_cpu else 1.0
        gpu = self.gpu_seconds(hits, rows)
        copied = begin
        for arrival in arrivals:
            copied = max(copied, arrival * slower)
            gpu = max(gpu, arrival * slower) + self.gpu_seconds(1, rows)
        for _ in range(fetches):
            copied += self.copy_seconds() * slower
            gpu = max(gpu, copied) + self.gpu_seconds(1, rows)
        if fetches or arrivals:
            share = cpu_rate / self.hardware.cpu_bandwidth
            cpu = cpu / share if cpu / share < copied else cpu + copied * (1 - share)
        return max(cpu, gpu)

    def copy_costs_cpu(self) -> float:
        """Return the seconds by which a copy of an expert delays the CPU, if it reads all the time."""
        cpu_rate, copy_rate = self.hardware.shared()
        return self.model.expert_bytes / copy_rate * (1 - cpu_rate / self.hardware.cpu_bandwidth)

    def limit_seconds(self, hit_bytes: float, cpu_bytes: float, fetched_bytes: float) -> float:
        """Return the shortest time in which memories and link can read these bytes of experts, all three at once."""
        return max(
            hit_bytes / self.hardware.gpu_bandwidth,
            cpu_bytes / self.hardware.cpu_bandwidth,
            fetched_bytes / self.hardware.copy_alone,
        )

    def slowed(self, *, cpu: float = 1.0, copy: float = 1.0) -> CostModel:
        """Return the costs with parts that take longer by these factors."""
        old = self.hardware
        hardware = replace(
            old,
            cpu_bandwidth=old.cpu_bandwidth / cpu,
            cpu_flops=old.cpu_flops / cpu,
            copy_bandwidth=old.copy_bandwidth / copy,
            copy_latency=old.copy_latency * copy,
            # The bandwidth of CPU and copies together does not shrink if one of them is slower.
            ram_bandwidth=max(old.ram, old.cpu_bandwidth / cpu),
        )
        return replace(self, hardware=hardware)
