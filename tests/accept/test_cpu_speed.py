"""How fast the CPU kernels are, beside the limits of this machine, in one run; no figure is asserted, all are written.

The bandwidth is the highest of four probes (a plain sum, two that fetch ahead, one of four rows at a time),
taken between the measurements.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import pytest
import torch

import mixq
from mixq.config import ModelConfig, RuntimeOptions
from mixq.engine.model import Model
from mixq.formats.scheme import Scheme
from mixq.kernels import fetch_plan, native_library
from mixq.kernels.native_kernels import NativeKernels
from mixq.measure.speed.bandwidth import PROBES
from mixq.measure.speed.measure import Bench, Row, Sample
from mixq.measure.speed.synthetic import SyntheticWeights
from mixq.measure.speed.workload import Workload
from mixq.model.kv_cache import KVCache
from mixq.models.presets import PRESETS
from mixq.quantize.scale_search import search
from mixq.system.cores import physical_cores
from mixq.system.huge_pages import allocate
from tests.accept.tables import markdown, write
from tests.bench.cpu import Cpu

pytestmark = [
    pytest.mark.accept,
    pytest.mark.skipif(native_library.library() is None, reason="there are no native kernels to measure"),
]
LAYERS, ROUNDS, CALLS, PROBE_BYTES, POSITIONS = 4, 9, 8, 1 << 30, 32768


def gigabytes_per_second(nbytes: int, begun: float) -> float:
    return nbytes / (time.perf_counter() - begun) / 1e9


def beside_probes(name: str, kernels: NativeKernels, nbytes: int, run: Callable[[int], object]) -> list[str]:
    """Calls that read `nbytes` each, alternating with the probes; `run` takes the call's number."""
    library = native_library.library()
    assert library is not None
    buffer = allocate(PROBE_BYTES)
    buffer.fill_(1)
    probes: list[list[float]] = [[] for _ in PROBES]
    ours: list[float] = []
    for turn in range(ROUNDS):
        for kind, probe in enumerate(probes):
            begun = time.perf_counter()
            library.mixq_read(kernels.context, buffer.data_ptr(), PROBE_BYTES, kind)
            probe.append(gigabytes_per_second(PROBE_BYTES, begun))
        for call in range(CALLS):
            begun = time.perf_counter()
            run(turn * CALLS + call)
            ours.append(gigabytes_per_second(nbytes, begun))
    limit = max(statistics.median(probe) for probe in probes)
    speed = statistics.median(ours[CALLS:])
    return [name, f"{speed:.1f} GB/s", f"{limit:.1f} GB/s", f"{speed / limit:.0%}"]


def expert_layer(model: Model, isa: str) -> list[str]:
    """One token through two of eight experts."""
    kernels = NativeKernels(model.threads, isa=native_library.ISA_NAMES[isa])
    layers = [layer.feed_forward.experts.experts for layer in model.network.layers]  # type: ignore[union-attr]
    x = torch.randn(1, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    weights = torch.full((1, 2), 0.5)

    def run(number: int) -> None:
        turn, call = divmod(number, CALLS)
        chosen = [(2 * turn) % 8, (2 * turn + 1) % 8]
        kernels.experts(x, layers[call % LAYERS], torch.tensor([chosen]), weights)

    nbytes = 2 * sum(weight.nbytes for weight in layers[0][0])
    return beside_probes(f"expert layer, nl4 g32, {isa}", kernels, nbytes, run)


def attention(dtype: torch.dtype) -> list[str]:
    """One token over 32,768 positions, in as many layers as no cache holds."""
    config = ModelConfig.from_dict({**PRESETS["mixtral-8x7b"], "num_hidden_layers": CALLS})
    kernels = NativeKernels(physical_cores())
    fetch_plan.use(kernels, fetch_plan.chosen(kernels))
    cache = KVCache(config, POSITIONS, dtype)
    generator = torch.Generator().manual_seed(0)
    filled = torch.randn(POSITIONS, config.num_key_value_heads, config.head_dim, generator=generator)
    for layer in cache.layers:
        layer.write(filled, filled, 0)
    q = torch.randn(1, config.num_attention_heads, config.head_dim, generator=generator)
    nbytes = POSITIONS * KVCache.bytes_per_position(config, dtype) // len(cache.layers)
    name = f"attention over {POSITIONS:,} positions, {'int8' if dtype == torch.int8 else 'bf16'} KV cache"

    def run(number: int) -> None:
        kernels.attention_rows(q, cache.layers[number % CALLS], POSITIONS - 1, None)

    return beside_probes(name, kernels, nbytes, run)


def decode_rows(model: Model, mix: str, threads: str, samples: Sequence[Sample], decode: Row) -> list[list[str]]:
    assert decode.bytes_per_second is not None
    assert decode.share_of_limit is not None
    outside = [(s.seconds - s.busy_seconds) / s.workload.tokens / LAYERS for s in samples if s.workload.gen]
    return [
        [
            f"decode, {LAYERS} layers and head, mix {mix}{threads}",
            f"{decode.tokens_per_second:.1f} tokens/s, {decode.bytes_per_second / 1e9:.1f} GB/s",
            f"{decode.bytes_per_second / decode.share_of_limit / 1e9:.1f} GB/s",
            f"{decode.share_of_limit:.0%}",
        ],
        [
            f"the same decode outside the kernels, mix {mix}{threads}",
            f"{1e6 * statistics.median(outside):.0f} us a layer",
            "",
            "",
        ],
    ]


def whole_model(mix: str) -> list[list[str]]:
    weights = SyntheticWeights.make("mixtral-8x7b", layers=LAYERS, mix=mix, seed=0)
    model = Model(weights, RuntimeOptions())
    bench = Bench(model, [Workload(0, 64, 0), Workload(512, 0, 0)], repeats=7)
    samples = list(bench.samples())
    decode, prompt = bench.rows()
    rows = decode_rows(model, mix, "", samples, decode)
    rows.append(
        [
            f"prompt of 512, {LAYERS} layers, mix {mix}",
            f"{prompt.tokens_per_second:.0f} tokens/s, {prompt.gflops:.0f} GFLOPS",
            "",
            "",
        ]
    )
    one = Bench(Model(weights, RuntimeOptions.from_kwargs(threads=1)), [Workload(0, 32, 0)], repeats=7)
    samples = list(one.samples())
    rows += decode_rows(one.model, mix, ", one thread", samples, one.rows()[0])
    if mix == "default":
        best = native_library.isa_name(native_library.isa())
        return [expert_layer(model, best), expert_layer(model, "avx2"), *rows]
    return rows


def demo_model() -> list[list[str]]:
    model = mixq.load()
    bench = Bench(model, [Workload(0, 128, 0)], repeats=7)
    for _ in bench.samples():
        pass
    (decode,) = bench.rows()
    speeds = []
    for seed in range(9):
        answer = model.chat([{"role": "user", "content": "What is 25 - (4 * 2) + 3?"}], stream=False, seed=seed)
        speeds.append(answer.stats.decode_tokens_per_second)
    return [
        ["demo model, a decode step outside the kernels", f"{decode.overhead_us:.0f} us a layer", "", ""],
        ["demo model, chat", f"{statistics.median(speeds):.0f} tokens/s", "", ""],
    ]


def quantizing() -> list[str]:
    torch.set_num_threads(physical_cores())
    weight = (torch.randn(14336, 4096, generator=torch.Generator().manual_seed(1)) * 0.02).bfloat16()
    speeds = []
    for _ in range(5):
        begun = time.perf_counter()
        search(weight, Scheme.parse("nl4:32"))
        speeds.append(weight.numel() / (time.perf_counter() - begun) / 1e6)
    return ["scale search, nl4 g32", f"{statistics.median(speeds):.0f} M weights/s", "", ""]


def test_speed_on_the_cpu() -> None:
    attended = [attention(torch.bfloat16), attention(torch.int8)]
    rows = [*whole_model("default"), *whole_model("all-nl4"), *attended, *demo_model(), quantizing()]
    how = (
        f"{Cpu.read()}. {physical_cores()} threads unless one is named, Mixtral 8x7B's sizes, random weights, one row "
        "of activations unless a prompt is named. The bandwidth is that of reading with the same threads in the same "
        "run, from four probes: for the expert layer and attention the highest of their medians, for the whole model "
        "the highest just before each sample. The share is the median of the samples' shares. Made by `make accept`."
    )
    write("cpu_speed", "Speed on the CPU", how, markdown(["measurement", "speed", "bandwidth", "share"], rows))
