"""The kernels' speed on a GPU: shares of its read bandwidth, over working sets of more than four times its L2 cache.

Contract: launches are captured as a CUDA graph and replayed, so what is timed is the GPU. The bandwidth is the largest
of what `gpu_machine` read and of what the same set gives here to a kernel that only reads.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mixq.kernels.kv_layer import KVLayer
from mixq.kernels.reference import Expert, Weight
from mixq.kernels.triton import experts, linears
from mixq.kernels.triton.activations import prepare
from mixq.kernels.triton.kernels import TritonKernels
from tests.bench.gpu_operations import large_weight, on
from tests.bench.gpu_section import Session

D, F = 4096, 14336
KINDS = ("nl4:32", "w4:32:bf16", "w8:128:bf16")
OTHERS = ("nl4:16", "bf16")


def run(session: Session) -> None:
    """Measure; without a GPU the calls are made once, in the interpreter."""
    torch.set_grad_enabled(False)
    speed = Speed(session)
    steps = [
        lambda: speed.expert_layer("nl4:32", (1, 2, 8)),
        lambda: speed.expert_layer("w4:32:bf16", (1, 8)),
        lambda: speed.expert_layer("w8:128:bf16", (1, 8)),
        lambda: speed.products("nl4:32", (1, 2, 8)),
        lambda: speed.products("w4:32:bf16", (1, 8)),
        lambda: speed.products("w8:128:bf16", (1, 8)),
        speed.attention,
        speed.small,
        lambda: speed.products("nl4:16", (1,)),
        lambda: speed.products("bf16", (1,)),
        speed.tiles,
        lambda: speed.expert_layer("nl4:32", (4,)),
        lambda: speed.products("nl4:32", (4,)),
        speed.python_time,
    ]
    for number, step in enumerate(steps):
        if session.over(2):
            session.found.setdefault("left_out", []).append(number)
            continue
        with session.trying(f"speed, step {number}"):
            step()


class Speed:
    """What is measured, and on which sizes."""

    def __init__(self, session: Session) -> None:
        self.session, self.quick = session, session.quick
        self.device = torch.device("cuda" if session.cuda else "cpu")
        self.D, self.F = (128, 128) if self.quick else (D, F)
        self.l2 = torch.cuda.get_device_properties(0).L2_cache_size if session.cuda else 1 << 12
        self.variants = {False: TritonKernels(self.device)}
        if session.cuda:
            self.variants[True] = TritonKernels(self.device, inline_asm=True)
        self.rows: list[dict[str, Any]] = session.found.setdefault("rows", [])
        self.bandwidth = float(session.machine.get("gpu_read_bytes_per_second") or 0.0)
        if session.cuda:
            from tests.bench.gpu_read import read

            data = torch.ones(max(8 * self.l2, 1 << 28) // 4, device=self.device)
            found = data.nbytes / self.seconds([lambda: read(data)] * 2)
            session.found["gpu_read_of_such_a_set_bytes_per_second"] = found
            self.bandwidth = max(self.bandwidth, found)

    def seconds(self, calls: Sequence[Callable[[], object]], rounds: int = 7) -> float:
        """Return the median seconds of a call, over rounds of all of them."""
        if not self.session.cuda:
            begun = time.perf_counter()
            calls[0]()
            return time.perf_counter() - begun
        for call in calls:
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        graph.replay()
        times = []
        for _ in range(rounds):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3 / len(calls))
        return statistics.median(times)

    def note(self, what: str, seconds: float, nbytes: int = 0, **more: Any) -> None:
        row = {"what": what, "seconds": seconds, **more}
        if nbytes:
            row["bytes_per_second"] = nbytes / seconds
            if self.bandwidth:
                row["share_of_bandwidth"] = nbytes / seconds / self.bandwidth
        self.rows.append(row)
        share = f", {row['share_of_bandwidth']:.1%} of the bandwidth" if "share_of_bandwidth" in row else ""
        self.session.say(f"{what} {more}: {seconds * 1e6:.1f} us{share}")
        self.session.save()

    def copies(self, nbytes: int) -> int:
        """Return how many of a thing make a working set, an even number."""
        return max(2, 2 * -(-4 * self.l2 // (2 * nbytes)) + 2) if self.session.cuda else 2

    def weights(self, kind: str, N: int, K: int) -> list[Weight]:
        first = large_weight(kind, N, K, self.device, distinct=min(N, 64))
        return [first, *[on(self.device, _apart(first)) for _ in range(self.copies(first.nbytes) - 1)]]

    def products(self, kind: str, tokens: Sequence[int]) -> None:
        """One matrix a launch."""
        weights = self.weights(kind, self.F, self.D)
        for T in (1,) if self.quick else tokens:
            x = prepare(torch.randn(T, self.D, device=self.device))
            for asm, kernels in self.variants.items():
                matrices = [kernels._weights.matrix(weight) for weight in weights]
                calls = [lambda m=m, asm=asm: linears.linears(x, T, [m], asm=asm) for m in matrices]  # noqa: B023
                self.note(f"product {kind}", self.seconds(calls), weights[0].nbytes, tokens=T, asm=asm)

    def expert_layer(self, kind: str, tokens: Sequence[int], down_rows: int = experts.DOWN_ROWS) -> None:
        """Two experts of a layer for each pass, all tokens the same two, so that each weight is read once."""
        slots = self.slots(kind)
        nbytes = 2 * sum(weight.nbytes for weight in slots[0])
        for T in (1,) if self.quick else tokens:
            x = prepare(torch.randn(T, self.D, device=self.device))
            weights = torch.full((T, 2), 0.5, device=self.device)
            pairs = [torch.tensor([[i, i + 1]] * T, device=self.device) for i in range(0, len(slots), 2)]
            for asm, kernels in self.variants.items():
                table = kernels._weights.slots(slots)
                assert table is not None

                def call(ids: Tensor, asm: bool = asm, table: Any = table) -> Tensor:
                    return experts.experts(x, T, table, ids, weights, asm=asm, down_rows=down_rows)  # noqa: B023

                calls = [lambda ids=ids, call=call: call(ids) for ids in pairs]
                more = {} if down_rows == experts.DOWN_ROWS else {"down_rows": down_rows}
                self.note(f"2 experts {kind}", self.seconds(calls), nbytes, tokens=T, asm=asm, **more)

    def slots(self, kind: str) -> list[Expert]:
        w1 = large_weight(kind, self.F, self.D, self.device, distinct=min(self.F, 64))
        w2 = large_weight(kind, self.D, self.F, self.device, distinct=min(self.D, 64))
        nbytes = 2 * w1.nbytes + w2.nbytes
        return [(_apart(w1), _apart(w2), _apart(w1)) for _ in range(self.copies(nbytes))]

    def tiles(self) -> None:
        """Other numbers of rows and warps for a program."""
        weights = self.weights("nl4:32", self.F, self.D)
        x = prepare(torch.randn(1, self.D, device=self.device))
        asm = max(self.variants)
        matrices = [self.variants[asm]._weights.matrix(weight) for weight in weights]
        for rows in (16,) if self.quick else (8, 32, 64):
            with self.session.trying(f"{rows} rows"):
                calls = [lambda m=m, rows=rows: linears.linears(x, 1, [m], asm=asm, rows=rows) for m in matrices]
                self.note("product nl4:32", self.seconds(calls), weights[0].nbytes, tokens=1, asm=asm, rows=rows)
        for down_rows in () if self.quick else (8, 32):
            with self.session.trying(f"{down_rows} rows of w2"):
                self.expert_layer("nl4:32", (1,), down_rows)

    def attention(self) -> None:
        """Decode over caches of several layers, 512 to 32k positions."""
        H, KV, C = (4, 2, 32) if self.quick else (32, 8, 128)
        kernels = self.variants[False]
        for L in (64,) if self.quick else (512, 4096, 16384, 32768):
            for dtype in (torch.bfloat16, torch.int8):
                nbytes = 2 * KV * L * (C * dtype.itemsize + (4 if dtype == torch.int8 else 0))
                layers = [self._cache(KV, L, C, dtype) for _ in range(min(64, self.copies(nbytes)))]
                q = torch.randn(1, H, C, device=self.device)
                calls = [lambda kv=kv, q=q, L=L: kernels.attention_rows(q, kv, L - 1, None) for kv in layers]
                kind = str(dtype).removeprefix("torch.")
                self.note(f"attention {kind}", self.seconds(calls), nbytes, positions=L, layers=len(layers))

    def _cache(self, KV: int, L: int, C: int, dtype: torch.dtype) -> KVLayer:
        codes = [torch.ones(KV, L, C, dtype=dtype, device=self.device) for _ in "kv"]
        scales = [torch.ones(KV, L, device=self.device) for _ in "kv"] if dtype == torch.int8 else []
        return KVLayer(*codes, *scales)

    def small(self) -> None:
        """What is too small for a bandwidth."""
        kernels = self.variants[max(self.variants)]
        x = torch.randn(1, self.D, device=self.device)
        norm = torch.ones(self.D, dtype=torch.bfloat16, device=self.device)
        gate = torch.randn(8, self.D, device=self.device).bfloat16()
        H, KV, C = (2, 1, 32) if self.quick else (32, 8, 128)
        kv = self._cache(KV, 64, C, torch.bfloat16)
        q, k, v = (torch.randn(1, heads, C, device=self.device) for heads in (H, KV, KV))
        turn = torch.ones(1, C // 2, device=self.device)
        absent = torch.full((1, 2), -1, device=self.device)
        table = [
            tuple(large_weight("nl4:32", n, m, self.device, distinct=32) for n, m in ((96, 64), (64, 96), (96, 64)))
        ]
        few = torch.randn(1, 64, device=self.device)
        half = torch.full((1, 2), 0.5, device=self.device)
        for what, call in {
            "RMSNorm, prepared": lambda: kernels.rms_norm(x, norm, 1e-5),
            "prepare": lambda: prepare(x),
            "router and choice": lambda: kernels.route(x, gate, 2),
            "rotary and KV write": lambda: kernels.rotary_append(q, k, v, turn, turn, kv, 5),
            "attention, 6 positions": lambda: kernels.attention_rows(q, kv, 5, None),
            "experts computed elsewhere": lambda: kernels.experts(few, table, absent, half),
        }.items():
            self.note(what, self.seconds([call] * (1 if self.quick else 20)))

    def python_time(self) -> None:
        """Seconds of Python for a launch, without waiting for the GPU."""
        if not self.session.cuda:
            return
        kernels = self.variants[max(self.variants)]
        x = torch.randn(1, 64, device=self.device)
        norm = torch.ones(64, dtype=torch.bfloat16, device=self.device)
        weight = large_weight("nl4:32", 64, 64, self.device)
        for what, call in {
            "Python: RMSNorm": lambda: kernels.rms_norm(x, norm, 1e-5),
            "Python: product, 2 launches": lambda: kernels.linear(x, weight),
        }.items():
            call()
            torch.cuda.synchronize()
            begun = time.perf_counter()
            for _ in range(200):
                call()
            seconds = (time.perf_counter() - begun) / 200
            torch.cuda.synchronize()
            self.note(what, seconds)


def _apart(weight: Weight) -> Weight:
    """Return a copy that has memory of its own."""
    if isinstance(weight, Tensor):
        return weight.clone()
    tensors = {name: tensor.clone() for name, tensor in weight.tensors.items()}
    return type(weight)(weight.scheme, weight.shape, tensors, weight.table)
