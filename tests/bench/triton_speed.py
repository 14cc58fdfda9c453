"""On a GPU: are the Triton kernels right, and what share of the read bandwidth do they reach?

    python tests/bench/triton_speed.py [--rows 8 16 32] [--down-rows 8 16 32] [--tokens 1 8] [--json FILE]

The tuning constants of mixq.kernels.triton are the arguments. Right means: each kernel agrees with the reference on the
CPU, the inline assembly gives the portable kernel's bits, a row's bits do not depend on how many there are, and a
captured graph gives the uncaptured call's bits, also after the position has changed. Speed: experts of Mixtral's size
in turn, over a working set of more than four times the L2, as a share of the bandwidth at which torch sums such a set.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixq.formats.packed import PackedLinear
from mixq.kernels import reference
from mixq.kernels.kv_layer import KVLayer
from mixq.kernels.reference import Expert, Weight
from mixq.kernels.triton import attention, experts, linears, unavailable_reason
from mixq.kernels.triton.activations import prepare
from mixq.kernels.triton.kernels import TritonKernels
from tests.kernels.random_weights import distance, map_tensors, random_weight, relative

D, F = 4096, 14336
KINDS = ("nl4:32", "nl4:16", "w4:32:bf16", "w8:128:bf16", "bf16")


def on(device: torch.device, weight: Weight) -> Weight:
    """Return a copy of a weight on the GPU, table and all."""
    moved = map_tensors(weight, lambda tensor: tensor.to(device))
    if isinstance(moved, PackedLinear) and moved.table is not None:
        return PackedLinear(moved.scheme, moved.shape, moved.tensors, moved.table.to(device))
    return moved


def filled(kind: str, N: int, K: int, device: torch.device) -> Weight:
    """Return a large weight whose rows repeat those of a small one: random codes are slow to make."""
    small = on(device, random_weight(kind, 64, K, seed=N, size=K**-0.5))

    def repeated(tensor: Tensor) -> Tensor:
        return tensor.repeat(N // 64, *[1] * (tensor.ndim - 1)) if len(tensor) == 64 else tensor

    if isinstance(small, Tensor):
        return repeated(small)
    tensors = {name: repeated(tensor) for name, tensor in small.tensors.items()}
    return PackedLinear(small.scheme, (N, K), tensors, small.table)


def milliseconds(calls: Sequence[Callable[[], object]], rounds: int = 7) -> float:
    """Return the median time of a call over rounds of all of them, captured as one graph."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / len(calls))
    return statistics.median(times)


def check(device: torch.device) -> dict[str, Any]:
    """Return how far each kernel is from the reference, and whether bits that must agree do."""
    found: dict[str, Any] = {}
    plain, asm = TritonKernels(device), TritonKernels(device, inline_asm=True)
    x = torch.randn(8, 1152, generator=torch.Generator().manual_seed(0))
    for kind in ("nl4:16", "nl4:32", "nl4:64", "w4:32:f16", "w4:128:bf16", "w8:32:f16", "w8:128:bf16", "bf16"):
        weight = random_weight(kind, 48, 1152, seed=1)
        there = on(device, weight)
        answers = [kernels.linear(x.to(device), there) for kernels in (plain, asm)]
        found[f"linear {kind}"] = {
            "distance": distance(answers[0].cpu(), reference.linear(x, weight), x, weight),
            "asm has the same bits": torch.equal(*answers),
            "one row has the same bits": torch.equal(asm.linear(x[3:4].to(device), there)[0], answers[1][3]),
            "many rows": relative(plain.linear(x.repeat(4, 1).to(device), there)[:8].cpu(), x @ dense(weight).T),
        }
    found["attention"] = check_attention(device, asm)
    return found


def dense(weight: Weight) -> Tensor:
    return weight.float() if isinstance(weight, Tensor) else weight.dequantize()


def check_attention(device: torch.device, kernels: TritonKernels) -> dict[str, Any]:
    found: dict[str, Any] = {}
    g = torch.Generator().manual_seed(2)
    for dtype in (torch.bfloat16, torch.int8):
        scales = [torch.zeros(8, 2048) for _ in "kv"] if dtype == torch.int8 else []
        here = KVLayer(*[torch.zeros(8, 2048, 128, dtype=dtype) for _ in "kv"], *scales)
        here.write(torch.randn(2000, 8, 128, generator=g), torch.randn(2000, 8, 128, generator=g), 0)
        tensors = (here.keys, here.values, here.key_scale, here.value_scale)
        there = KVLayer(*[tensor.to(device) for tensor in tensors if tensor is not None])
        q = torch.randn(1, 32, 128, generator=g)
        queries, position = q.to(device), torch.tensor([1500], device=device)
        kernels.attention_rows(queries, there, position, None)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = kernels.attention_rows(queries, there, position, None)
        position.fill_(1999)
        graph.replay()
        answer = kernels.attention_rows(queries, there, 1999, None)
        found[str(dtype)] = {
            "distance": relative(answer.cpu(), reference.attention_rows(q, here, 1999, None)),
            "the graph has the same bits": torch.equal(captured, answer),
            "a chunk": relative(
                kernels.attention_prefill(queries, there, 1999, None).cpu(),
                reference.attention_prefill(q, here, 1999, None),
            ),
        }
    return found


def bandwidth(device: torch.device, nbytes: int) -> float:
    """Return bytes per second at which torch sums a set of this size."""
    data = torch.ones(nbytes // 4, device=device)
    return nbytes / milliseconds([data.sum] * 3) * 1e3


def speed(device: torch.device, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each format, number of tokens and choice of constants."""
    l2 = torch.cuda.get_device_properties(device).L2_cache_size
    found = []
    for kind in options.kinds:
        one = (filled(kind, F, D, device), filled(kind, D, F, device), filled(kind, F, D, device))
        nbytes = sum(w.nbytes for w in one)
        count = max(4, 2 * -(-4 * l2 // (2 * nbytes)))
        slots: list[Expert] = [one, *[tuple(map(copied, one)) for _ in range(count - 1)]]  # type: ignore[list-item]
        rate = bandwidth(device, max(nbytes * count, 4 * l2))
        for T in options.tokens:
            x = prepare(torch.randn(T, D, device=device))
            weights = torch.full((T, 2), 0.5, device=device)
            ids = [torch.tensor([[2 * i, 2 * i + 1]] * T, device=device) for i in range(count // 2)]
            for asm in (False, True):
                kernels = TritonKernels(device, inline_asm=asm)
                table = kernels._weights.slots(slots)
                assert table is not None
                matrices = [kernels._weights.matrix(expert[0]) for expert in slots]
                for rows in options.down_rows:
                    together = functools.partial(experts.experts, x, T, table, asm=asm, down_rows=rows)
                    ms = milliseconds([functools.partial(together, i, weights) for i in ids])
                    found.append(row(f"2 experts {kind}", T, asm, rows, ms, 2 * nbytes, rate))
                for rows in options.rows:
                    single = functools.partial(linears.linears, x, T, asm=asm, rows=rows)
                    ms = milliseconds([functools.partial(single, [matrix]) for matrix in matrices])
                    found.append(row(f"[{F}, {D}] {kind}", T, asm, rows, ms, one[0].nbytes, rate))
    return found


def copied(weight: Weight) -> Weight:
    return map_tensors(weight, lambda tensor: tensor.clone())


def row(what: str, T: int, asm: bool, rows: int, ms: float, nbytes: int, rate: float) -> dict[str, Any]:
    share = nbytes / ms * 1e3 / rate
    print(f"{what:24} {T} tokens  {'asm' if asm else '   '} {rows:3} rows  {ms:8.4f} ms  {share:6.1%}", flush=True)
    return {"what": what, "tokens": T, "asm": asm, "rows": rows, "ms": ms, "share of the bandwidth": share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[linears.ROWS])
    parser.add_argument("--down-rows", type=int, nargs="+", default=[experts.DOWN_ROWS])
    parser.add_argument("--split", type=int, default=attention.SPLIT, help="positions of a program of attention")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if (reason := unavailable_reason()) is not None:
        parser.exit(2, f"{reason}\n")
    attention.SPLIT = options.split
    device = torch.device("cuda", 0)
    result: dict[str, Any] = {"gpu": torch.cuda.get_device_name(device), "right": check(device)}
    print(json.dumps(result, indent=2))
    result["speed"] = speed(device, options)
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
