"""The router: float32 scores of the experts for each token, and the top-k choice.

Contract: one program per token, so a row's result does not depend on the others. Choosing in the same launch saves four
small ones (softmax, top-k, sum, quotient), each of which takes longer to start than to run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mixq.kernels.triton.scalars import load_float

BLOCK = 512
"""Inputs per step, of all experts at once."""


@triton.jit
def router_kernel(
    x: tl.tensor, weight: tl.tensor, logits: tl.tensor, ids: tl.tensor, chosen: tl.tensor,
    D: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, A: tl.constexpr, AP: tl.constexpr,
    BF16: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Program (token): logits [E]; for A > 0 also ids and weights of the A largest, which sum to one."""
    token = tl.program_id(0)
    e = tl.arange(0, EP)
    sums = tl.zeros([EP, BLOCK], tl.float32)
    for d0 in range(0, D, BLOCK):
        d = d0 + tl.arange(0, BLOCK)
        row = tl.load(x + token * D + d, mask=d < D, other=0.0)
        w = load_float(weight + e[:, None] * D + d[None, :], (e < E)[:, None] & (d < D)[None, :], BF16)
        sums = tl.fma(w, tl.broadcast_to(row[None, :], (EP, BLOCK)), sums)
    scores = tl.sum(sums, 1)
    tl.store(logits + token * E + e, scores, mask=e < E)
    if A > 0:
        scores = tl.where(e < E, scores, -float("inf"))
        powers = tl.exp(scores - tl.max(scores, 0))
        left = tl.where(e < E, powers / tl.sum(powers, 0), -1.0)
        slot = tl.arange(0, AP)
        taken = tl.zeros([AP], tl.float32)
        which = tl.zeros([AP], tl.int32)
        for a in tl.static_range(A):
            best, at = tl.max(left, 0, return_indices=True)  # the first of equals, as in torch
            taken = tl.where(slot == a, best, taken)
            which = tl.where(slot == a, tl.minimum(at, E - 1), which)
            left = tl.where(e == at, -1.0, left)
        tl.store(ids + token * A + slot, which.to(tl.int64), mask=slot < A)
        tl.store(chosen + token * A + slot, taken / tl.sum(taken, 0), mask=slot < A)


def route(x: Tensor, weight: Tensor, A: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits [T, E], weights [T, A] and ids int64 [T, A]; with A = 0 only the logits are valid.

    Args:
        x: float32 [T, D], contiguous.
        weight: bfloat16, float16 or float32 [E, D], contiguous.
    """
    T, D = x.shape
    E = weight.shape[0]
    logits = torch.empty(T, E, dtype=torch.float32, device=x.device)
    ids = torch.empty(T, max(A, 1), dtype=torch.int64, device=x.device)
    chosen = torch.empty(T, max(A, 1), dtype=torch.float32, device=x.device)
    bits = weight.dtype == torch.bfloat16
    router_kernel[T,](
        x, weight.view(torch.int16) if bits else weight, logits, ids, chosen,
        D=D, E=E, EP=triton.next_power_of_2(E), A=A, AP=triton.next_power_of_2(max(A, 1)),
        BF16=bits, BLOCK=min(BLOCK, triton.next_power_of_2(D)), num_warps=8,
    )  # fmt: skip
    return logits, chosen, ids
