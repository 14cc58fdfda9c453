"""Perplexity of a model on a text, and its divergence from a reference model.

Contract: the text is cut into windows of a fixed number of tokens, each run from an empty KV cache, starting with the
BOS token; every token of a window is predicted from those before it. If windows overlap (a stride), each token counts
in the first window that predicts it. Perplexity is exp of the mean negative log likelihood. With a reference, at each
position: KL(reference || model) in nats, and whether both have the same most likely token. Logits are kept for `ROWS`
positions at a time.

Windows without overlap give a higher perplexity than a sliding window, especially short ones: compare only results with
the same window and stride, and only models with the same tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mixq.engine.model import Model
from mixq.errors import ModelFileError, PromptError, UsageError

ROWS = 128
"""Positions whose logits are kept at a time: 16 MB per model with a vocabulary of 32,000."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Comparison of a model with its reference, at the same positions."""

    reference_perplexity: float  # of the reference
    mean_kl: float  # mean KL(reference || model), nats per token
    max_kl: float  # at the worst position
    top1_agreement: float  # share of positions where both have the same most likely token


@dataclass(frozen=True, slots=True)
class PerplexityReport:
    """The result of `perplexity`."""

    tokens: int  # tokens of the text that were predicted
    # windows, window_tokens: how the text was split; the last window may be shorter
    windows: int
    window_tokens: int
    perplexity: float  # exp of the mean negative log likelihood
    # of `perplexity`, from the spread over tokens; a lower bound, since neighbours are correlated
    standard_error: float
    comparison: Comparison | None  # with the reference, if there is one

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def perplexity(
    model: Model,
    text: str,
    *,
    reference: Model | None = None,
    window: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PerplexityReport:
    """Measure `model` on `text`.

    Args:
        model: the model to measure.
        text: the text to predict.
        reference: usually the unquantized model; it must have the same tokenizer.
        window: tokens per window, BOS token included; None: the context (the smaller one of the two models).
        stride: tokens from the start of a window to the next; None: no overlap. Half a window takes twice as
            long, and predicts each token from at least half a window.
        max_tokens: measure only this many tokens from the start; None measures all.
        progress: called with the numbers of tokens done and in total.

    Raises:
        PromptError: the text is empty, or a model has no tokenizer.
        UsageError: the tokenizers differ, or a window, stride or number of tokens is out of bounds.
        ModelFileError: the model's logits are not finite.
    """
    context = model.context if reference is None else min(model.context, reference.context)
    window = context if window is None else window
    if not 2 <= window <= context:
        raise UsageError(f"window is {window} tokens; it must be from 2 to the context, {context}.")
    stride = window - 1 if stride is None else stride
    if not 1 <= stride < window:
        raise UsageError(f"stride is {stride} tokens; it must be from 1 to {window - 1}.")
    if max_tokens is not None and max_tokens < 1:
        raise UsageError(f"The number of tokens to measure is {max_tokens}; it must be 1 or more.")
    ids = model.tokenizer.encode(text)
    if not ids:
        raise PromptError("The text is empty.", hint="Use a file with some text.")
    if reference is not None and (
        reference.config.vocab_size != model.config.vocab_size or reference.tokenizer.encode(text) != ids
    ):
        raise UsageError("The model and its reference have different tokenizers, so they cannot be compared.")
    if max(ids) >= model.config.vocab_size:
        raise ModelFileError(
            f"The tokenizer gives token {max(ids)}; the model has a vocabulary of {model.config.vocab_size}.",
            hint="The tokenizer belongs to another model.",
        )
    ids = ids[:max_tokens]
    sums = _Sums(compared=reference is not None)
    # the first window that reaches the end is the last
    windows = range(0, max(len(ids) - (window - 1) + stride, 1), stride)
    for start in windows:
        _measure_window(model, reference, ids[start : start + window - 1], sums.tokens - start, sums)
        if progress is not None:
            progress(sums.tokens, len(ids))
    return sums.report(len(windows), window)


def _measure_window(model: Model, reference: Model | None, targets: Sequence[int], known: int, sums: _Sums) -> None:
    """Add a window's tokens to the sums, without the first `known`, which are already counted."""
    inputs = [model.tokenizer.bos_id, *targets[:-1]]
    cache = model.new_kv_cache()
    reference_cache = None if reference is None else reference.new_kv_cache()
    for start in range(0, len(inputs), ROWS):
        rows = inputs[start : start + ROWS]
        skip = max(0, known - start)
        wanted = torch.tensor(targets[start : start + ROWS])[skip:]  # [T]
        logits = model.forward(rows, kv_cache=cache)[skip:]  # [T, V]
        others = None if reference is None else reference.forward(rows, kv_cache=reference_cache)[skip:]
        if len(wanted):
            sums.add(logits.log_softmax(-1), wanted, None if others is None else others.log_softmax(-1))


class _Sums:
    """Sums over positions, in float64, since a text has too many positions for float32."""

    def __init__(self, *, compared: bool) -> None:
        self.compared = compared
        self.tokens = 0
        self.nll = self.nll_squared = self.reference_nll = self.kl = self.max_kl = 0.0
        self.agreed = 0

    def add(self, logprobs: Tensor, wanted: Tensor, reference: Tensor | None) -> None:
        """Add T positions: log probabilities [T, V] of the model and its reference, and the right tokens [T]."""
        nll = _nll(logprobs, wanted, "model")  # [T]
        self.tokens += len(wanted)
        self.nll += float(nll.sum())
        self.nll_squared += float(nll.square().sum())
        if reference is not None:
            self.reference_nll += float(_nll(reference, wanted, "reference").sum())
            kl = (reference.exp().double() * (reference - logprobs).double()).sum(-1)  # [T]
            self.kl += float(kl.sum())
            self.max_kl = max(self.max_kl, float(kl.max()))
            self.agreed += int((logprobs.argmax(-1) == reference.argmax(-1)).sum())

    def report(self, windows: int, window: int) -> PerplexityReport:
        T = self.tokens
        variance = max(0.0, self.nll_squared / T - (self.nll / T) ** 2)
        value = _exp(self.nll / T)
        comparison = None
        if self.compared:
            comparison = Comparison(_exp(self.reference_nll / T), self.kl / T, self.max_kl, self.agreed / T)
        return PerplexityReport(T, windows, window, value, value * math.sqrt(variance / T), comparison)


def _nll(logprobs: Tensor, wanted: Tensor, whose: str) -> Tensor:
    """Return -log p of the right tokens [T], given log p of all [T, V], in float64."""
    nll = -logprobs.gather(-1, wanted[:, None])[:, 0].double()
    if not bool(torch.isfinite(nll).all()):
        raise ModelFileError(f"The {whose}'s logits are not finite.", hint="Check its folder with `mixq verify`.")
    return nll


def _exp(mean_nll: float) -> float:
    """Return exp, at most 1e300, so that a broken model's perplexity is still a number."""
    return math.exp(mean_nll) if mean_nll < math.log(1e300) else 1e300
