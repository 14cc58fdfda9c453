"""How fast the CPU kernels are, beside the limits of this machine, in one run; no figure is asserted, all are written.

The bandwidth is the highest of three probes (a plain sum, one that fetches ahead, one in the order of the kernels),
taken between the measurements.
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch

import mixq
from mixq.engine.model import Model
from mixq.formats.scheme import Scheme
from mixq.kernels import native_library
from mixq.kernels.native_kernels import NativeKernels
from mixq.measure.speed.measure import Bench
from mixq.measure.speed.synthetic import synthetic_model
from mixq.measure.speed.workload import Workload
from mixq.quantize.scale_search import search
from mixq.system.cores import physical_cores
from mixq.system.huge_pages import allocate
from tests.accept.tables import markdown, write

pytestmark = [
    pytest.mark.accept,
    pytest.mark.skipif(native_library.library() is None, reason="there are no native kernels to measure"),
]
LAYERS, ROUNDS, CALLS, PROBE_BYTES = 4, 9, 8, 1 << 30


def gigabytes_per_second(nbytes: int, begun: float) -> float:
    return nbytes / (time.perf_counter() - begun) / 1e9


def expert_layer(model: Model, isa: str) -> list[str]:
    """One token through two of eight experts, alternating with the probes."""
    kernels = NativeKernels(model.threads, isa=native_library.ISA_NAMES[isa])
    library = native_library.library()
    assert library is not None
    buffer = allocate(PROBE_BYTES)
    buffer.fill_(1)
    layers = [layer.feed_forward.experts.experts for layer in model.network.layers]  # type: ignore[union-attr]
    x = torch.randn(1, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    weights = torch.full((1, 2), 0.5)
    probes: list[list[float]] = [[], [], []]
    ours: list[float] = []
    for turn in range(ROUNDS):
        for kind, probe in enumerate(probes):
            begun = time.perf_counter()
            library.mixq_read(kernels.context, buffer.data_ptr(), PROBE_BYTES, kind)
            probe.append(gigabytes_per_second(PROBE_BYTES, begun))
        for call in range(CALLS):
            chosen = [(2 * turn) % 8, (2 * turn + 1) % 8]
            experts = layers[call % LAYERS]
            nbytes = sum(weight.nbytes for expert in chosen for weight in experts[expert])
            begun = time.perf_counter()
            kernels.experts(x, experts, torch.tensor([chosen]), weights)
            ours.append(gigabytes_per_second(nbytes, begun))
    limit = max(statistics.median(probe) for probe in probes)
    speed = statistics.median(ours[CALLS:])
    return [f"expert layer, nl4 g32, {isa}", f"{speed:.1f} GB/s", f"{limit:.1f} GB/s", f"{speed / limit:.0%}"]


def whole_model(mix: str) -> list[list[str]]:
    model = synthetic_model("mixtral-8x7b", layers=LAYERS, mix=mix, seed=0)
    bench = Bench(model, [Workload(0, 64, 0), Workload(512, 0, 0)], repeats=7)
    for _ in bench.samples():
        pass
    decode, prompt = bench.rows()
    assert decode.bytes_per_second is not None
    assert decode.share_of_limit is not None
    rows = [
        [
            f"decode, {LAYERS} layers and head, mix {mix}",
            f"{decode.tokens_per_second:.1f} tokens/s, {decode.bytes_per_second / 1e9:.1f} GB/s",
            f"{decode.bytes_per_second / decode.share_of_limit / 1e9:.1f} GB/s",
            f"{decode.share_of_limit:.0%}",
        ],
        [
            f"prompt of 512, {LAYERS} layers, mix {mix}",
            f"{prompt.tokens_per_second:.0f} tokens/s, {prompt.gflops:.0f} GFLOPS",
            "",
            "",
        ],
    ]
    if mix == "default":
        return [expert_layer(model, native_library.isa_name(native_library.isa())), expert_layer(model, "avx2"), *rows]
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
    rows = [*whole_model("default"), *whole_model("all-nl4"), *demo_model(), quantizing()]
    how = (
        f"{physical_cores()} threads, Mixtral 8x7B's sizes, random weights, one row of activations unless a prompt is "
        "named. The bandwidth is that of reading in the same run, from three probes: for the e"
        "xpert layer the highest of their medians, for the whole model the highest just before each sample. The "
        "share is the median of the samples' shares. Made by `make accept`."
    )
    write("cpu_speed", "Speed on the CPU", how, markdown(["measurement", "speed", "bandwidth", "share"], rows))
