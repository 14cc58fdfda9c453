"""Mixtral: a decoder of attention and, in each layer, 8 feed-forward experts of which a router picks 2 for each token.

Source: Jiang et al., "Mixtral of Experts" (2024). The dense relatives (Mistral 7B, Llama 2) are the same network with
one feed-forward block instead of router and experts.

Contract: `forward` takes the next tokens of one or more sequences, writes their KV caches and returns logits. It knows
neither text nor sampling; where an expert's weights lie is the business of `mixq.experts`.

Axes: T tokens of the batch, S sequences, D hidden, E experts, A active experts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mixq.config import ModelConfig
from mixq.experts.executor import ExpertExecutor
from mixq.formats.weights import Weights
from mixq.kernels.dispatch import Kernels
from mixq.model.attention import Attention, Chunk
from mixq.model.rope import RotaryTable


class Mixtral:
    """The network of a model folder.

    Args:
        folder: the weights: an open model folder, which stays mapped, or made up in memory.
        kernels: what computes; `mixq.kernels.dispatch.choose` picks them.
        positions: the longest context that will be asked for.
    """

    def __init__(self, folder: Weights, kernels: Kernels, *, positions: int) -> None:
        self.config: ModelConfig = folder.config
        self.kernels = kernels
        rotary = RotaryTable(self.config, positions)
        self.embed_tokens = folder.tensor("model.embed_tokens.weight")  # [V, D]
        self.layers = [DecoderLayer(folder, i, rotary, kernels) for i in range(self.config.num_hidden_layers)]
        self.norm = folder.tensor("model.norm.weight")
        self.lm_head = self.embed_tokens if self.config.tie_word_embeddings else folder.linear("lm_head")

    @torch.inference_mode()
    def forward(self, chunks: Sequence[Chunk], *, all_logits: bool = False) -> Tensor:
        """Run the next tokens of each sequence.

        Args:
            chunks: one per sequence; their caches are filled and advanced.
            all_logits: logits of every token, [T, V]; else of each sequence's last token, [S, V].

        Returns:
            float32 logits.
        """
        token_ids = torch.cat([chunk.token_ids for chunk in chunks])
        # Indexing with [...] wakes torch's threads for a single row: 4 to 15 ms on busy cores, where this takes 2 µs.
        x = self.embed_tokens.index_select(0, token_ids).float()  # [T, D]
        for layer in self.layers:
            x = layer(x, chunks)
        for chunk in chunks:
            chunk.kv_cache.advance(len(chunk.token_ids))
        if not all_logits:
            last = torch.tensor([len(chunk.token_ids) for chunk in chunks]).cumsum(0) - 1
            x = x.index_select(0, last)  # [S, D]
        x = self.kernels.rms_norm(x, self.norm, self.config.rms_norm_eps)
        return self.kernels.linear(x, self.lm_head)


class DecoderLayer:
    """One layer: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, folder: Weights, layer: int, rotary: RotaryTable, kernels: Kernels) -> None:
        prefix = f"model.layers.{layer}"
        self.kernels = kernels
        self.eps = folder.config.rms_norm_eps
        self.input_layernorm = folder.tensor(f"{prefix}.input_layernorm.weight")
        self.post_attention_layernorm = folder.tensor(f"{prefix}.post_attention_layernorm.weight")
        self.attention = Attention(folder, layer, rotary, kernels)
        self.feed_forward: SparseMoeBlock | FeedForward = (
            SparseMoeBlock(folder, layer, kernels) if folder.config.is_moe else FeedForward(folder, layer, kernels)
        )

    def __call__(self, x: Tensor, chunks: Sequence[Chunk]) -> Tensor:
        """x: [T, D] -> [T, D]."""
        x = x + self.attention(self.kernels.rms_norm(x, self.input_layernorm, self.eps), chunks)
        return x + self.feed_forward(self.kernels.rms_norm(x, self.post_attention_layernorm, self.eps))


class SparseMoeBlock:
    """A router that picks A of E experts for each token, and the weighted sum of their answers."""

    def __init__(self, folder: Weights, layer: int, kernels: Kernels) -> None:
        self.kernels = kernels
        self.gate = folder.tensor(f"model.layers.{layer}.block_sparse_moe.gate.weight")  # [E, D]
        self.num_experts_per_tok = folder.config.num_experts_per_tok
        self.experts = ExpertExecutor(folder, layer, kernels)

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, D] -> [T, D]."""
        topk_weights, topk_ids = self.route(x)
        return self.experts(x, topk_ids, topk_weights)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights and ids [T, A] of the experts for x [T, D]: softmax over all, top A, made to sum to one."""
        probabilities = self.kernels.router_logits(x, self.gate).softmax(-1)  # [T, E]
        topk_weights, topk_ids = probabilities.topk(self.num_experts_per_tok, dim=-1)  # [T, A]
        return topk_weights / topk_weights.sum(-1, keepdim=True), topk_ids


class FeedForward:
    """The SwiGLU block of a dense model (gate_proj, down_proj, up_proj): to the kernels, one expert that all choose."""

    def __init__(self, folder: Weights, layer: int, kernels: Kernels) -> None:
        prefix = f"model.layers.{layer}.mlp"
        self.kernels = kernels
        self.only, self.whole = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1)
        self.block = [
            (
                folder.linear(f"{prefix}.gate_proj"),
                folder.linear(f"{prefix}.down_proj"),
                folder.linear(f"{prefix}.up_proj"),
            )
        ]

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, D] -> [T, D]."""
        return self.kernels.experts(x, self.block, self.only.expand(len(x), 1), self.whole.expand(len(x), 1))
