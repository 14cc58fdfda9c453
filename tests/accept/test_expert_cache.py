"""The expert cache: hit rates, what each way to serve a miss costs, predictions, memory within its budget."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mixq
from mixq.config import MISS_MODES, ModelConfig
from mixq.experts import quota
from mixq.experts.routing import Trace, draw_trace, parse_routing
from mixq.measure.speed.synthetic import synthetic_model
from mixq.models.presets import PRESETS
from mixq.models.world import FAMILIES, questions
from mixq.plan.replay import belady, replay, replay_hits
from mixq.plan.sizes import ModelSizes
from mixq.quantize import quantize
from mixq.system import paths
from tests.accept.tables import markdown, write
from tests.experts.test_routing import MIXTRAL_CURVE, simulated_lru
from tests.plan.computers import COMPUTERS

pytestmark = pytest.mark.accept
SEED = 20_261_123
SHAPE = {"layers": 32, "experts": 8, "active": 2}
ROUTINGS = ("uniform", "sticky:0.39", "mixtral")


def trace_of(routing: str, tokens: int) -> Trace:
    return draw_trace(parse_routing(routing, **SHAPE, seed=SEED), tokens, **SHAPE)


def rate(trace: Trace, slots: int, policy: str) -> float:
    known = belady(trace.tokens) if policy == "belady" else policy
    counts = replay_hits(trace.tokens, [slots] * 32, known, "fetch", seed=SEED)
    hits, misses = sum(c.hits for c in counts), sum(c.misses for c in counts)
    assert hits + misses == len(trace.tokens) * 64
    return hits / (hits + misses)


def test_hit_rates() -> None:
    policies = ("lru", "lfu", "static", "random", "belady")
    tables = []
    for routing in ("sticky:0.39", "mixtral"):
        trace = trace_of(routing, 1000)
        rates = {policy: [rate(trace, slots, policy) for slots in range(1, 8)] for policy in policies}
        rows = [[policy, *(f"{value:.3f}" for value in rates[policy])] for policy in policies]
        if routing == "mixtral":
            rows.append(["reported for Mixtral, LRU", *(f"{value:.2f}" for value in MIXTRAL_CURVE)])
            assert all(abs(a - b) <= 0.03 for a, b in zip(rates["lru"], MIXTRAL_CURVE, strict=True))
        else:
            alone = [
                sum(simulated_lru([token[layer] for token in trace.tokens], slots) for layer in range(32)) / 64_000
                for slots in range(1, 8)
            ]
            rows.append(["lru, simulated separately", *(f"{value:.3f}" for value in alone)])
            assert all(abs(a - b) <= 0.01 for a, b in zip(rates["lru"], alone, strict=True))
        assert all(b >= max(rates[p][i] for p in policies) - 0.005 for i, b in enumerate(rates["belady"]))
        tables.append(markdown([f"hits, {routing}, slots of 8", *map(str, range(1, 8))], rows))
    began = time.perf_counter()
    rate(trace, 3, "lru")
    steps = f"{32_000 / (time.perf_counter() - began):,.0f}"
    how = (
        "Share of expert lookups that hit a slot, 1000 tokens of 32 layers, two of eight experts each, every miss "
        f"loaded before the next token. Belady knows the future. {steps} layer steps a second. Made by `make accept`."
    )
    write("hit_rates", "Hit rates", how, *tables)


def test_ways_to_serve_misses() -> None:
    model = ModelSizes.of_format("mixtral-8x7b", "nl4", ModelConfig.from_dict(PRESETS["mixtral-8x7b"])).cost()
    rows, worst = [], 1.0
    for computer in COMPUTERS.values():
        quotas = quota.even(computer.slots(model), 32, 8)
        for routing in ROUTINGS:
            trace = trace_of(routing, 200).tokens
            speeds = {
                miss: replay(trace, computer.hardware, model, quotas, "lru", miss, context=1024)
                for miss in ("cpu", "fetch", "auto")
            }
            better = max(speeds["cpu"].tokens_per_second, speeds["fetch"].tokens_per_second)
            ratio = speeds["auto"].tokens_per_second / better
            worst = min(worst, ratio)
            rows.append(
                [
                    computer.hardware.name,
                    f"{sum(quotas)} of 256",
                    routing,
                    *(f"{speeds[miss].tokens_per_second:.1f}" for miss in ("cpu", "fetch", "auto")),
                    f"{ratio:.2f}",
                    f"{speeds['auto'].share_of_limit:.0%}",
                ]
            )
    header = ["computer", "slots", "routing", "cpu", "fetch", "auto", "auto / better of the two", "share of limit"]
    how = (
        "Tokens per second of Mixtral 8x7B in the default mix, on a virtual clock: 200 tokens at context 1024, LRU. "
        "The computers are presets, not measured. The limit assumes that RAM, GPU memory and link are busy all the "
        "time. Made by `make accept`."
    )
    write("miss_modes", "Miss modes", how, markdown(header, rows))
    assert worst >= 0.95


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "nl4"
    quantize(paths.demo_source(), folder)
    return folder


def test_expert_prediction(demo: Path) -> None:
    model = mixq.load(demo, device="sim", vram="20MB", context=1024, miss="cpu")
    offload = model.placement.offload
    assert offload is not None
    offload.resize([2] * offload.store.layers)
    for turn in questions(10 * len(FAMILIES), SEED):
        model.chat([{"role": "user", "content": turn.user}], temperature=0, max_tokens=100, stream=False)
    recall = offload.telemetry.recall
    layers = range(1, offload.store.layers)
    ahead = sorted(recall.by_lookahead())
    rows = [
        [f"{distance} ahead", f"{recall.by_lookahead()[distance]:.2f}", f"{recall.first_choices(distance):.2f}"]
        + [f"{recall.by_layer(distance)[layer]:.2f}" if layer in recall.by_layer(distance) else "" for layer in layers]
        for distance in ahead
    ]
    header = ["prediction", "recall", "first choice", *(f"layer {layer}" for layer in layers)]
    how = (
        "The demo model, decoding answers to 100 unseen questions. A layer's router, applied to the hidden state of "
        "an earlier layer, predicts the layer's two experts. Shown: the share of the experts used that was predicted, "
        "in all and by layer. Chance is 0.25. Made by `make accept`."
    )
    write("recall", "Expert prediction by the routers", how, markdown(header, rows))
    assert recall.by_lookahead()[1] > 0.5


def test_memory_promised_and_kept(demo: Path) -> None:
    rows = []
    for vram in ("16MB", "20MB", "30MB"):
        for miss in ("cpu", "fetch", "auto"):
            command = [sys.executable, "-m", "mixq", "run", str(demo), "-p", "What is 25 - (4 * 2) + 3?", "--json"]
            command += ["--device", "sim", "--vram", vram, "--context", "512", "--miss", miss, "--temperature", "0"]
            done = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
            placement, experts = done["placement"], done["stats"]["experts"]
            assert done["text"].endswith("= 20")
            assert placement["vram_peak_bytes"] <= placement["vram_promised_bytes"]
            rows.append(
                [
                    vram,
                    miss,
                    f"{placement['vram_peak_bytes'] / 1e6:.1f} MB",
                    placement["expert_slots"],
                    f"{experts['hit_rate']:.0%}",
                    f"{done['stats']['decode_tokens_per_second']:.0f}",
                ]
            )
    how = (
        "`mixq run models/demo-nl4 --device sim --context 512`: peak memory, as the simulated GPU counts it. "
        "Made by `make accept`."
    )
    header = ["--vram", "--miss", "peak", "slots of 40", "hits", "tokens/s"]
    write("vram", "GPU memory: budget and peak", how, markdown(header, rows))


def test_copies_and_compute_overlap() -> None:
    """Mixtral's sizes, two layers: on one thread each, a copy of an expert takes about as long as computing it."""
    rows = []
    for miss in MISS_MODES:
        model = synthetic_model(
            "mixtral-8x7b",
            layers=2,
            device="sim",
            vram="1.6GB",
            context=64,
            threads=1,
            miss=miss,
            sim_bandwidth="6GB",
        )
        offload = model.placement.offload
        assert offload is not None
        model.network.override_routing(parse_routing("sticky:0.39", layers=2, experts=8, active=2, seed=SEED))
        cache = model.new_kv_cache()
        model.forward([1], kv_cache=cache)
        before, began = offload.telemetry.snapshot(), time.perf_counter()
        for token in range(2, 50):
            model.forward([token], kv_cache=cache)
        seconds = time.perf_counter() - began
        counters = offload.telemetry.stats_since(before).counters
        busy = counters.cpu_seconds + counters.gpu_seconds + counters.copy_seconds
        rows.append(
            [
                miss,
                f"{counters.hit_rate or 0:.0%}",
                f"{seconds:.2f}",
                *(f"{value:.2f}" for value in (counters.cpu_seconds, counters.gpu_seconds, counters.copy_seconds)),
                f"{counters.overlap_seconds:.2f}",
                f"{counters.overlap_seconds / seconds:.0%}",
            ]
        )
        if miss == "cpu":
            assert counters.overlap_seconds > 0.25 * min(counters.copy_seconds, busy - counters.copy_seconds)
        model.placement.close()
    header = [
        "--miss",
        "hits",
        "seconds",
        "CPU busy",
        "GPU busy",
        "copies busy",
        "two or more busy",
        "share of the time",
    ]
    how = (
        "48 tokens on the simulated GPU (one thread copies at 6 GB/s, another computes), Mixtral's sizes, two layers, "
        f"{offload.slots} slots, an expert used again for the next token with probability 0.39 (sticky:0.39). Made by "
        "`make accept`."
    )
    write("overlap", "Overlap of copies and compute", how, markdown(header, rows))
