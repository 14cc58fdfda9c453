"""What each input channel of each Linear sees of a calibration text: the mean square, by running the model itself.

Contract: `Calibration` carries the hidden states of the text from layer to layer and is given the weights of a block at
a time (a layer's attention, its router, one expert), so the memory is that of the text's hidden states and one block,
however large the model. Per block it returns the importance of every column of its Linears, for `scale_search`, and
moves the hidden states on. The weights used are the source's own, not what becomes of them.

With inputs x and a weight error e, E[(e.x)²] is sum(e_k² E[x_k²]) as far as channels are independent (the diagonal of
the Hessian in Optimal Brain Surgeon, Hassibi and Stork, 1993; llama.cpp calls it the importance matrix). The channels
are not independent, and taken at its word the mean square gives up too much elsewhere for a few loud channels: on the
demo model, over six schemes, it moves the KL divergence by a factor of 1.03, llama.cpp's `mean square * sqrt(sigma² +
w²)` by 1.26, and its square root by 0.87. So the importance of a channel is the ROOT of its mean square.

An expert sees only the tokens that its router sends it. Few tokens say little: their mean square is drawn towards that
of all tokens of the layer, as if `PRIOR_TOKENS` of those had been seen too; w2, whose inputs only the expert itself
makes, is drawn towards evenness.

The arithmetic is that of the CPU kernels' prefill, whose bits do not depend on the number of threads.

Axes: T tokens of the text, D hidden, F ffn, E experts, A active experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from mixq.config import ModelConfig
from mixq.formats.weights import Weights
from mixq.kernels import reference
from mixq.kernels.dispatch import Kernels
from mixq.model.attention import Attention, Chunk
from mixq.model.kv_cache import KVCache
from mixq.model.rope import RotaryTable
from mixq.quantize.threads import serial_operations

BATCH = 2048
"""Tokens multiplied at once."""

PRIOR_TOKENS = 32
FEW_TOKENS = 64
"""An expert that saw fewer is named in the report."""

Importance = dict[str, Tensor]
"""{name of a Linear: float32 [K]}."""


@dataclass(slots=True)
class _Seen:
    """Sum of squares of the inputs of a Linear, and how many rows they were."""

    squares: Tensor  # float64 [K]
    rows: int = 0

    def add(self, x: Tensor) -> None:
        """x: [T, K]."""
        self.squares += x.double().square().sum(0)
        self.rows += len(x)

    def importance(self, prior: Tensor | None = None) -> Tensor:
        """Return the root of the mean square, float32 [K]; see `mean`."""
        return self.mean(prior).sqrt().float()

    def mean(self, prior: Tensor | None = None) -> Tensor:
        """Return the mean square [K], drawn towards `prior`, or towards evenness without one."""
        own = self.squares / max(1, self.rows)
        towards = own.mean().expand_as(own) if prior is None else prior
        return (own * self.rows + towards * PRIOR_TOKENS) / (self.rows + PRIOR_TOKENS)


@dataclass(frozen=True, slots=True)
class FewTokens:
    """An expert that saw few tokens of the text."""

    layer: int
    expert: int
    tokens: int


class Calibration:
    """The text on its way through the model.

    Args:
        config: the model's shape.
        windows: token ids of the text, cut into sequences that do not see each other, each int64 [T].
        kernels: makes the kernels that compute; called anew for each block, because kernels hold on to weights.
    """

    def __init__(self, config: ModelConfig, windows: Sequence[Tensor], kernels: Callable[[], Kernels]) -> None:
        self.config = config
        self.windows = list(windows)
        self._kernels = kernels
        self._one_layer = replace(config, num_hidden_layers=1)
        self._rotary = RotaryTable(config, max(len(window) for window in windows))
        self.hidden = torch.empty(0)  # float32 [T, D]
        self._normed = torch.empty(0, dtype=torch.bfloat16)  # [T, D]: what the feed-forward block of the layer sees
        self._topk_ids = torch.empty(0, dtype=torch.int64)  # [T, A]
        self._topk_weights = torch.empty(0)
        self._layer_mean = torch.empty(0)
        self.few: list[FewTokens] = []

    @property
    def tokens(self) -> int:
        return sum(len(window) for window in self.windows)

    def begin(self, embedding: Tensor) -> None:
        """Start with the embedding [V, D]."""
        self.hidden = embedding.index_select(0, torch.cat(self.windows)).float()

    def attention(self, layer: int, weights: Mapping[str, Tensor]) -> Importance:
        """Run a layer's attention; `weights` by their last two names, such as `self_attn.q_proj`.

        Returns:
            importance of q, k, v and o under the same names.
        """
        kernels = _Observing(self._kernels())
        block = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
        with serial_operations():
            attention = Attention(
                cast(Weights, _OneLayer(self._one_layer, block)), 0, self._rotary, cast(Kernels, kernels)
            )
            start = 0
            for batch in self._batches():
                rows = slice(start, start + sum(len(window) for window in batch))
                start = rows.stop
                x = kernels.rms_norm(self.hidden[rows], weights["input_layernorm"], self.config.rms_norm_eps)
                chunks = [Chunk(window, KVCache(self._one_layer, len(window))) for window in batch]
                self.hidden[rows] += attention(x, chunks)
        return {name: kernels.seen(weight).importance() for name, weight in block.items() if "_proj" in name}

    def route(self, norm: Tensor, gate: Tensor | None) -> None:
        """Run the norm before the feed-forward block and, where there is one, the router [E, D]."""
        kernels, eps = self._kernels(), self.config.rms_norm_eps
        seen = _Seen(torch.zeros(self.config.hidden_size, dtype=torch.float64))
        normed, ids, topk_weights = torch.empty(self.hidden.shape, dtype=torch.bfloat16), [], []
        with serial_operations():
            for start in range(0, len(self.hidden), BATCH):
                x = kernels.rms_norm(self.hidden[start : start + BATCH], norm, eps)
                normed[start : start + BATCH] = x.bfloat16()
                seen.add(x)
                if gate is not None:
                    weight, chosen = kernels.route(x, gate.float(), self.config.num_experts_per_tok)
                    ids.append(chosen)
                    topk_weights.append(weight)
        self._normed, self._layer_mean = normed, seen.mean()
        if gate is not None:
            self._topk_ids, self._topk_weights = torch.cat(ids), torch.cat(topk_weights)

    def expert(self, layer: int, expert: int, w1: Tensor, w2: Tensor, w3: Tensor) -> tuple[Tensor, Tensor]:
        """Run one expert over the tokens that chose it.

        Returns:
            importance [D] of w1 and w3, and [F] of w2.
        """
        tokens, slots = torch.where(self._topk_ids == expert)
        weights = self._topk_weights[tokens, slots]
        if len(tokens) < FEW_TOKENS:
            self.few.append(FewTokens(layer, expert, len(tokens)))
        return self._feed_forward(tokens, weights, w1, w2, w3)

    def feed_forward(self, gate: Tensor, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """Run a dense feed-forward block over all tokens; returns as `expert` does."""
        tokens = torch.arange(len(self.hidden))
        return self._feed_forward(tokens, torch.ones(len(tokens)), gate, down, up)

    def _feed_forward(
        self, tokens: Tensor, weights: Tensor, w1: Tensor, w2: Tensor, w3: Tensor
    ) -> tuple[Tensor, Tensor]:
        kernels = self._kernels()
        w1, w2, w3 = (weight.to(torch.bfloat16) for weight in (w1, w2, w3))
        inputs = _Seen(torch.zeros(w1.shape[1], dtype=torch.float64))
        inside = _Seen(torch.zeros(w2.shape[1], dtype=torch.float64))
        with serial_operations():
            for start in range(0, len(tokens), BATCH):
                rows = tokens[start : start + BATCH]
                x = self._normed.index_select(0, rows).float()
                h = reference.silu_mul(kernels.linear(x, w1), kernels.linear(x, w3))  # [R, F]
                inputs.add(x)
                inside.add(h)
                y = kernels.linear(h, w2) * weights[start : start + BATCH, None]
                self.hidden.index_add_(0, rows, y)
        return inputs.importance(self._layer_mean), inside.importance()

    def head(self, norm: Tensor) -> Tensor:
        """Run the last norm; return the importance [D] of the head."""
        kernels = self._kernels()
        seen = _Seen(torch.zeros(self.config.hidden_size, dtype=torch.float64))
        with serial_operations():
            for start in range(0, len(self.hidden), BATCH):
                seen.add(kernels.rms_norm(self.hidden[start : start + BATCH], norm, self.config.rms_norm_eps))
        return seen.importance()

    def _batches(self) -> list[list[Tensor]]:
        """Return the windows in batches of about `BATCH` tokens."""
        batches: list[list[Tensor]] = [[]]
        for window in self.windows:
            if batches[-1] and sum(map(len, batches[-1])) + len(window) > BATCH:
                batches.append([])
            batches[-1].append(window)
        return batches


class _Observing:
    """Kernels that note the inputs of each Linear."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._seen: dict[int, _Seen] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernels, name)

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        self._note(x, weight)
        return self._kernels.linear(x, weight)

    def linears(self, x: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
        for weight in weights:
            self._note(x, weight)
        return self._kernels.linears(x, weights)

    def _note(self, x: Tensor, weight: Tensor) -> None:
        empty = _Seen(torch.zeros(weight.shape[1], dtype=torch.float64))
        self._seen.setdefault(id(weight), empty).add(x)

    def seen(self, weight: Tensor) -> _Seen:
        return self._seen[id(weight)]


class _OneLayer:
    """A layer's attention as the weights of a model of one layer."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
        self.config = config
        self._weights = weights

    def linear(self, module: str) -> Tensor:
        return self._weights[module.removeprefix("model.layers.0.")]


def windows_of(ids: Sequence[int], bos: int, window: int, limit: int) -> list[Tensor]:
    """Cut token ids into windows of `window` tokens, each after the begin token, `limit` tokens in all at most.

    Where the text is longer, the windows lie evenly over it; the last one may be shorter where it is not.
    """
    body = window - 1
    starts = list(range(0, len(ids), body))
    wanted = max(1, limit // window)
    if len(starts) > wanted:
        starts = [starts[i * (len(starts) - 1) // max(1, wanted - 1)] for i in range(wanted)]
    return [torch.tensor([bos, *ids[start : start + body]]) for start in starts]
