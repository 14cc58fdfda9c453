"""Runs the chosen experts of one layer and sums their answers.

Contract: this one computes on the CPU, in place over the mapped weights; which expert is chosen is the router's
business, and how a product is computed the kernels'.

Axes: T tokens, E experts, A active experts, D hidden.
"""

from __future__ import annotations

from torch import Tensor

from mixq.formats.weights import Weights
from mixq.kernels.dispatch import Kernels


class ExpertExecutor:
    """The E experts of one layer; w1 is the gate, w2 the down, w3 the up projection."""

    def __init__(self, folder: Weights, layer: int, kernels: Kernels) -> None:
        prefix = f"model.layers.{layer}.block_sparse_moe.experts"
        self.experts = [
            (
                folder.linear(f"{prefix}.{expert}.w1"),
                folder.linear(f"{prefix}.{expert}.w2"),
                folder.linear(f"{prefix}.{expert}.w3"),
            )
            for expert in range(folder.config.num_local_experts)
        ]
        self.kernels = kernels

    def __call__(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor) -> Tensor:
        """Return sum over a of topk_weights[t, a] * expert[topk_ids[t, a]](x[t]).

        Args:
            x: float32 [T, D].
            topk_ids: int64 [T, A]; no expert twice in a row.
            topk_weights: float32 [T, A].
        """
        return self.kernels.experts(x, self.experts, topk_ids, topk_weights)
