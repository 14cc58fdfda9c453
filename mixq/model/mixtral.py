"""Mixtral: a decoder of attention and, in each layer, 8 feed-forward experts of which a router picks 2 for each token.

Source: Jiang et al., "Mixtral of Experts" (2024). The dense relatives (Mistral 7B, Llama 2) are the same network with
one feed-forward block instead of router and experts.

Contract: `forward` takes the next tokens of one or more sequences, writes their KV caches and returns logits.
`mixq.experts` handles the places of the experts' weights.

Axes: T tokens of the batch, S sequences, L layers, D hidden, A active experts, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mixq.config import ModelConfig
from mixq.experts.accelerators.interface import OutOfMemory
from mixq.experts.executor import CpuExperts
from mixq.experts.routing import Routing
from mixq.formats.weights import Tensors
from mixq.kernels.dispatch import Kernels
from mixq.model.attention import Chunk, RotaryTable
from mixq.model.decode_step import Captures, DecodeSteps
from mixq.model.hooks import ExpertsHook, Handle, Hooks, RouterHook
from mixq.model.layer import DecoderLayer, ExpertsOfLayer, Head, SparseMoeBlock
from mixq.model.one_call import OneCall

ROOM = 256 << 20
"""Bytes to free when a kernel has found no memory for its activations; it does not report how much it needs."""

GiveBack = Callable[[OutOfMemory], None]
"""Frees memory on an accelerator that has run out, or raises the user's error."""


class Mixtral:
    """The network of a model folder.

    Args:
        folder: the weights: an open model folder, which stays mapped, or synthetic weights in memory; the trunk is on
            the kernels' device.
        kernels: chosen by `mixq.kernels.dispatch.choose`.
        positions: the longest context that will be used.
        experts: computes a layer's experts; None computes them on the CPU.
        give_back: called when an accelerator runs out of memory during a forward pass, which is then repeated; None
            raises the error.
        captures: captures the decode step of a single sequence; None: steps are not captured.
    """

    def __init__(
        self,
        folder: Tensors,
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
        self.head = Head(folder, kernels)
        self._give_back = give_back
        self._chosen: Tensor | None = None  # ids [L, T, A] of the last pass, if it was one call
        self._one_call: OneCall | None = None
        if captures is None:
            self._one_call = OneCall(self.config, kernels, self.embed_tokens, self.layers, self.head, rotary)
        self._steps = None if captures is None else DecodeSteps(self.layers, self.head, captures)

    def forward(self, chunks: Sequence[Chunk], *, all_logits: bool = False) -> Tensor:
        """Run the next tokens of each sequence.

        Args:
            chunks: one per sequence; their caches are filled and advanced.
            all_logits: logits of every token, [T, V]; else of each sequence's last token, [S, V].

        Returns:
            float32 logits, in host memory.
        """
        if self._one_call is not None and not self._hooks:
            result = self._one_call.run(chunks, all_logits=all_logits)
            if result is not None:
                logits, self._chosen = result
                return logits
        self._chosen = None
        token_ids = torch.cat([chunk.token_ids for chunk in chunks])  # [T]
        with torch.inference_mode():
            while True:
                try:
                    # Indexing with [...] would wake torch's threads for a single row: 4 to 15 ms on busy cores instead
                    # of 2 µs.
                    x = self.embed_tokens.index_select(0, token_ids).float().to(self.kernels.device)  # [T, D]
                    if self._steps is not None and not self._hooks and len(token_ids) == len(chunks) == 1:
                        return self._steps.run(x, chunks[0].kv_cache)
                    for layer in self.layers:
                        h, normed, topk_ids, topk_weights = layer.route(x, chunks)
                        r = layer.feed_forward.apply(normed, topk_ids, topk_weights, h)  # [T, D]
                        x = h + r
                    if not all_logits and len(token_ids) > len(chunks):
                        last = torch.tensor([len(chunk.token_ids) for chunk in chunks]).cumsum(0) - 1
                        x = x.index_select(0, last.to(x.device))  # [S, D]
                    logits = self.head(x).cpu()
                    break
                # the caches have not been advanced, so the pass can be repeated
                except (OutOfMemory, torch.OutOfMemoryError) as error:
                    if self._give_back is None:
                        raise
                    self._give_back(error if isinstance(error, OutOfMemory) else OutOfMemory(ROOM, 0))
        for chunk in chunks:
            chunk.kv_cache.advance(len(chunk.token_ids))
        return logits

    def chosen_experts(self) -> list[list[tuple[int, ...]]]:
        """Return the experts of the last forward pass: of each token, layer by layer; empty for a dense model."""
        chosen = [block.chosen for block in self._sparse_blocks if block.chosen is not None]
        if self._sparse_blocks and self._chosen is not None:
            chosen = list(self._chosen)
        if not chosen:
            return []
        if len({ids.shape for ids in chosen}) > 1:  # a hook chose more experts in some layers than in others
            by_layer = [ids.tolist() for ids in chosen]
            return [[tuple(experts) for experts in layers] for layers in zip(*by_layer, strict=True)]
        by_token = torch.stack(chosen, dim=1).tolist()  # [T, L, A]: one copy from the accelerator
        return [[tuple(experts) for experts in layers] for layers in by_token]

    def router_logits(self, layer: int, residual: Tensor) -> Tensor:
        """Return a router's float32 scores [T, E], given the hidden state [T, D] before its norm."""
        norm, eps = self.layers[layer].post_attention_layernorm, self.config.rms_norm_eps
        return self.kernels.router_logits(self.kernels.rms_norm(residual, norm, eps), self._sparse_blocks[layer].gate)

    def hook_router(self, hook: RouterHook) -> Handle:
        """Call a function with each layer's routing, which it may replace; see `mixq.model.hooks`.

        A layer with a replaced choice makes no predictions for later layers.

        Raises:
            UsageError: a dense model, which has no routers.
        """
        return self._hooks.add_router(hook)

    def hook_experts(self, hook: ExpertsHook) -> Handle:
        """Call a function with the input and the output of each layer's experts; it may replace the output."""
        return self._hooks.add_experts(hook)

    def override_routing(self, routing: Routing) -> None:
        """Use other experts than the routers' choice; the routers still run, without predictions."""
        self._one_call = None
        if self._steps is not None:
            self._steps.whole = False
        for index, block in enumerate(self._sparse_blocks):
            block.override = functools.partial(_chosen_by, routing, index)


def _chosen_by(routing: Routing, layer: int, topk_ids: Tensor) -> Tensor:
    """Return ids [T, A] to replace the router's; a row is a token."""
    chosen = torch.tensor([routing.choose(layer) for _ in range(len(topk_ids))])
    return chosen.to(topk_ids.device, non_blocking=True)
