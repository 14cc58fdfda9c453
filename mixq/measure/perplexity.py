"""Perplexity of a model on a text, and how far it has moved from a reference model.

Contract: the text is cut into windows of a fixed number of tokens, each run from an empty KV cache with the begin token
in front; every token of a window is predicted from those before it. Where windows overlap (a stride), only what no
window before has predicted counts, so that each token of the text counts once. Perplexity is exp of the mean negative
log likelihood. With a reference, at each position: KL(reference || model) in nats, and whether both find the same token
likeliest. Logits are held for `ROWS` positions at a time, whatever the window.

Windows without overlap give a higher perplexity than a sliding window does, the more so the shorter they are: compare
only figures with the same window and stride, and only models with the same tokenizer.
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
"""Positions whose logits are held at once: 16 MB a model at a vocabulary of 32,000."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model against its reference, over the same positions.

    Attributes:
        reference_perplexity: of the reference.
        mean_kl: mean KL(reference || model), nats per token.
        max_kl: at the worst position.
        top1_agreement: share of positions where both find the same token likeliest.
    """

    reference_perplexity: float
    mean_kl: float
    max_kl: float
    top1_agreement: float


@dataclass(frozen=True, slots=True)
class PerplexityReport:
    """What `perplexity` found.

    Attributes:
        tokens: tokens of the text that were predicted.
        windows, window_tokens: how the text was cut; the last window may be shorter.
        perplexity: exp of the mean negative log likelihood.
        standard_error: of `perplexity`, from the spread over tokens; neighbours are not independent, so a lower bound.
        comparison: with the reference, where one was given.
    """

    tokens: int
    windows: int
    window_tokens: int
    perplexity: float
    standard_error: float
    comparison: Comparison | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for --json."""
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
        text: what to predict.
        reference: usually the unquantized model; it must have the same tokenizer.
        window: tokens of a window, the begin token included; None takes the context (the smaller of the two).
        stride: tokens by which each window lies after the one before; None: no overlap. Half a window takes twice as
            long, and gives each token at least half a window of what stands before it.
        max_tokens: measure only this many tokens from the start; None measures all.
        progress: called with tokens done and tokens in all.

    Raises:
        PromptError: the text is empty, or a model has no tokenizer.
        UsageError: the tokenizers differ, or a window, stride or number of tokens makes no sense.
        ModelFileError: the model's logits are not finite.
    """
    context = model.context if reference is None else min(model.context, reference.context)
    window = context if window is None else window
    if not 2 <= window <= context:
        raise UsageError(f"a window of {window} tokens is not possible; it must be from 2 to the context, {context}.")
    stride = window - 1 if stride is None else stride
    if not 1 <= stride < window:
        raise UsageError(f"a stride of {stride} tokens is not possible; it must be from 1 to {window - 1}.")
    if max_tokens is not None and max_tokens < 1:
        raise UsageError(f"{max_tokens} tokens cannot be measured; give 1 or more.")
    ids = model.tokenizer.encode(text)
    if not ids:
        raise PromptError("The text is empty.", hint="Give a file with some text.")
    if reference is not None and (
        reference.config.vocab_size != model.config.vocab_size or reference.tokenizer.encode(text) != ids
    ):
        raise UsageError("The model and its reference have different tokenizers; their figures cannot be compared.")
    if max(ids) >= model.config.vocab_size:
        raise ModelFileError(
            f"The tokenizer gives token {max(ids)}; the model has a vocabulary of {model.config.vocab_size}.",
            hint="The tokenizer is of another model.",
        )
    ids = ids[:max_tokens]
    sums = _Sums()
    windows = range(0, max(len(ids) - (window - 1) + stride, 1), stride)  # the last is the first to reach the end
    for start in windows:
        _measure_window(model, reference, ids[start : start + window - 1], sums.tokens - start, sums)
        if progress is not None:
            progress(sums.tokens, len(ids))
    return sums.report(len(windows), window, compared=reference is not None)


def _measure_window(model: Model, reference: Model | None, targets: Sequence[int], known: int, sums: _Sums) -> None:
    """Add a window's tokens to the sums, without the first `known`, which have been counted."""
    inputs = [model.tokenizer.bos_id, *targets[:-1]]
    cache = model.new_kv_cache()
    reference_cache = None if reference is None else reference.new_kv_cache()
    for start in range(0, len(inputs), ROWS):
        rows = inputs[start : start + ROWS]
        skip = max(0, known - start)
        wanted = torch.tensor(targets[start : start + ROWS])[skip:]  # [T]
        logits = model.forward(rows, kv_cache=cache)  # [ROWS, V]
        others = None if reference is None else reference.forward(rows, kv_cache=reference_cache)
        if len(wanted):
            sums.add(_logprobs(logits, skip), wanted, None if others is None else _logprobs(others, skip))


class _Sums:
    """Sums over positions, in float64: a text has too many for float32."""

    def __init__(self) -> None:
        self.tokens = 0
        self.nll = 0.0
        self.nll_squared = 0.0
        self.reference_nll = 0.0
        self.kl = 0.0
        self.max_kl = 0.0
        self.agreed = 0

    def add(self, logprobs: Tensor, wanted: Tensor, reference: Tensor | None) -> None:
        nll = _nll(logprobs, wanted)  # [T]
        _check_finite(nll, "model")
        self.tokens += len(wanted)
        self.nll += float(nll.sum())
        self.nll_squared += float(nll.square().sum())
        if reference is not None:
            reference_nll = _nll(reference, wanted)  # [T]
            _check_finite(reference_nll, "reference")
            kl = (reference.exp().double() * (reference - logprobs).double()).sum(-1)  # [T]
            self.kl += float(kl.sum())
            self.max_kl = max(self.max_kl, float(kl.max()))
            self.reference_nll += float(reference_nll.sum())
            self.agreed += int((logprobs.argmax(-1) == reference.argmax(-1)).sum())

    def report(self, windows: int, window: int, *, compared: bool) -> PerplexityReport:
        mean = self.nll / self.tokens
        variance = max(0.0, self.nll_squared / self.tokens - mean * mean)
        value = _exp(mean)
        comparison = None
        if compared:
            comparison = Comparison(
                reference_perplexity=_exp(self.reference_nll / self.tokens),
                mean_kl=self.kl / self.tokens,
                max_kl=self.max_kl,
                top1_agreement=self.agreed / self.tokens,
            )
        error = value * math.sqrt(variance / self.tokens)
        return PerplexityReport(self.tokens, windows, window, value, error, comparison)


def _logprobs(logits: Tensor, skip: int) -> Tensor:
    """Return log p [T, V] of all rows but the first `skip`."""
    return logits[skip:].log_softmax(-1)


def _nll(logprobs: Tensor, wanted: Tensor) -> Tensor:
    """Return -log p of the wanted tokens [T], given log p of all [T, V], in float64."""
    return -logprobs.gather(-1, wanted[:, None])[:, 0].double()


def _check_finite(nll: Tensor, whose: str) -> None:
    if not bool(torch.isfinite(nll).all()):
        raise ModelFileError(f"The {whose}'s logits are not finite.", hint="Check its folder with `mixq verify`.")


def _exp(mean_nll: float) -> float:
    """Return exp, at most 1e300: a broken model's perplexity must still be a number."""
    return math.exp(mean_nll) if mean_nll < math.log(1e300) else 1e300
