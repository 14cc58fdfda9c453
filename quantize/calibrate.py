"""The mean square of each linear layer's input channels on a calibration text, by running the model itself.

Contract: `Calibration` carries the hidden states of the text from layer to layer and receives the weights of a block at
a time (a layer's attention, its router, one expert), so it needs memory for the text's hidden states and one block,
however large the model. Per block it returns the importance of every column of its linear layers, for `scale_search`,
and advances the hidden states. It uses the source's weights, before quantization.

With inputs x and a weight error e, E[(e.x)²] is sum(e_k² E[x_k²]) as far as channels are independent (the diagonal of
the Hessian in Optimal Brain Surgeon, Hassibi and Stork, 1993; llama.cpp calls it the importance matrix). The channels
are not independent, and the mean square itself gives a few large channels too much weight: on the demo model, over six
schemes, it changes the KL divergence by a factor of 1.03, llama.cpp's `mean square * sqrt(sigma² + w²)` by 1.26, and
its square root by 0.87. So the importance of a channel is the ROOT of its mean square.

An expert receives only the tokens that the router sends to it. The mean square of few tokens is unreliable, so it is
shrunk towards that of all tokens of the layer, as if `PRIOR_TOKENS` of those were among them; for w2, whose inputs only
the expert computes, it is shrunk towards the mean of its channels.

The arithmetic is that of the CPU kernels' prefill, whose results do not depend on the number of threads.

Axes: T tokens of the text, D hidden, F ffn, E experts, A active experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from mixq.config import ModelConfig
from mixq.formats.weights import Weights
from mixq.kernels import reference
from mixq.kernels.dispatch import Kernels
from mixq.model.attention import Attention, Chunk, RotaryTable
from mixq.model.kv_cache import KVCache
from mixq.quantize.threads import serial_operations

BATCH = 2048
"""Tokens multiplied at once."""

PRIOR_TOKENS = 32
FEW_TOKENS = 64
"""Experts that received fewer tokens are listed in mixq.json."""

Importance = dict[str, Tensor]
"""{name of a linear layer: float32 [K]}."""


@dataclass(slots=True)
class _Seen:
    """Sum of squares of the inputs of a linear layer, and the number of rows."""

    squares: Tensor  # float64 [K]
    rows: int = 0

    @classmethod
    def nothing(cls, K: int) -> _Seen:
        return cls(torch.zeros(K, dtype=torch.float64))

    def add(self, x: Tensor) -> None:
        """x: [T, K]."""
        self.squares += x.double().square().sum(0)
        self.rows += len(x)

    def importance(self, prior: Tensor | None = None) -> Tensor:
        """Return the root of the mean square, float32 [K]; see `mean`."""
        return self.mean(prior).sqrt().float()

    def mean(self, prior: Tensor | None = None) -> Tensor:
        """Return the mean square [K], shrunk towards `prior`, or without one towards its mean."""
        own = self.squares / max(1, self.rows)
        towards = own.mean().expand_as(own) if prior is None else prior
        return (own * self.rows + towards * PRIOR_TOKENS) / (self.rows + PRIOR_TOKENS)


class Calibration:
    """The hidden states of a text at a point of the model, and the statistics of the inputs there.

    Args:
        config: the model's shape.
        windows: token ids of the text, cut into sequences that do not see each other, each int64 [T].
        kernels: creates the kernels; called again for each block, because kernels keep references to weights.

    Attributes:
        few: {(layer, expert): tokens} of the experts that received few tokens of the text.
    """

    def __init__(self, config: ModelConfig, windows: Sequence[Tensor], kernels: Callable[[], Kernels]) -> None:
        self.config = config
        self.windows = list(windows)
        self._kernels = kernels
        self._one_layer = replace(config, num_hidden_layers=1)
        self._rotary = RotaryTable(config, max(len(window) for window in windows))
        self.hidden = torch.empty(0)  # float32 [T, D]
        self._normed = torch.empty(0, dtype=torch.bfloat16)  # [T, D]: input of the layer's feed-forward block
        self._topk_ids = torch.empty(0, dtype=torch.int64)  # [T, A]
        self._topk_weights = torch.empty(0)
        self._layer_mean = torch.empty(0)
        self.few: dict[tuple[int, int], int] = {}

    @property
    def tokens(self) -> int:
        return sum(len(window) for window in self.windows)

    def begin(self, embedding: Tensor) -> None:
        """Start with the embedding [V, D]."""
        self.hidden = embedding.index_select(0, torch.cat(self.windows)).float()

    def attention(self, layer: int, weights: Mapping[str, Tensor]) -> Importance:
        """Run a layer's attention; `weights` are keyed by the last two parts of their names, such as
        `self_attn.q_proj`.

        Returns:
            importance of q, k, v and o, with the same keys.
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
        """Run the norm before the feed-forward block and, if there is one, the router [E, D]."""
        kernels, seen = self._kernels(), _Seen.nothing(self.config.hidden_size)
        normed, ids, topk_weights = torch.empty(self.hidden.shape, dtype=torch.bfloat16), [], []
        for start, x in self._normed_batches(kernels, norm):
            normed[start : start + BATCH] = x.bfloat16()
            seen.add(x)
            if gate is not None:
                weight, chosen = kernels.route(x, gate.float(), self.config.num_experts_per_tok)
                ids.append(chosen)
                topk_weights.append(weight)
        self._normed, self._layer_mean = normed, seen.mean()
        if gate is not None:
            self._topk_ids, self._topk_weights = torch.cat(ids), torch.cat(topk_weights)

    def feed_forward(self, layer: int, expert: int | None, w1: Tensor, w2: Tensor, w3: Tensor) -> tuple[Tensor, Tensor]:
        """Run an expert on the tokens routed to it, or, for None, a dense feed-forward block on all tokens.

        Returns:
            importance [D] of w1 (gate) and w3 (up), and [F] of w2 (down).
        """
        if expert is None:
            tokens = torch.arange(len(self.hidden))
            weights = torch.ones(len(tokens))
        else:
            tokens, slots = torch.where(self._topk_ids == expert)
            weights = self._topk_weights[tokens, slots]
            if len(tokens) < FEW_TOKENS:
                self.few[layer, expert] = len(tokens)
        kernels = self._kernels()
        w1, w2, w3 = (weight.to(torch.bfloat16) for weight in (w1, w2, w3))
        inputs, inside = _Seen.nothing(w1.shape[1]), _Seen.nothing(w2.shape[1])
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
        seen = _Seen.nothing(self.config.hidden_size)
        for _, x in self._normed_batches(self._kernels(), norm):
            seen.add(x)
        return seen.importance()

    def _normed_batches(self, kernels: Kernels, norm: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield (first row, normed hidden states) of each batch, with serial operations."""
        with serial_operations():
            for start in range(0, len(self.hidden), BATCH):
                yield start, kernels.rms_norm(self.hidden[start : start + BATCH], norm, self.config.rms_norm_eps)

    def _batches(self) -> list[list[Tensor]]:
        """Return the windows in batches of about `BATCH` tokens."""
        batches: list[list[Tensor]] = [[]]
        for window in self.windows:
            if batches[-1] and sum(map(len, batches[-1])) + len(window) > BATCH:
                batches.append([])
            batches[-1].append(window)
        return batches


class _Observing:
    """Kernels that add up the inputs of each linear layer."""

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
        self._seen.setdefault(id(weight), _Seen.nothing(weight.shape[1])).add(x)

    def seen(self, weight: Tensor) -> _Seen:
        return self._seen[id(weight)]


class _OneLayer:
    """A layer's attention, as the weights of a model with one layer."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
        self.config = config
        self._weights = weights

    def linear(self, module: str) -> Tensor:
        return self._weights[module.removeprefix("model.layers.0.")]


def windows_of(ids: Sequence[int], bos: int, window: int, limit: int) -> list[Tensor]:
    """Cut token ids into windows of `window` tokens, each after the BOS token, `limit` tokens in all at most.

    From a longer text, windows are taken at even distances; the last one of a shorter text may be shorter.
    """
    body = window - 1
    starts = list(range(0, len(ids), body))
    wanted = max(1, limit // window)
    if len(starts) > wanted:
        starts = [starts[i * (len(starts) - 1) // max(1, wanted - 1)] for i in range(wanted)]
    return [torch.tensor([bos, *ids[start : start + body]]) for start in starts]
