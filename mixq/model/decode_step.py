"""The decode step of one sequence, captured once and replayed for every token: a CUDA graph on a GPU.

Contract: captured work reads its input, its position and the KV cache from the same memory each time, and writes its
results to the same memory; nothing in it depends on their values. If all experts have slots, the whole step is
captured as one. Otherwise each layer is captured up to its router's choice, and the experts are computed in between. A
step belongs to one KV cache, and is captured again after experts have moved.

Axes: D hidden, A active experts, V vocabulary; one row.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mixq.experts.accelerators.interface import Accelerator, Piece
from mixq.experts.offload import ExpertOffload
from mixq.model.attention import Chunk
from mixq.model.kv_cache import KVCache
from mixq.model.layer import DecoderLayer, Head


@dataclass(frozen=True, slots=True)
class Captures:
    """Captures work on an accelerator."""

    accelerator: Accelerator
    offload: ExpertOffload | None  # the experts; None if none are on the accelerator
    is_moe: bool  # whether the model has experts

    def capture(self, work: Callable[[], None]) -> Piece:
        """Do some work, capture it, and return it for replay."""
        offload = self.offload
        if offload is None:
            return self.accelerator.capture(work)

        def uncounted() -> None:  # the number of calls is not the number of replays
            with offload.telemetry.uncounted():
                work()

        return self.accelerator.capture(uncounted)

    def residency(self) -> int | None:
        """Return a number that changes when an expert moves; None while not all are on the accelerator."""
        if self.offload is not None:
            return self.offload.residency()
        return None if self.is_moe else 0

    def count_whole_step(self) -> None:
        """Count the experts of a step that was replayed as one."""
        if self.offload is not None:
            self.offload.telemetry.count_whole_step()


class DecodeSteps:
    """The captured step of each KV cache.

    Attributes:
        whole: whether a whole step may be captured as one; not if hooks choose the experts.
    """

    def __init__(self, layers: Sequence[DecoderLayer], head: Head, captures: Captures) -> None:
        self.whole = True
        self._layers, self._head, self._captures = layers, head, captures
        self._steps: WeakKeyDictionary[KVCache, tuple[int | None, DecodeStep]] = WeakKeyDictionary()

    def run(self, row: Tensor, kv_cache: KVCache) -> Tensor:
        """Return the logits [1, V], in host memory, of the next token, given by its embedding [1, D]."""
        kv_cache.check_room(1)
        residency = self._captures.residency() if self.whole else None
        captured_at, step = self._steps.get(kv_cache, (None, None))
        if step is None or step.whole != (residency is not None) or (step.whole and captured_at != residency):
            self._steps.pop(kv_cache, None)
            step = DecodeStep(self._layers, self._head, kv_cache, self._captures, whole=residency is not None)
            self._steps[kv_cache] = residency, step
        logits = step.run(row, kv_cache.length)
        kv_cache.advance(1)
        return logits


class DecodeStep:
    """A step for one KV cache, with a weak reference to it; `whole`: the experts are captured too."""

    def __init__(
        self, layers: Sequence[DecoderLayer], head: Head, kv_cache: KVCache, captures: Captures, *, whole: bool
    ) -> None:
        self.whole = whole
        self._layers, self._head, self._captures = layers, head, captures
        V, D = head.lm_head.shape
        zeros = partial(torch.zeros, device=head.kernels.device)
        self._x = zeros(1, D)
        self._logits = zeros(1, V)
        self._position = zeros(1, dtype=torch.int64)
        self._position.fill_(kv_cache.length)  # capturing runs the work, and writes to the step's memory
        self._chunk = Chunk(torch.zeros(1, dtype=torch.int64), weakref.proxy(kv_cache), self._position)
        if whole:
            self._chosen: list[Tensor | None] = []
            self._pieces = [captures.capture(self._run_whole)]
            return
        A = layers[0].feed_forward.num_experts_per_tok
        self._routed = [(zeros(1, D), zeros(1, D), zeros(1, A, dtype=torch.int64), zeros(1, A)) for _ in layers]
        self._pieces = [captures.capture(partial(self._route, i)) for i in range(len(layers))]
        self._pieces.append(captures.capture(self._run_head))

    def run(self, row: Tensor, position: int) -> Tensor:
        """Return the logits, float32 [1, V] in host memory, of a token at a position, given its embedding [1, D]."""
        self._x.copy_(row, non_blocking=True)
        self._position.fill_(position)
        if self.whole:
            self._pieces[0].replay()
            self._captures.count_whole_step()
            for layer, ids in zip(self._layers, self._chosen, strict=True):
                layer.feed_forward.chosen = ids
            return self._logits.cpu()
        for layer, route, routed in zip(self._layers, self._pieces[:-1], self._routed, strict=True):
            route.replay()
            h, normed, topk_ids, topk_weights = routed
            torch.add(h, layer.feed_forward.apply(normed, topk_ids, topk_weights, h), out=self._x)
        self._pieces[-1].replay()
        return self._logits.cpu()

    def _run_whole(self) -> None:
        x = self._x
        for layer in self._layers:
            h, normed, topk_ids, topk_weights = layer.route(x, [self._chunk])
            x = h + layer.feed_forward.apply(normed, topk_ids, topk_weights, h)
        # Replays write the choices to the same memory each time; the reference keeps it.
        self._chosen = [layer.feed_forward.chosen for layer in self._layers]
        self._logits.copy_(self._head(x))

    def _route(self, index: int) -> None:
        for target, source in zip(self._routed[index], self._layers[index].route(self._x, [self._chunk]), strict=True):
            target.copy_(source)

    def _run_head(self) -> None:
        self._logits.copy_(self._head(self._x))
