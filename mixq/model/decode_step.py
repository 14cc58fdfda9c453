"""One decode step of one sequence, captured once and run for every token: what a GPU does not have to be told again.

Contract: a captured piece reads its input, its position and the KV cache from the same memory each time, and writes its
results to the same memory; nothing in it depends on their values. Where all experts have places of their own the whole
step is one piece. Else each layer is one, up to its router's choice, and the experts are decided and computed between
the pieces. A step belongs to one KV cache; it is made again when an expert has moved.

Axes: D hidden, A active experts, V vocabulary; one row.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from mixq.experts.accelerators.interface import Piece
from mixq.kernels.dispatch import Kernels
from mixq.kernels.reference import Weight
from mixq.model.attention import Chunk
from mixq.model.kv_cache import KVCache

if TYPE_CHECKING:
    from mixq.model.mixtral import DecoderLayer


class Captures(Protocol):
    """What an accelerator offers to those who do the same work again and again."""

    def capture(self, work: Callable[[], None]) -> Piece:
        """Do some work, capture it, and return it for replay."""
        ...

    def residency(self) -> int | None:
        """Return a number that changes whenever an expert moves, None while not all have a place on the accelerator."""
        ...

    def note_whole_step(self) -> None:
        """A step with all its experts was run again: count them."""
        ...


class DecodeStep:
    """A step over the layers of a network, for one KV cache.

    Args:
        layers, norm, eps, head: of the network.
        kv_cache: of the sequence; it is not kept alive.
        whole: whether the experts are part of it.
    """

    def __init__(
        self,
        layers: Sequence[DecoderLayer],
        norm: Tensor,
        eps: float,
        head: Weight,
        kernels: Kernels,
        kv_cache: KVCache,
        captures: Captures,
        *,
        whole: bool,
    ) -> None:
        self._layers, self._norm, self._eps, self._head, self._kernels = layers, norm, eps, head, kernels
        self.whole = whole
        self._captures = captures
        self._chosen: list[Tensor | None] = []
        D, device = norm.shape[0], kernels.device
        self._x = torch.zeros(1, D, device=device)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._logits = torch.zeros(1, head.shape[0], device=device)
        self._chunk = Chunk(torch.zeros(1, dtype=torch.int64), weakref.proxy(kv_cache), self._position)
        self._position.fill_(kv_cache.length)  # capturing runs the work, and writes where the step will
        if whole:
            self._pieces = [captures.capture(self._run_whole)]
            return
        experts = [layer.num_experts_per_tok for layer in layers]
        self._between = [(torch.zeros(1, D, device=device), torch.zeros(1, D, device=device)) for _ in layers]
        self._weights = [torch.zeros(1, A, device=device) for A in experts]
        self._ids = [torch.zeros(1, A, dtype=torch.int64, device=device) for A in experts]
        self._pieces = [captures.capture(partial(self._run_layer, i)) for i in range(len(layers))]
        self._pieces.append(captures.capture(self._run_head))

    def run(self, row: Tensor, position: int) -> Tensor:
        """Return float32 logits [1, V] on the host.

        Args:
            row: the token's embedding, float32 [1, D].
            position: of the token; its keys and values are written there.
        """
        self._x.copy_(row, non_blocking=True)
        self._position.fill_(position)
        if self.whole:
            self._pieces[0].replay()
            self._captures.note_whole_step()
            for layer, ids in zip(self._layers, self._chosen, strict=True):
                layer.chosen = ids
            return self._logits.cpu()
        for i, (layer, piece) in enumerate(zip(self._layers, self._pieces, strict=False)):
            piece.replay()
            hidden, normed = self._between[i]
            torch.add(hidden, layer.compute(normed, self._ids[i], self._weights[i], hidden), out=self._x)
        self._pieces[-1].replay()
        return self._logits.cpu()

    def _run_whole(self) -> None:
        x = self._x
        for layer in self._layers:
            x = layer(x, [self._chunk])
        # Captured work writes the choices to the same memory each time, which is ours as long as we refer to it.
        self._chosen = [layer.chosen for layer in self._layers]
        self._logits.copy_(self._head_of(x))

    def _run_layer(self, index: int) -> None:
        layer = self._layers[index]
        hidden = layer.attend(self._x, [self._chunk])
        normed, ids, weights = layer.choose(hidden)
        self._between[index][0].copy_(hidden)
        self._between[index][1].copy_(normed)
        self._ids[index].copy_(ids)
        self._weights[index].copy_(weights)

    def _run_head(self) -> None:
        self._logits.copy_(self._head_of(self._x))

    def _head_of(self, x: Tensor) -> Tensor:
        return self._kernels.linear(self._kernels.rms_norm(x, self._norm, self._eps), self._head)
