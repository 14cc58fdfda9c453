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
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mixq.config import ModelConfig
from mixq.experts.accelerators.interface import OutOfMemory
from mixq.experts.executor import CpuExperts, Experts
from mixq.experts.routing import Routing
from mixq.formats.weights import Weights
from mixq.kernels.dispatch import Kernels
from mixq.model.attention import Attention, Chunk
from mixq.model.decode_step import Captures, DecodeStep
from mixq.model.hooks import ExpertsHook, Handle, Hooks, RouterHook
from mixq.model.kv_cache import KVCache
from mixq.model.rope import RotaryTable

ExpertsOfLayer = Callable[[int], Experts]
"""Gives the experts of a layer."""

ROOM = 256 << 20
"""Bytes to ask for when a kernel found no memory for its activations, and did not say how much it needed."""

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
        captures: captures the decode step of a single sequence; None runs it anew each time.
    """

    def __init__(
        self,
        folder: Weights,
        kernels: Kernels,
        *,
        positions: int,
        experts: ExpertsOfLayer | None = None,
        give_back: GiveBack | None = None,
        captures: Captures | None = None,
    ) -> None:
        self.config: ModelConfig = folder.config
        self.kernels = kernels
        rotary = RotaryTable(self.config, positions, kernels.device)
        experts = experts or (lambda layer: CpuExperts(folder, layer, kernels))
        self.embed_tokens = folder.tensor("model.embed_tokens.weight")  # [V, D], in host memory
        self._hooks = Hooks(self.config.num_local_experts)
        self.layers = [
            DecoderLayer(folder, i, rotary, kernels, experts, self._hooks) for i in range(self.config.num_hidden_layers)
        ]
        blocks = [layer.feed_forward for layer in self.layers]
        self._sparse_blocks = [block for block in blocks if isinstance(block, SparseMoeBlock)]
        self.norm = folder.tensor("model.norm.weight")
        self.lm_head = folder.linear("model.embed_tokens" if self.config.tie_word_embeddings else "lm_head")
        self._give_back = give_back
        self._captures = captures
        self._steps: WeakKeyDictionary[KVCache, tuple[int | None, DecodeStep]] = WeakKeyDictionary()
        self._overridden = False

    def override_routing(self, routing: Routing) -> None:
        """Put another choice of experts in the routers' place, whose products are computed all the same.

        The routers foresee nothing of it, so nothing is predicted.
        """
        self._overridden = True
        for index, block in enumerate(self._sparse_blocks):
            block.override = functools.partial(_rerouted, routing, index)
            block.experts.predict_nothing()

    def hook_router(self, hook: RouterHook) -> Handle:
        """Call a function with each layer's routing, which it may replace; see `mixq.model.hooks`.

        A layer whose choice is replaced predicts nothing of the layers after it.

        Raises:
            UsageError: a dense model, which has no routers.
        """
        return self._hooks.add_router(hook)

    def hook_experts(self, hook: ExpertsHook) -> Handle:
        """Call a function with what each layer's experts were given and answer, which it may replace."""
        return self._hooks.add_experts(hook)

    def chosen_experts(self) -> list[list[tuple[int, ...]]]:
        """Return the experts of the last pass: of each of its tokens, layer by layer; of a dense model nothing."""
        chosen = [block.chosen for block in self._sparse_blocks if block.chosen is not None]
        if not chosen:
            return []
        if len({ids.shape for ids in chosen}) > 1:  # a hook chose more experts in some layers than in others
            by_layer = [ids.tolist() for ids in chosen]
            return [[tuple(experts) for experts in layers] for layers in zip(*by_layer, strict=True)]
        by_token = torch.stack(chosen, dim=1).tolist()  # [T, L, A]: one copy from the accelerator
        return [[tuple(experts) for experts in layers] for layers in by_token]

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
            except (OutOfMemory, torch.OutOfMemoryError) as error:  # the caches have not been advanced: run it again
                if self._give_back is None:
                    raise
                self._give_back(error if isinstance(error, OutOfMemory) else OutOfMemory(ROOM, 0))

    def _forward(self, chunks: Sequence[Chunk], *, all_logits: bool) -> Tensor:
        token_ids = torch.cat([chunk.token_ids for chunk in chunks])
        # Indexing with [...] wakes torch's threads for a single row: 4 to 15 ms on busy cores, where this takes 2 µs.
        x = self.embed_tokens.index_select(0, token_ids).float().to(self.kernels.device)  # [T, D]
        if self._captures is not None and not self._hooks and len(token_ids) == len(chunks) == 1:
            return self._step(self._captures, chunks[0].kv_cache, x)
        for layer in self.layers:
            x = layer(x, chunks)
        if not all_logits and len(token_ids) > len(chunks):
            last = torch.tensor([len(chunk.token_ids) for chunk in chunks]).cumsum(0) - 1
            x = x.index_select(0, last.to(x.device))  # [S, D]
        x = self.kernels.rms_norm(x, self.norm, self.config.rms_norm_eps)
        logits = self.kernels.linear(x, self.lm_head).cpu()
        for chunk in chunks:
            chunk.kv_cache.advance(len(chunk.token_ids))
        return logits

    def _step(self, captures: Captures, kv_cache: KVCache, row: Tensor) -> Tensor:
        """Return the logits [1, V] of one token [1, D] by the captured step of its cache."""
        kv_cache.check_room(1)
        residency = None if self._overridden else captures.residency()
        made, step = self._steps.get(kv_cache, (None, None))
        if step is None or step.whole != (residency is not None) or (step.whole and made != residency):
            self._steps.pop(kv_cache, None)
            step = DecodeStep(
                self.layers,
                self.norm,
                self.config.rms_norm_eps,
                self.lm_head,
                self.kernels,
                kv_cache,
                captures,
                whole=residency is not None,
            )
            self._steps[kv_cache] = residency, step
        logits = step.run(row, kv_cache.length)
        kv_cache.advance(1)
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
        hooks: Hooks,
    ) -> None:
        prefix = f"model.layers.{layer}"
        self.kernels = kernels
        self.eps = folder.config.rms_norm_eps
        self.num_experts_per_tok = folder.config.num_experts_per_tok
        self.input_layernorm = folder.tensor(f"{prefix}.input_layernorm.weight")
        self.post_attention_layernorm = folder.tensor(f"{prefix}.post_attention_layernorm.weight")
        self.attention = Attention(folder, layer, rotary, kernels)
        self.feed_forward: SparseMoeBlock | FeedForward = (
            SparseMoeBlock(folder, layer, kernels, experts(layer), hooks)
            if folder.config.is_moe
            else FeedForward(folder, layer, kernels, hooks)
        )

    def __call__(self, x: Tensor, chunks: Sequence[Chunk]) -> Tensor:
        """x: [T, D] -> [T, D]."""
        x = self.attend(x, chunks)
        return x + self.feed_forward(self.kernels.rms_norm(x, self.post_attention_layernorm, self.eps), x)

    def attend(self, x: Tensor, chunks: Sequence[Chunk]) -> Tensor:
        """Return x + attention(norm(x)) of [T, D]."""
        return x + self.attention(self.kernels.rms_norm(x, self.input_layernorm, self.eps), chunks)

    @property
    def chosen(self) -> Tensor | None:
        """The experts' ids [T, A] of the last pass; None for a dense layer."""
        return self.feed_forward.chosen if isinstance(self.feed_forward, SparseMoeBlock) else None

    @chosen.setter
    def chosen(self, ids: Tensor | None) -> None:
        if isinstance(self.feed_forward, SparseMoeBlock):
            self.feed_forward.chosen = ids

    def router_logits(self, residual: Tensor) -> Tensor:
        """Return the router's float32 scores [T, E] for what is added to, [T, D]."""
        assert isinstance(self.feed_forward, SparseMoeBlock)
        normed = self.kernels.rms_norm(residual, self.post_attention_layernorm, self.eps)
        return self.kernels.router_logits(normed, self.feed_forward.gate)

    # The parts of feed_forward for a step that is captured up to the router's choice

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return norm(x) [T, D], and ids and weights [T, A] of its experts."""
        assert isinstance(self.feed_forward, SparseMoeBlock)
        normed = self.kernels.rms_norm(x, self.post_attention_layernorm, self.eps)
        topk_weights, topk_ids = self.feed_forward.route(normed)
        return normed, topk_ids, topk_weights

    def compute(self, normed: Tensor, topk_ids: Tensor, topk_weights: Tensor, residual: Tensor) -> Tensor:
        """Return the weighted sum [T, D] of the chosen experts."""
        assert isinstance(self.feed_forward, SparseMoeBlock)
        return self.feed_forward.compute(normed, topk_ids, topk_weights, residual)


class SparseMoeBlock:
    """A router that picks A of E experts for each token, and the weighted sum of their answers."""

    def __init__(self, folder: Weights, layer: int, kernels: Kernels, experts: Experts, hooks: Hooks) -> None:
        self.layer = layer
        self.kernels = kernels
        self.override: Callable[[Tensor], Tensor] | None = None  # of ids [T, A], for benches
        self.chosen: Tensor | None = None  # ids [T, A] of the last pass
        self.gate = folder.tensor(f"model.layers.{layer}.block_sparse_moe.gate.weight")  # [E, D]
        self.num_experts_per_tok = folder.config.num_experts_per_tok
        self.experts = experts
        self.hooks = hooks

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """x: [T, D] -> [T, D]; residual [T, D] is what x was normed from."""
        topk_weights, topk_ids = self.route(x)
        return self.compute(x, topk_ids, topk_weights, residual)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights and ids [T, A] of the experts for x [T, D]."""
        return self.kernels.route(x, self.gate, self.num_experts_per_tok)

    def compute(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor, residual: Tensor) -> Tensor:
        """Return the weighted sum [T, D] of the chosen experts."""
        if self.override is not None:
            topk_ids = self.override(topk_ids)
        foreseen: Tensor | None = residual
        if self.hooks.router:
            other = self.hooks.routed(self.layer, residual, topk_ids, topk_weights)
            if other is not None:
                (topk_ids, topk_weights), foreseen = other, None
        self.chosen = topk_ids
        output = self.experts(x, topk_ids, topk_weights, foreseen)
        return self.hooks.answered(self.layer, x, output) if self.hooks.experts else output


def _rerouted(routing: Routing, layer: int, topk_ids: Tensor) -> Tensor:
    """Return other ids [T, A]: a row is a token."""
    chosen = torch.tensor([routing.choose(layer) for _ in range(len(topk_ids))])
    return chosen.to(topk_ids.device, non_blocking=True)


class FeedForward:
    """The SwiGLU block of a dense model (gate_proj, down_proj, up_proj): to the kernels, one expert that all choose."""

    def __init__(self, folder: Weights, layer: int, kernels: Kernels, hooks: Hooks) -> None:
        prefix = f"model.layers.{layer}.mlp"
        self.layer = layer
        self.hooks = hooks
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
        output = self.kernels.experts(x, self.block, self.only.expand(len(x), 1), self.whole.expand(len(x), 1))
        return self.hooks.answered(self.layer, x, output) if self.hooks.experts else output
