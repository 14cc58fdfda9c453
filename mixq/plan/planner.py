"""Predicts a model's speed and memory use on a computer, before anything is loaded or downloaded.

Contract: computed from sizes (`mixq.plan.sizes`) and a computer's figures (`mixq.plan.computer`). `mixq.plan.shares`
divides the memory; cache hits come from simulating the cache's policies on synthetic routing (`mixq.plan.replay`).
Nothing is measured here, and no weight is read.

The expected speed is that of routing as reported for Mixtral, with the context half full. The range goes from uniform
routing on a machine 10 % slower to Mixtral's routing on a machine 10 % faster.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mixq.config import RuntimeOptions
from mixq.errors import DoesNotFitError, UsageError, printable
from mixq.experts.memory_plan import MemoryPlan
from mixq.experts.quota import even
from mixq.experts.routing import draw_trace, parse_routing
from mixq.plan.computer import Computer
from mixq.plan.replay import Trace, replay, replay_hits
from mixq.plan.shares import GPU, RAM, Shares, rows_of, share_out
from mixq.plan.sizes import ModelSizes, prompt_operations

SLACK = 0.1
OVERHEAD = "work around the kernels"
"""The name of Python's time in `bottleneck` and `seconds` of --json."""

FROM_DISK = "reading experts from the disk"
TO_GPU = "copies to the GPU"
ON_GPU = "reading weights on the GPU"
_TOKENS = 160  # of synthetic routing
_SMALL = 1 << 20  # weights of a matrix below which the engine computes on one thread


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens per second."""

    # low, expected, high: the expected speed and its range
    low: float
    expected: float
    high: float
    bottleneck: str  # the part that takes most of the time
    parts: Mapping[str, float]  # seconds of a token by cause; parts of a GPU's step overlap

    @property
    def limit(self) -> str:
        """The bottleneck, as text."""
        return "Python overhead" if self.bottleneck == OVERHEAD else self.bottleneck

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "tokens_per_second": self.expected,
            "low": self.low,
            "high": self.high,
            "bottleneck": self.bottleneck,
            "seconds": dict(self.parts),
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """The memory and speed predicted for a model on a computer."""

    sizes: ModelSizes
    computer: Computer
    options: RuntimeOptions
    device: str  # cpu, cuda or sim
    shares: Shares
    hit_rate: float | None  # expected share of expert lookups that hit GPU memory; None without slots
    decode: Speed
    prefill: Speed
    prompt: int  # tokens of the prompt of `prefill`
    notes: tuple[str, ...] = ()  # sentences for the user

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        memory, options = self.shares.memory, self.options
        return {
            "model": self.sizes.name,
            "format": self.sizes.format,
            "weights_bytes": self.sizes.total,
            "token_bytes": self.sizes.token,
            "computer": self.computer.name,
            "computer_load": self.computer.load,
            "device": self.device,
            "context": options.context,
            "kv": options.kv,
            "sequences": options.sequences,
            "places": [{"where": p.where, "what": p.what, "bytes": p.nbytes} for p in self.shares.places],
            "vram_bytes": self.shares.total(GPU),
            "vram_promised_bytes": None if memory is None else memory.budget,
            "ram_bytes": self.shares.total(RAM),
            "expert_slots": 0 if memory is None else memory.slots,
            "slots_by_layer": [] if memory is None else list(memory.quotas),
            "experts": self.sizes.expert_count,
            "experts_in_ram": self.shares.experts_in_ram,
            "hit_rate": self.hit_rate,
            "decode": self.decode.as_dict(),
            "prefill": {**self.prefill.as_dict(), "prompt_tokens": self.prompt},
            "notes": list(self.notes),
        }


def plan(sizes: ModelSizes, computer: Computer, options: RuntimeOptions, *, routing: str = "mixtral") -> Plan:
    """Return the memory and speed predicted for a model.

    Args:
        sizes: of the model in its format.
        computer: for `--device sim`, its `gpu` has the figures of the simulated accelerator.
        options: context, budgets and so on; a context beyond the model's is reduced, as in the engine.
        routing: how experts are assumed to be chosen, see `mixq.experts.routing`.

    Raises:
        UsageError: the computer does not have the device.
        DoesNotFitError: the weights that every token uses do not fit.
    """
    options = replace(options, context=min(options.context, sizes.config.max_position_embeddings))
    gpu = computer.gpu
    if options.device in ("cuda", "sim") and gpu is None:
        raise UsageError(f"{printable(computer.name)} has no GPU.", hint="Use --device cpu.")
    ram = computer.ram if computer.ram_free is None else computer.ram_free
    notes: tuple[str, ...] = ()
    device = "cpu" if options.device == "cpu" or gpu is None else "sim" if options.device == "sim" else "cuda"
    if gpu is not None and device != "cpu":
        try:
            shares = share_out(sizes, options, device, ram, gpu.memory if gpu.free is None else gpu.free)
        except DoesNotFitError as error:
            if options.device != "auto" or options.vram is not None:
                raise
            device, notes = "cpu", (f"The model runs on the CPU: {error.message}",)
    if device == "cpu":
        shares = share_out(sizes, options, device, ram)
    estimates = _Estimates(sizes, computer, options, shares, device, routing)
    decode, prefill, rows = estimates.decode(), estimates.prefill(), rows_of(options)
    estimates.add_disk(decode, prefill)
    speeds = decode.speed(1), prefill.speed(rows)
    notes += (*computer.marks, *shares.notes)
    return Plan(sizes, computer, options, device, shares, estimates.hit_rate(), *speeds, rows, notes)


@dataclass(slots=True)
class _Estimate:
    """Seconds of a forward pass: expected, at worst, and of its parts."""

    seconds: float
    slowest: float
    parts: dict[str, float]

    @classmethod
    def of(cls, parts: Mapping[str, float]) -> _Estimate:
        """Return the sum of parts that do not overlap."""
        return cls(sum(parts.values()), sum(parts.values()), dict(parts))

    def add(self, what: str, seconds: float) -> None:
        """Add a part that does not overlap with others."""
        self.seconds += seconds
        self.slowest += seconds
        self.parts[what] = seconds

    def speed(self, tokens: int) -> Speed:
        """Return the tokens per second of a forward pass of `tokens`."""
        return Speed(
            tokens / self.slowest * (1 - SLACK),
            tokens / self.seconds,
            tokens / self.seconds * (1 + SLACK),
            max(self.parts, key=lambda part: self.parts[part]),
            {what: seconds / tokens for what, seconds in self.parts.items()},
        )


@dataclass(frozen=True, slots=True)
class _Estimates:
    sizes: ModelSizes
    computer: Computer
    options: RuntimeOptions
    shares: Shares
    device: str
    routing: str

    def decode(self) -> _Estimate:
        """Return a decode step with the context half full."""
        memory = self.shares.memory
        if self.device == "cuda" and memory is not None:
            return self._on_gpu(memory)
        parts = self._on_cpu()
        gpu = self.computer.gpu
        if self.device == "sim" and gpu is not None:  # the same cores compute and copy rows
            parts[OVERHEAD] += self._layers * gpu.layer_seconds
        return _Estimate.of(parts)

    def prefill(self) -> _Estimate:
        """Return a prompt in one forward pass."""
        cpu, rows = self.computer.cpu, rows_of(self.options)
        gpu, memory = self.computer.gpu, self.shares.memory
        if self.device != "cuda" or gpu is None or memory is None:
            small = cpu.small_flops_plain if self._is_plain else cpu.small_flops
            rate = small if self._is_small else cpu.flops
            around = cpu.pass_seconds + self._layers * cpu.layer_seconds
            return _Estimate.of({"arithmetic": prompt_operations(self.sizes.config, rows) / rate, OVERHEAD: around})
        arithmetic = prompt_operations(self.sizes.config, rows) / gpu.flops
        copied = (self.sizes.expert_count - memory.slots) * self._used_by(rows)
        copies = copied * self.sizes.expert / self.computer.hardware().copy_alone
        around = cpu.pass_seconds + self._layers * gpu.layer_seconds
        seconds = max(arithmetic, copies) + around  # experts are copied to the GPU while it computes others
        return _Estimate(seconds, seconds, {"arithmetic": arithmetic, TO_GPU: copies, OVERHEAD: around})

    def hit_rate(self) -> float | None:
        """Return the share of expert lookups that hit a slot."""
        memory = self.shares.memory
        if memory is None or not memory.slots:
            return None
        experts = self.sizes.config.num_local_experts
        trace = self._made_up(self.routing)
        layers = replay_hits(trace, memory.quotas, self.options.cache_policy, experts=experts)
        return sum(layer.hits for layer in layers) / max(1, sum(layer.hits + layer.misses for layer in layers))

    def add_disk(self, decode: _Estimate, prefill: _Estimate) -> None:
        """Add the time of reading experts from the disk; a token that needs one waits for it."""
        config, fitting = self.sizes.config, self.shares.experts_in_ram
        if fitting >= self.sizes.expert_count:
            return
        memory = self.shares.memory
        slots = [0] * self._layers if memory is None else list(memory.quotas)
        rate = self.computer.disk_bandwidth
        if rate is None:
            raise UsageError(
                "The experts do not fit into RAM, and the disk bandwidth of "
                f"{printable(self.computer.name)} is not known.",
                hint="Use a larger --ram; or measure the disk with --refresh, or set disk_bandwidth (bytes/s) in "
                "the hardware file.",
            )
        read = _read_from_disk(
            self._made_up(self.routing), slots, even(fitting, self._layers, config.num_local_experts)
        )
        decode.add(FROM_DISK, read * self.sizes.expert / rate)
        elsewhere = max(0, self.sizes.expert_count - fitting - sum(slots)) * self._used_by(rows_of(self.options))
        prefill.add(FROM_DISK, elsewhere * self.sizes.expert / rate)

    @property
    def _layers(self) -> int:
        return self.sizes.config.num_hidden_layers

    def _used_by(self, tokens: int) -> float:
        """Return the share of the experts that `tokens` tokens use with uniform routing."""
        config = self.sizes.config
        if not self.sizes.expert_count:
            return 0.0
        return 1 - (1 - config.num_experts_per_tok / config.num_local_experts) ** tokens

    @property
    def _seen(self) -> int:
        """Return the positions that a token attends to when the context is half full."""
        half, window = self.options.context // 2, self.sizes.config.sliding_window
        return half if window is None else min(half, window)

    @property
    def _is_small(self) -> bool:
        return self.sizes.config.hidden_size * self.sizes.config.intermediate_size < _SMALL

    @property
    def _is_plain(self) -> bool:
        return self.sizes.format == "bf16"

    def _on_cpu(self) -> dict[str, float]:
        cpu = self.computer.cpu
        in_cache = self.sizes.total <= cpu.cache_bytes or self._is_small
        cached = cpu.cache_bandwidth_plain if self._is_plain else cpu.cache_bandwidth
        rate, where = (cached, "the cache") if in_cache else (cpu.kernel_bandwidth, "RAM")
        seen = self._seen * self.sizes.kv_position(self.options.kv)
        return {
            f"reading weights from {where}": self.sizes.token / rate,
            "reading the KV cache": seen / cpu.read_bandwidth,
            OVERHEAD: cpu.pass_seconds + self._layers * cpu.layer_seconds,
        }

    def _on_gpu(self, memory: MemoryPlan) -> _Estimate:
        gpu, cost = self.computer.gpu, self.sizes.cost(self.options.kv)
        assert gpu is not None
        around = self.computer.cpu.pass_seconds + self._layers * gpu.layer_seconds
        if not self.sizes.expert_count:
            read = self.sizes.token + self._seen * self.sizes.kv_position(self.options.kv)
            return _Estimate.of({ON_GPU: read / gpu.bandwidth, OVERHEAD: around})
        hardware, policy, miss = self.computer.hardware(), self.options.cache_policy, self.options.miss
        likely, worst = (
            replay(self._made_up(routing), hardware, cost, memory.quotas, policy, miss, context=self._seen)
            for routing in (self.routing, "uniform")
        )
        parts = {
            "experts on the CPU": likely.cpu_seconds / likely.tokens,
            TO_GPU: likely.copy_seconds / likely.tokens,
            ON_GPU: likely.gpu_seconds / likely.tokens,
            OVERHEAD: around,
        }
        seconds, slowest = (result.seconds / result.tokens + around for result in (likely, worst))
        return _Estimate(seconds, max(seconds, slowest), parts)

    def _made_up(self, routing: str) -> Trace:
        config = self.sizes.config
        layers, experts, active = config.num_hidden_layers, config.num_local_experts, config.num_experts_per_tok
        drawn = parse_routing(routing, layers=layers, experts=experts, active=active)
        return draw_trace(drawn, _TOKENS, layers=layers, experts=experts, active=active).tokens


def _read_from_disk(trace: Trace, slots: Sequence[int], in_ram: Sequence[int]) -> float:
    """Return how many experts a token reads from the disk, because they are neither in slots nor in RAM.

    Both keep the experts used last. A hit in a slot is not a use in RAM, and an expert evicted from a slot does not
    return to RAM (`mixq.experts.ram_tier`).

    Args:
        slots, in_ram: experts per layer that fit.
    """
    held = [(OrderedDict[int, None](), OrderedDict[int, None]()) for _ in slots]
    read, counted = 0, 0
    for number, token in enumerate(trace):
        counts = number >= len(trace) // 4  # both are full by then
        counted += counts
        for (on_gpu, waiting), few, more, needed in zip(held, slots, in_ram, token, strict=True):
            for expert in needed:
                if expert in on_gpu:
                    on_gpu.move_to_end(expert)
                    continue
                read += counts and expert not in waiting
                for place, room in ((on_gpu, few), (waiting, more)):
                    place[expert] = None
                    place.move_to_end(expert)
                    if len(place) > room:
                        place.popitem(last=False)
    return read / max(1, counted)
