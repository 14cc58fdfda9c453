"""A synthetic Mixtral 8x7B of full size with 8 to 24 GB of GPU memory: tokens a second, hits, and how far from the
limit.

Contract: the weights are made once (25 GB in RAM, registered for copies once) and used for every budget. The limit of a
decode step is max(hit bytes / GPU bandwidth, bytes computed on the CPU / RAM bandwidth, fetched bytes / link) plus what
every token reads of the trunk and the KV cache / GPU bandwidth; the bandwidths are those of `gpu_machine`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mixq.config import PREFILL_CHUNK, RuntimeOptions
from mixq.engine.model import Model
from mixq.experts.accelerators.cuda import CudaAccelerator
from mixq.experts.routing import parse_routing
from mixq.measure.speed.synthetic import SyntheticWeights
from mixq.measure.speed.workload import Workload, decode_bytes
from mixq.model.attention import Chunk
from mixq.models.presets import PRESETS
from mixq.plan.recording import read_routing
from mixq.plan.sizes import ModelSizes, prompt_operations
from tests.bench.gpu_demo import close, memory_of
from tests.bench.gpu_section import Session

TINY = PRESETS["mixtral-8x7b"] | {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 200,
    "max_position_embeddings": 256,
}
ROUTINGS = ("mixtral", "sticky:0.39")
CALIBRATED = ("cpu_bandwidth", "gpu_bandwidth", "copy_bandwidth", "ram_bandwidth", "handover_seconds", "launch_seconds")
MISSES = ("auto", "cpu", "fetch")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything: budgets in the order in which they matter, None for all there is."""

    budgets: Sequence[str | None]
    gen: int
    prompt: int
    context: int
    warm_up: int


FULL = Sizes(("12GB", "8GB", "24GB", None, "16GB"), 32, 512, 1024, 8)
QUICK = Sizes(("2MB", None), 4, 16, 64, 2)


def run(session: Session) -> None:
    """Measure."""
    if session.cuda:
        _asm(session)
    sizes = QUICK if session.quick else FULL
    session.say("making the weights up")
    begun = time.perf_counter()
    weights = SyntheticWeights.make(TINY if session.quick else "mixtral-8x7b")
    session.found["weights"] = {"bytes": weights.nbytes, "seconds_to_make": time.perf_counter() - begun}
    session.save()
    if session.cuda:
        with session.trying("registering"):
            _register(session, weights)
    for vram in sizes.budgets:
        if session.over(15 if session.cuda else 2):
            session.found.setdefault("left_out", []).append(vram or "all")
            continue
        with session.trying(f"vram {vram}"):
            _budget(session, weights, vram, sizes)
    with session.trying("CPU alone"):
        if not session.over(5):
            model = Model(weights, RuntimeOptions.from_kwargs(device="cpu", context=sizes.context))
            rows = session.found.setdefault("rows", [])
            rows.append({"vram": "none", "miss": "cpu", **_decode(session, model, sizes), **_prefill(model, sizes)})
            close(model)


def _asm(session: Session) -> None:
    """Use inline assembly where it gave the plain kernels' bits (see the operations)."""
    from mixq.kernels.triton.kernels import TritonKernels

    defaults = TritonKernels.__init__.__kwdefaults__
    session.found["inline_asm_was_default"] = defaults["inline_asm"]
    shown = [case for case in session.operations.get("cases", []) if "inline assembly" in case["what"]]
    if shown and all(case["right"] for case in shown):
        defaults["inline_asm"] = True
    session.found["inline_asm"] = defaults["inline_asm"]


def _register(session: Session, weights: SyntheticWeights) -> None:
    """Make all the weights known to the driver, in place, so that no budget has to copy them."""
    storage = next(iter(weights.stored.values())).untyped_storage()
    begun = time.perf_counter()
    torch.cuda.init()
    runtime = torch.cuda.cudart()
    failed = int(runtime.cudaHostRegister(storage.data_ptr(), storage.nbytes(), 0))
    if failed:  # clears the error that the driver keeps
        try:
            torch.ones(1, device="cuda")
        except RuntimeError as error:
            session.say(f"not registered: {error}")
    else:
        CudaAccelerator.registers = False
    session.found["registered"] = {"bytes": storage.nbytes(), "seconds": time.perf_counter() - begun, "error": failed}


def _budget(session: Session, weights: SyntheticWeights, vram: str | None, sizes: Sizes) -> None:
    """All that is measured with one model: routings and miss modes change while it is loaded."""
    label = vram or "all"
    if session.cuda:
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    asked = {} if vram is None else {"vram": vram}
    model = Model(weights, RuntimeOptions.from_kwargs(device=session.device, context=sizes.context, **asked))
    loading = time.perf_counter() - begun
    offload = model.placement.offload
    assert offload is not None
    hardware = offload.scheduler.cost.hardware
    placed = model.placement.as_dict()
    memory: dict[str, Any] = {
        "promised_bytes": placed["vram_promised_bytes"],
        "slots": offload.slots,
        "seconds_to_load": loading,
        "notes": list(model.notes),
        "calibrated": {name: getattr(hardware, name) for name in CALIBRATED},
    }
    session.say(f"{label}: {offload.slots} slots, loaded in {loading:.1f} s")
    session.found.setdefault("budgets", {})[label] = memory
    resident = offload.slots == offload.store.layers * offload.store.experts
    rows = session.found.setdefault("rows", [])
    for miss in MISSES[:1] if resident else MISSES:
        offload.scheduler.miss = miss
        for routing in _routings(miss, resident=resident):
            if session.over(8 if session.cuda else 1):
                session.found.setdefault("left_out", []).append(f"{label} {miss} {routing}")
                continue
            with session.trying(f"{label} {miss} {routing}"):
                if routing != "model":
                    _route(model, routing)
                row = {"vram": label, "miss": miss, "routing": routing, **_decode(session, model, sizes)}
                slow = miss == "cpu" and vram != sizes.budgets[0]  # prompts on the CPU, which take seconds
                if routing == ("model" if resident else ROUTINGS[0]) and not slow:
                    row |= _prefill(model, sizes)
                rows.append(row)
                rate = f"tg {row['decode_tokens_per_second']:.1f}/s, {row.get('share_of_limit', 0):.0%} of the limit"
                more = f", pp {row['prefill_tokens_per_second']:.0f}/s" if "prefill_tokens_per_second" in row else ""
                session.say(f"{label} {miss} {routing}: {rate}, hits {row.get('hit_rate')}{more}")
    offload.scheduler.miss = "auto"
    if vram == sizes.budgets[0] and not session.over(5):
        with session.trying("profile"):
            session.found["profile"] = profile(session, model)
    if resident:
        with session.trying("profile"):
            session.found["profile_resident"] = profile(session, model)
    memory |= memory_of(session, model.placement.as_dict())
    used = memory.get("driver_used_bytes", memory["account_peak_bytes"])
    memory["kept"] = used <= memory["promised_bytes"]
    if vram is not None and not memory["kept"]:
        session.found["errors"].append(f"{label}: {used} bytes were used")
    session.save()
    close(model)


def _routings(miss: str, *, resident: bool) -> tuple[str, ...]:
    """Return what to measure; the routers' own choice comes first, since there is no way back to it."""
    if resident:
        return ("model", ROUTINGS[0])
    return ("model", *ROUTINGS) if miss == MISSES[0] else ROUTINGS


def _route(model: Model, routing: str) -> None:
    config = model.config
    chosen = parse_routing(
        routing,
        layers=config.num_hidden_layers,
        experts=config.num_local_experts,
        active=config.num_experts_per_tok,
        read_trace=read_routing,
    )
    model.network.override_routing(chosen)


def _ids(model: Model, count: int) -> torch.Tensor:
    return torch.randint(model.config.vocab_size, (count,), generator=torch.Generator().manual_seed(0))


def _decode(session: Session, model: Model, sizes: Sizes) -> dict[str, Any]:
    """Return the figures of `gen` tokens, one by one."""
    cache, ids = model.new_kv_cache(), _ids(model, sizes.warm_up + sizes.gen)
    offload = model.placement.offload
    times = []
    before = None
    for number, token in enumerate(torch.split(ids, 1)):
        if number == sizes.warm_up:
            before = offload.telemetry.snapshot() if offload is not None else None
        begun = time.perf_counter()
        model.network.forward([Chunk(token, cache)])
        times.append(time.perf_counter() - begun)
    seconds = sum(times[sizes.warm_up :])
    kv = cache.nbytes // cache.capacity
    step = decode_bytes(ModelSizes.of_weights(model.folder), kv, Workload(0, sizes.gen, sizes.warm_up))
    found: dict[str, Any] = {
        "decode_tokens_per_second": sizes.gen / seconds,
        "median_step_seconds": statistics.median(times[sizes.warm_up :]),
        "bytes_per_token": step,
    }
    machine = session.machine
    ram, gpu, link = (machine.get(f"{name}_bytes_per_second") or 0.0 for name in ("ram_read", "gpu_read", "copy"))
    if offload is None or before is None:
        if ram:
            found["share_of_limit"] = step * sizes.gen / ram / seconds
        return found
    counters = offload.telemetry.stats_since(before).counters
    experts = model.config.num_experts_per_tok * sum(
        offload.store.expert_bytes(layer) for layer in range(model.config.num_hidden_layers)
    )
    found |= {
        "hit_rate": counters.hit_rate,
        "on_cpu": counters.on_cpu / counters.requests,
        "waited_for": (counters.fetches + counters.waits) / counters.requests,
        "hit_bytes": counters.hit_bytes,
        "cpu_bytes": counters.cpu_bytes,
        "fetched_bytes": counters.fetched_bytes,
        "uploaded_bytes": counters.uploaded_bytes,
        "cpu_seconds": counters.cpu_seconds,
        "gpu_expert_seconds": counters.gpu_seconds,
        "copy_seconds": counters.copy_seconds,
        "wait_seconds": counters.wait_seconds,
        "overlap_seconds": counters.overlap_seconds,
        "seconds": seconds,
    }
    if ram and gpu and link:
        parts = {
            "gpu": counters.hit_bytes / gpu,
            "cpu": counters.cpu_bytes / ram,
            "link": counters.fetched_bytes / link,
        }
        trunk = (step - experts) * sizes.gen / gpu
        found["limit_seconds"] = {**parts, "trunk": trunk, "together": max(parts.values()) + trunk}
        found["limited_by"] = max(parts, key=lambda name: parts[name])
        found["share_of_limit"] = found["limit_seconds"]["together"] / seconds
    return found


def _prefill(model: Model, sizes: Sizes) -> dict[str, Any]:
    """Return the figures of a prompt, the better of two; the first of three compiles."""
    ids, cache, times = _ids(model, sizes.prompt), model.new_kv_cache(), []
    for _ in range(3):
        cache.truncate(0)
        begun = time.perf_counter()
        for part in torch.split(ids, PREFILL_CHUNK):
            model.network.forward([Chunk(part, cache)])
        times.append(time.perf_counter() - begun)
        if times[0] > 3:  # compiling does not matter then
            break
    seconds = min(times[1:] or times)
    operations = prompt_operations(model.config, sizes.prompt)
    return {
        "prefill_tokens_per_second": sizes.prompt / seconds,
        "prefill_gflops": operations / seconds / 1e9,
        "prefill_tokens": sizes.prompt,
    }


def profile(session: Session, model: Model) -> dict[str, Any]:
    """Return what a decode step is made of: kernels, launches, Python."""
    cache = model.new_kv_cache()
    token = torch.tensor([7])
    for _ in range(3):
        model.network.forward([Chunk(token, cache)])
    steps = 4
    begun = time.perf_counter()
    for _ in range(steps):
        model.network.forward([Chunk(token, cache)])
    found: dict[str, Any] = {"step_seconds": (time.perf_counter() - begun) / steps}
    if not session.cuda:
        return found
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        model.network.forward([Chunk(token, cache)])
        torch.cuda.synchronize()
    events = profiler.key_averages()
    kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    layers = model.config.num_hidden_layers
    copies = sum(event.count for event in kernels if event.key.startswith(("Memcpy", "Memset")))
    found["top"] = [
        {"kernel": event.key[:80], "calls": event.count, "microseconds": event.self_device_time_total}
        for event in kernels[:15]
    ]
    found["gpu_busy_seconds"] = sum(event.self_device_time_total for event in kernels) / 1e6
    found["kernels_per_layer"] = (sum(event.count for event in kernels) - copies) / layers
    found["copies_per_layer"] = copies / layers
    found["host_calls"] = [
        {"call": event.key[:60], "calls": event.count, "microseconds": event.self_cpu_time_total}
        for event in sorted(events, key=lambda event: -event.self_cpu_time_total)[:15]
    ]
    found["weights_read_bytes"] = ModelSizes.of_weights(model.folder).token
    return found
