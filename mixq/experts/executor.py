"""Runs the chosen experts of one layer and sums their answers.

Contract: tokens are grouped by expert, so an expert's weights are read once however many tokens chose it. A token's
sum runs over its experts in the router's order, so its bits do not depend on the other tokens. This one computes on
the CPU, in place over the mapped weights; which expert is chosen is the router's business.

Axes: T tokens, E experts, A active experts, D hidden, R rows that chose one expert.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixq.formats.folder import ModelFolder
from mixq.kernels import reference as kernels


class ExpertExecutor:
    """The E experts of one layer; w1 is the gate, w2 the down, w3 the up projection."""

    def __init__(self, folder: ModelFolder, layer: int, *, exact: bool) -> None:
        prefix = f"model.layers.{layer}.block_sparse_moe.experts"
        self.experts = [
            tuple(folder.linear(f"{prefix}.{expert}.{name}") for name in ("w1", "w2", "w3"))
            for expert in range(folder.config.num_local_experts)
        ]
        self.exact = exact

    def __call__(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> Tensor:
        """Return sum over a of topk_weights[t, a] * expert[topk_ids[t, a]](x[t]).

        Args:
            x: float32 [T, D].
            topk_ids: int64 [T, A]; no expert twice in a row.
            topk_weights: float32 [T, A].
        """
        T, A = topk_ids.shape
        answers = x.new_empty(T, A, x.shape[1])  # [T, A, D]
        for expert in sorted(set(topk_ids.flatten().tolist())):
            tokens, slots = torch.where(topk_ids == expert)  # [R], [R]
            w1, w2, w3 = self.experts[expert]
            answers[tokens, slots] = kernels.swiglu(x[tokens], w1, w2, w3, exact=self.exact)
        total = torch.zeros_like(x)
        for slot in range(A):
            total += topk_weights[:, slot, None] * answers[:, slot]
        return total
