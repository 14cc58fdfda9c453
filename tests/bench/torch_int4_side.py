"""torch's side: the experts alone, through torch's int4 operator for CPUs. Run as a worker (see `worker`).

Groups of 32 with a bfloat16 scale and zero point each are 5 bits a weight; activations are bfloat16 (float32 ones take
a path of torch that is 30 times slower). There is no attention, router or head: the best case of a network made of this
operator. A prompt's tokens are dealt out evenly to the experts.
"""

from __future__ import annotations

import argparse
import math
import random

import torch
from torch import Tensor

from mixq.system.huge_pages import allocate
from tests.bench.worker import Description, answers_on_stdout, serve

HIDDEN, FFN, EXPERTS, USED, GROUP = 4096, 14336, 8, 2, 32

Matrix = tuple[Tensor, Tensor]
"""Codes uint8 [N, K/2] as _convert_weight_to_int4pack_for_cpu lays them out; scales and zero points [K/g, N, 2]."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with answers_on_stdout(), torch.inference_mode():
        side = TorchInt4(arguments.layers)
        build = f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
        size = sum(tensor.nbytes for layer in side.layers for expert in layer[:USED] for m in expert for tensor in m)
        serve(Description(build, size, limits="experts only"), side.decode, side.prefill)


class TorchInt4:
    """The experts of some layers, with random weights."""

    def __init__(self, layers: int) -> None:
        torch.manual_seed(0)
        shapes = ((FFN, HIDDEN), (HIDDEN, FFN), (FFN, HIDDEN))  # w1, w2, w3
        self.layers = [[[_matrix(N, K) for N, K in shapes] for _ in range(EXPERTS)] for _ in range(layers)]
        self.random = random.Random(0)

    def decode(self, tokens: int) -> None:
        """One row through two experts of every layer, for each token."""
        for _ in range(tokens):
            x = torch.ones(1, HIDDEN, dtype=torch.bfloat16)
            for layer in self.layers:
                first, second = self.random.sample(layer, USED)
                x = x + 0.5 * (_expert(x, first) + _expert(x, second))

    def prefill(self, tokens: int) -> None:
        """A quarter of the rows through each expert of every layer."""
        x = torch.ones(tokens * USED // EXPERTS, HIDDEN, dtype=torch.bfloat16)
        for layer in self.layers:
            for expert in layer:
                _expert(x, expert)


def _matrix(N: int, K: int) -> Matrix:
    codes = allocate(N * K // 2).random_(0, 256).view(N, K // 2)  # any nibbles are codes
    scales = allocate(K // GROUP * N * 2 * 2).view(torch.bfloat16).view(K // GROUP, N, 2)
    scales[..., 0] = 1 / (4.6 * math.sqrt(K))  # the codes' deviation is 4.6
    return codes, scales


def _expert(x: Tensor, expert: list[Matrix]) -> Tensor:
    w1, w2, w3 = expert
    return _linear(torch.nn.functional.silu(_linear(x, w1)) * _linear(x, w3), w2)


def _linear(x: Tensor, matrix: Matrix) -> Tensor:
    return torch.ops.aten._weight_int4pack_mm_for_cpu(x, matrix[0], GROUP, matrix[1])


if __name__ == "__main__":
    main()
