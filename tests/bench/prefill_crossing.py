"""From how many rows on bfloat16 products beat the integer kernels: `python tests/bench/prefill_crossing.py`.

The constant `integer_rows` of native/context.h is what this shows: for each number of tokens that chose an expert of
Mixtral's size, the time of both ways, alternating in one run, medians, and the first number at which bfloat16 wins.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from mixq.kernels.native_kernels import NativeKernels
from mixq.measure.speed.synthetic import synthetic_model

ROWS = (4, 8, 12, 16, 24, 32, 40, 48, 64, 96, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model = synthetic_model("mixtral-8x7b", layers=1, mix="all-nl4", seed=0, threads=options.threads)
    kernels = model.kernels
    assert isinstance(kernels, NativeKernels)
    experts = model.network.layers[0].feed_forward.experts.experts
    usual = kernels.integer_rows
    print(f"{kernels.name}, {kernels.threads} threads, two experts, ms, medians of {options.rounds}; constant: {usual}")
    crossing = None
    for rows in ROWS:
        x = torch.randn(rows, model.config.hidden_size, generator=torch.Generator().manual_seed(rows))
        weights = torch.full((rows, 2), 0.5)
        times: dict[int, list[float]] = {rows: [], 0: []}
        for turn in range(options.rounds + 1):
            ids = torch.tensor([[(2 * turn) % 8, (2 * turn + 1) % 8]]).expand(rows, 2)
            for limit, spent in times.items():
                kernels.integer_rows = limit
                begun = time.perf_counter()
                kernels.experts(x, experts, ids, weights)
                spent.append(time.perf_counter() - begun)
        integer, bf16 = (statistics.median(spent[1:]) * 1e3 for spent in times.values())
        if bf16 < integer:
            crossing = crossing or rows
        print(f"{rows:4} rows   integer {integer:7.1f}   bfloat16 {bf16:7.1f}")
    print(f"bfloat16 is faster from {crossing} rows on" if crossing else "the integer kernels are always faster")


if __name__ == "__main__":
    main()
