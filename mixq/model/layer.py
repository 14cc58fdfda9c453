"""One layer of the network: attention, then a feed-forward block, which in Mixtral is a router and its experts.

Contract: a layer runs in two steps. `DecoderLayer.route` computes attention and router; an accelerator can
capture it, since its operations do not depend on values (`mixq.model.decode_step`). `feed_forward.apply` computes the
chosen experts, and may wait for copies. A dense model's block is treated as one expert that every token uses.

Axes: T tokens of the batch, D hidden, E experts, A active experts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mixq.experts.executor import CpuExperts, Experts
from mixq.formats.weights import Tensors
from mixq.kernels.dispatch import Kernels
from mixq.kernels.network_weights import LayerWeights
from mixq.kernels.reference import Expert
from mixq.model.attention import Attention, Chunk, RotaryTable
from mixq.model.hooks import Hooks

ExpertsOfLayer = Callable[[int], Experts]
"""Returns the experts of a layer."""


class DecoderLayer:
    """h = x + attention(norm(x)), then h + feed_forward(norm(h))."""

    def __init__(
        self,
        folder: Tensors,
        layer: int,
        rotary: RotaryTable,
        kernels: Kernels,
        experts: ExpertsOfLayer,
        hooks: Hooks,
    ) -> None:
        prefix = f"model.layers.{layer}"
        self.kernels = kernels
        self.eps = folder.config.rms_norm_eps
        self.input_layernorm = folder.tensor(f"{prefix}.input_layernorm.weight")
        self.post_attention_layernorm = folder.tensor(f"{prefix}.post_attention_layernorm.weight")
        self.self_attn = Attention(folder, layer, rotary, kernels)
        self.feed_forward: SparseMoeBlock | FeedForward = (
            SparseMoeBlock(folder, layer, kernels, experts(layer), hooks)
            if folder.config.is_moe
            else FeedForward(folder, layer, kernels, hooks)
        )

    @property
    def weights(self) -> LayerWeights | None:
        """All weights of the layer, if all are in the memory of the kernels' device."""
        experts = self.feed_forward.resident_experts
        if experts is None:
            return None
        return LayerWeights(
            self.input_layernorm,
            self.self_attn.qkv_proj,
            self.self_attn.o_proj,
            self.post_attention_layernorm,
            self.feed_forward.gate,
            experts,
        )

    def route(self, x: Tensor, chunks: Sequence[Chunk]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run x [T, D] up to the router: return h and norm(h) [T, D], ids and weights [T, A] of the chosen experts."""
        h = x + self.self_attn(self.kernels.rms_norm(x, self.input_layernorm, self.eps), chunks)
        normed = self.kernels.rms_norm(h, self.post_attention_layernorm, self.eps)
        topk_weights, topk_ids = self.feed_forward.route(normed)
        return h, normed, topk_ids, topk_weights


class SparseMoeBlock:
    """A router that picks A of E experts for each token, and the weighted sum of their outputs.

    Attributes:
        override: replaces the chosen ids [T, A] (benches); None keeps them.
        chosen: ids [T, A] of the last pass.
    """

    def __init__(self, folder: Tensors, layer: int, kernels: Kernels, experts: Experts, hooks: Hooks) -> None:
        self.layer = layer
        self.kernels = kernels
        self.gate = folder.tensor(f"model.layers.{layer}.block_sparse_moe.gate.weight")  # [E, D]
        self.num_experts_per_tok = folder.config.num_experts_per_tok
        self.experts = experts
        self.hooks = hooks
        self.override: Callable[[Tensor], Tensor] | None = None
        self.chosen: Tensor | None = None

    @property
    def resident_experts(self) -> Sequence[Expert] | None:
        """The experts, if all are in host memory and the CPU computes them."""
        return self.experts.experts if isinstance(self.experts, CpuExperts) and self.experts.tier is None else None

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, D] -> weights and ids [T, A]."""
        return self.kernels.route(x, self.gate, self.num_experts_per_tok)

    def apply(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor, residual: Tensor) -> Tensor:
        """Return the weighted sum [T, D] of the chosen experts; residual [T, D] is x before the norm."""
        predict_from: Tensor | None = residual
        if self.override is not None:
            topk_ids, predict_from = self.override(topk_ids), None
        if self.hooks.router:
            replaced = self.hooks.routed(self.layer, residual, topk_ids, topk_weights)
            if replaced is not None:
                (topk_ids, topk_weights), predict_from = replaced, None
        self.chosen = topk_ids
        output = self.experts(x, topk_ids, topk_weights, predict_from)
        return self.hooks.answered(self.layer, x, output) if self.hooks.experts else output


class FeedForward:
    """The SwiGLU block of a dense model (gate_proj, down_proj, up_proj): one expert that every token uses."""

    def __init__(self, folder: Tensors, layer: int, kernels: Kernels, hooks: Hooks) -> None:
        prefix = f"model.layers.{layer}.mlp"
        self.layer = layer
        self.kernels = kernels
        self.hooks = hooks
        self.gate = None  # there is no router
        self.resident_experts = [
            (
                folder.linear(f"{prefix}.gate_proj"),
                folder.linear(f"{prefix}.down_proj"),
                folder.linear(f"{prefix}.up_proj"),
            )
        ]
        self.num_experts_per_tok = 1
        self.topk_ids = torch.zeros(1, 1, dtype=torch.int64, device=kernels.device)
        self.topk_weights = torch.ones(1, 1, device=kernels.device)
        self.chosen: Tensor | None = None  # there is no choice

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, D] -> weights and ids [T, 1] of the only expert."""
        return self.topk_weights.expand(len(x), 1), self.topk_ids.expand(len(x), 1)

    def apply(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor, residual: Tensor) -> Tensor:
        """Return the block's output [T, D]."""
        output = self.kernels.experts(x, self.resident_experts, topk_ids, topk_weights)
        return self.hooks.answered(self.layer, x, output) if self.hooks.experts else output


class Head:
    """The last norm and the output head."""

    def __init__(self, folder: Tensors, kernels: Kernels) -> None:
        self.kernels = kernels
        self.eps = folder.config.rms_norm_eps
        self.norm = folder.tensor("model.norm.weight")
        self.lm_head = folder.linear("model.embed_tokens" if folder.config.tie_word_embeddings else "lm_head")  # [V, D]

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, D] -> float32 logits [T, V]."""
        return self.kernels.linear(self.kernels.rms_norm(x, self.norm, self.eps), self.lm_head)
