"""Mixtral: a decoder of attention and, in each layer, 8 feed-forward experts of which a router picks 2 for each token.

Source: Jiang et al., "Mixtral of Experts" (2024). The dense relatives (Mistral 7B, Llama 2) are the same network with
one feed-forward block instead of router and experts.

Contract: `forward` takes the next tokens of one or more sequences, writes their KV caches and returns logits. It knows
neither text nor sampling; where an expert's weights lie is the business of `mixq.experts`.

Axes: T tokens of the batch, S sequences, D hidden, E experts, A active experts, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mixq.accelerators.interface import OutOfMemory
from mixq.config import ModelConfig
from mixq.experts.executor import CpuExperts, Experts
from mixq.experts.routing import Routing
from mixq.formats.weights import Weights
from mixq.kernels.dispatch import Kernels
from mixq.model.attention import Attention, Chunk
from mixq.model.rope import RotaryTable

ExpertsOfLayer = Callable[[int], Experts]
"""Gives the experts of a layer."""

GiveBack = Callable[[OutOfMemory], None]
"""Frees memory on an accelerator that has run out, or raises what the user is to be told."""


class Mixtral:
    """The network of a model folder.

    Args:
        folder: the weights: an open model folder, which stays mapped, or made up in memory; its trunk where the
            kernels compute.
        kernels: what computes; `mixq.kernels.dispatch.choose` picks them.
        positions: the longest context that will be asked for.
        experts: computes a layer's experts; None computes them in place.
        give_back: what to do when an accelerator has no memory left in the middle of a pass, which is then run again;
            None raises the error.
    """

    def __init__(
        self,
        folder: Weights,
        kernels: Kernels,
        *,
        positions: int,
        experts: ExpertsOfLayer | None = None,
        give_back: GiveBack | None = None,
    ) -> None:
        self.config: ModelConfig = folder.config
        self.kernels = kernels
        rotary = RotaryTable(self.config, positions, kernels.device)
        experts = experts or (lambda layer: CpuExperts(folder, layer, kernels))
        self.embed_tokens = folder.tensor("model.embed_tokens.weight")  # [V, D], in host memory
        self.layers = [DecoderLayer(folder, i, rotary, kernels, experts) for i in range(self.config.num_hidden_layers)]
        self.norm = folder.tensor("model.norm.weight")
        self.lm_head = folder.linear("model.embed_tokens" if self.config.tie_word_embeddings else "lm_head")
        self._give_back = give_back

    def override_routing(self, routing: Routing) -> None:
        """Put another choice of experts in the routers' place, whose products are computed all the same.

        The routers foresee nothing of it, so nothing is predicted.
        """
        for index, layer in enumerate(self.layers):
            if isinstance(layer.feed_forward, SparseMoeBlock):
                layer.feed_forward.override = functools.partial(_rerouted, routing, index)
                layer.feed_forward.experts.predict_nothing()

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk], *, all_logits: bool = False) -> Tensor:
        """Run the next tokens of each sequence.

        Args:
            chunks: one per sequence; their caches are filled and advanced.
            all_logits: logits of every token, [T, V]; else of each sequence's last token, [S, V].

        Returns:
            float32 logits, in host memory.
        """
        while True:
            try:
                return self._forward(chunks, all_logits=all_logits)
            except OutOfMemory as error:  # the caches have not been advanced: the pass can be run again
                if self._give_back is None:
                    raise
                self._give_back(error)

    def _forward(self, chunks: Sequence[Chunk], *, all_logits: bool) -> Tensor:
        token_ids = torch.cat([chunk.token_ids for chunk in chunks])
        # Indexing with [...] wakes torch's threads for a single row: 4 to 15 ms on busy cores, where this takes 2 µs.
        x = self.embed_tokens.index_select(0, token_ids).float().to(self.kernels.device)  # [T, D]
        for layer in self.layers:
            x = layer(x, chunks)
        if not all_logits:
            last = torch.tensor([len(chunk.token_ids) for chunk in chunks]).cumsum(0) - 1
            x = x.index_select(0, last.to(x.device))  # [S, D]
        x = self.kernels.rms_norm(x, self.norm, self.config.rms_norm_eps)
        logits = self.kernels.linear(x, self.lm_head).cpu()
        for chunk in chunks:
            chunk.kv_cache.advance(len(chunk.token_ids))
        return logits


class DecoderLayer:
    """One layer: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(
        self,
        folder: Weights,
        layer: int,
        rotary: RotaryTable,
        kernels: Kernels,
        experts: ExpertsOfLayer,
    ) -> None:
        prefix = f"model.layers.{layer}"
        self.kernels = kernels
        self.eps = folder.config.rms_norm_eps
        self.input_layernorm = folder.tensor(f"{prefix}.input_layernorm.weight")
        self.post_attention_layernorm = folder.tensor(f"{prefix}.post_attention_layernorm.weight")
        self.attention = Attention(folder, layer, rotary, kernels)
        self.feed_forward: SparseMoeBlock | FeedForward = (
            SparseMoeBlock(folder, layer, kernels, experts(layer))
            if folder.config.is_moe
            else FeedForward(folder, layer, kernels)
        )

    def __call__(self, x: Tensor, chunks: Sequence[Chunk]) -> Tensor:
        """x: [T, D] -> [T, D]."""
        x = x + self.attention(self.kernels.rms_norm(x, self.input_layernorm, self.eps), chunks)
        return x + self.feed_forward(self.kernels.rms_norm(x, self.post_attention_layernorm, self.eps), x)


class SparseMoeBlock:
    """A router that picks A of E experts for each token, and the weighted sum of their answers."""

    def __init__(self, folder: Weights, layer: int, kernels: Kernels, experts: Experts) -> None:
        self.kernels = kernels
        self.override: Callable[[Tensor], Tensor] | None = None  # of ids [T, A], for benches
        self.gate = folder.tensor(f"model.layers.{layer}.block_sparse_moe.gate.weight")  # [E, D]
        self.num_experts_per_tok = folder.config.num_experts_per_tok
        self.experts = experts

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """x: [T, D] -> [T, D]; residual [T, D] is what x was normed from."""
        topk_weights, topk_ids = self.kernels.route(x, self.gate, self.num_experts_per_tok)
        if self.override is not None:
            topk_ids = self.override(topk_ids)
        return self.experts(x, topk_ids, topk_weights, residual)


def _rerouted(routing: Routing, layer: int, topk_ids: Tensor) -> Tensor:
    """Return other ids [T, A]: a row is a token."""
    return torch.tensor([routing.choose(layer) for _ in range(len(topk_ids))], device=topk_ids.device)


class FeedForward:
    """The SwiGLU block of a dense model (gate_proj, down_proj, up_proj): to the kernels, one expert that all choose."""

    def __init__(self, folder: Weights, layer: int, kernels: Kernels) -> None:
        prefix = f"model.layers.{layer}.mlp"
        self.kernels = kernels
        self.only = torch.zeros(1, 1, dtype=torch.int64, device=kernels.device)
        self.whole = torch.ones(1, 1, device=kernels.device)
        self.block = [
            (
                folder.linear(f"{prefix}.gate_proj"),
                folder.linear(f"{prefix}.down_proj"),
                folder.linear(f"{prefix}.up_proj"),
            )
        ]

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """x: [T, D] -> [T, D]."""
        return self.kernels.experts(x, self.block, self.only.expand(len(x), 1), self.whole.expand(len(x), 1))
