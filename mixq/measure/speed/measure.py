"""Measures prompt and decode speed of a loaded model, one sample at a time.

Contract: `Bench.samples` runs the tests in turn, each after a warm-up, and yields one `Sample` for each repetition; the
bandwidth is probed before each. `Bench.rows` sums up the samples so far, so that a run can be interrupted at any point.
Token ids are random with a fixed seed; only the network is timed, not sampling and text, as in llama-bench.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from mixq.config import PREFILL_CHUNK, format_size
from mixq.engine.model import Model
from mixq.experts.stats import ExpertStats
from mixq.kernels.native_kernels import NativeKernels
from mixq.measure.speed.bandwidth import Bandwidth
from mixq.measure.speed.record import facts_of_run
from mixq.measure.speed.workload import (
    Workload,
    check_positions,
    decode_bytes,
    operations_per_token,
    weight_count,
)
from mixq.model.attention import Chunk
from mixq.plan.sizes import ModelSizes, prompt_operations
from mixq.system.load import Work
from mixq.system.memory import peak_memory

WARM_UP_STEPS = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """One repetition."""

    workload: Workload
    seconds: float  # wall time
    busy_seconds: float  # time inside the native kernels; 0 if it is not measured
    bandwidth: float = 0.0  # bytes per second of the probe just before; 0.0 without a probe
    experts: ExpertStats | None = None  # where experts were computed; None on the CPU alone
    # share of the processors that other programs have used since the test's first sample; None if unknown
    load: float | None = None

    @property
    def tokens_per_second(self) -> float:
        return self.workload.tokens / self.seconds


@dataclass(frozen=True, slots=True)
class Row:
    """All repetitions of one test."""

    workload: Workload
    tokens_per_second: float
    deviation: float  # standard deviation of the samples' tokens per second; 0.0 for a single one
    samples: tuple[float, ...]
    # bytes_per_token, bytes_per_second: read in a decode step; None for a prompt
    bytes_per_token: float | None = None
    bytes_per_second: float | None = None
    # median of bytes per second over the bandwidth just before the sample, which drifts on shared machines (by half
    # within a minute); None if it is not known. With an accelerator: the shortest time in which its memory, the RAM and
    # the link could have served the same experts at once, and its memory the rest, over the measured time.
    share_of_limit: float | None = None
    gflops: float | None = None  # operations of a prompt per second; None for decode
    # microseconds per layer and decode step outside the kernels; None if they are not measured
    overhead_us: float | None = None
    experts: ExpertStats | None = None  # where experts were computed, over all samples; None on the CPU alone
    # operations_per_token, read_per_token: of a token; a prompt reads the weights once for each of its chunks
    operations_per_token: float = 0.0
    read_per_token: float = 0.0
    load: float | None = None  # share of the processors that other programs used meanwhile; None if unknown


@dataclass(frozen=True, slots=True)
class Facts:
    """The measurements, and facts about the run."""

    model: str
    nbytes: int
    weights: int
    token_bytes: int
    layers: int
    backend: str
    threads: int
    kv: str
    context: int
    seed: int
    load_seconds: float


class Bench:
    """Tests of one model.

    Args:
        model: what to measure.
        tests: in the order in which they are run.
        repeats: samples of each test.
        seed: of the token ids.
        name: of the model; None: its folder's name.
        load_seconds: of loading, for the report.
        bandwidth: the probe; None creates one if the kernels are native.
        routing: how experts are chosen, for the report.

    Raises:
        UsageError: a test needs more positions than the model or the context has.
        DoesNotFitError: no memory for the probe or the KV cache.
    """

    def __init__(
        self,
        model: Model,
        tests: Sequence[Workload],
        *,
        repeats: int = 5,
        seed: int = 0,
        name: str | None = None,
        load_seconds: float = 0.0,
        bandwidth: Bandwidth | None = None,
        routing: str = "model",
    ) -> None:
        check_positions(tests, model.context, model.config.max_position_embeddings)
        self.model = model
        self.tests = list(tests)
        self.repeats = repeats
        if bandwidth is None and isinstance(model.placement.host_kernels, NativeKernels):
            bandwidth = Bandwidth(model.placement.host_kernels)
        self.bandwidth = bandwidth
        self._kv_cache = model.new_kv_cache()
        self._kv_bytes = self._kv_cache.nbytes // self._kv_cache.capacity
        longest = max(test.positions for test in tests)
        self._ids = torch.randint(model.config.vocab_size, (longest,), generator=torch.Generator().manual_seed(seed))
        self._sizes = ModelSizes.of_weights(model.folder)
        self._samples: list[Sample] = []
        self._about = facts_of_run(model, routing)
        self.facts = Facts(
            model=name or model.folder.path.name,
            nbytes=model.folder.nbytes,
            weights=weight_count(model.config),
            token_bytes=self._sizes.token,
            layers=model.config.num_hidden_layers,
            backend=_backend(model),
            threads=model.threads,
            kv=model.options.kv,
            context=model.context,
            seed=seed,
            load_seconds=load_seconds,
        )

    def samples(self) -> Iterator[Sample]:
        """Run everything."""
        for test in self.tests:
            self._go_to(test.depth)
            self._run(test, test.prompt or min(test.gen, WARM_UP_STEPS))
            begun_test = Work.now()
            for _ in range(self.repeats):
                bandwidth = self.bandwidth.probe() if self.bandwidth is not None else 0.0
                offload = self.model.placement.offload
                before = offload.telemetry.snapshot() if offload is not None else None
                busy = self.model.kernels.busy_ns()
                begun = time.perf_counter()
                self._run(test, test.tokens)
                seconds = time.perf_counter() - begun
                busy_seconds = (self.model.kernels.busy_ns() - busy) / 1e9
                experts = offload.telemetry.stats_since(before) if offload is not None and before is not None else None
                load = Work.now().of_others(begun_test)
                sample = Sample(test, seconds, busy_seconds, bandwidth, experts, load)
                self._samples.append(sample)
                yield sample

    def rows(self) -> list[Row]:
        """Return the results of the samples so far, test by test."""
        by_test = {test: [sample for sample in self._samples if sample.workload == test] for test in self.tests}
        return [self._row(test, samples) for test, samples in by_test.items() if samples]

    def as_dict(self) -> dict[str, Any]:
        """Return the facts of the whole run."""
        return {
            **asdict(self.facts),
            "bandwidth_bytes_per_second": self.bandwidth.best if self.bandwidth is not None else None,
            "bandwidth_buffer_bytes": self.bandwidth.nbytes if self.bandwidth is not None else None,
            "peak_memory_bytes": peak_memory(),
            **self._about,
        }

    def _go_to(self, depth: int) -> None:
        """Fill the KV cache up to `depth`, keeping its content."""
        self._kv_cache.truncate(min(depth, self._kv_cache.length))
        self._forward(self._kv_cache.length, depth, PREFILL_CHUNK)

    def _run(self, test: Workload, tokens: int) -> None:
        """Run the first `tokens` of the test, at its depth."""
        self._kv_cache.truncate(test.depth)
        self._forward(test.depth, test.depth + tokens, PREFILL_CHUNK if test.prompt else 1)

    def _forward(self, first: int, end: int, at_once: int) -> None:
        if first < end:
            for ids in torch.split(self._ids[first:end], at_once):
                self.model.network.forward([Chunk(ids, self._kv_cache)])

    def _row(self, test: Workload, samples: Sequence[Sample]) -> Row:
        speeds = tuple(sample.tokens_per_second for sample in samples)
        mean = statistics.fmean(speeds)
        stats = [sample.experts for sample in samples if sample.experts is not None]
        row = Row(
            test,
            mean,
            statistics.stdev(speeds) if len(speeds) > 1 else 0.0,
            speeds,
            experts=ExpertStats.joined(stats) if stats else None,
            operations_per_token=operations_per_token(self.model.config, test),
            load=samples[-1].load,
        )
        if test.prompt:
            gflops = prompt_operations(self.model.config, test.tokens, test.depth) / test.tokens * mean / 1e9
            passes = -(-test.prompt // PREFILL_CHUNK)
            return replace(row, gflops=gflops, read_per_token=self.facts.nbytes * passes / test.prompt)
        bytes_per_token = decode_bytes(self._sizes, self._kv_bytes, test)
        outside = statistics.fmean(sample.seconds - sample.busy_seconds for sample in samples)
        counted = any(sample.busy_seconds for sample in samples) and self.model.placement.offload is None
        return replace(
            row,
            bytes_per_token=bytes_per_token,
            read_per_token=bytes_per_token,
            bytes_per_second=bytes_per_token * mean,
            share_of_limit=self._share_of_limit(test, samples, bytes_per_token),
            overhead_us=outside * 1e6 / (test.tokens * self.model.config.num_hidden_layers) if counted else None,
        )

    def _share_of_limit(self, test: Workload, samples: Sequence[Sample], bytes_per_token: float) -> float | None:
        """Return the median over the samples; see `Row`."""
        offload = self.model.placement.offload
        if offload is None:
            shares = [bytes_per_token * s.tokens_per_second / s.bandwidth for s in samples if s.bandwidth]
        else:
            config = self.model.config
            experts = config.num_experts_per_tok * sum(map(offload.store.expert_bytes, range(config.num_hidden_layers)))
            rest = (bytes_per_token - experts) * test.tokens / offload.scheduler.cost.hardware.gpu_bandwidth
            limits = [(s.experts.limit_seconds, s.seconds) for s in samples if s.experts is not None]
            shares = [(limit + rest) / seconds for limit, seconds in limits if limit is not None]
        return statistics.median(shares) if shares else None


def _backend(model: Model) -> str:
    """Return device and kernels, as text."""
    host = f"CPU {model.placement.host_kernels.name}"
    accelerator = model.placement.accelerator
    if accelerator is None:
        return host
    return f"{accelerator.name} {format_size(accelerator.memory.budget)} + {host}"
