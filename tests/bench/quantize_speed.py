"""Weights a second of the scale search, in C++ and in torch: `python tests/bench/quantize_speed.py [--threads N]`.

The two alternate within one run, and the medians are printed, so that another program on the machine slows both. The
matrix is that of an expert, [14336, 4096] bf16 in Mixtral 8x7B, or its first rows; "large groups" has one 50 times as
large in each row, which makes nl4 search its row scales.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from mixq.formats.scheme import Scheme
from mixq.kernels import native_library
from mixq.quantize.quantized import Quantized
from mixq.quantize.scale_search import reference_search, search

K = 4096
CASES = (
    ("nl4:32", ""),
    ("nl4:16", ""),
    ("w4:32", ""),
    ("w8:128", ""),
    ("nl4:32", "large groups"),
    ("nl4:16", "large groups"),
)


def weights(rows: int, group: int, *, large: bool) -> Tensor:
    weight = torch.randn(rows, K, generator=torch.Generator().manual_seed(1)) * 0.02
    if large:
        weight.view(rows, -1, group)[:, 7] *= 50
    return weight.to(torch.bfloat16)


def timed(search: Callable[[Tensor, Scheme], Quantized], weight: Tensor, scheme: Scheme) -> float:
    started = time.perf_counter()
    search(weight, scheme)
    return weight.numel() / (time.perf_counter() - started) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"M weights/s, {options.threads} threads, medians of {options.rounds} rounds")
    print(f"native: {native_library.unavailable_reason() or native_library.isa_name(native_library.isa())}")
    for name, kind in CASES:
        scheme, large = Scheme.parse(name), bool(kind)
        small = weights(32 if large else 256, scheme.group_size, large=large)
        full = weights(1024 if large else 14336, scheme.group_size, large=large)
        reference, fast = [], []
        for _ in range(options.rounds):
            reference.append(timed(reference_search, small, scheme))
            fast.append(timed(search, full, scheme))
        slow, quick = statistics.median(reference), statistics.median(fast)
        print(f"{name:8} {kind:14} reference {slow:7.2f}   native {quick:7.1f}   {quick / slow:5.0f} times")


if __name__ == "__main__":
    main()
