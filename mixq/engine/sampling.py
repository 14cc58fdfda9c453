"""From logits to the next token: penalties, filters, a seeded draw; and the sampling that a model folder asks for.

Contract: the order is that of transformers: penalties and biases, what a grammar allows, temperature, top-k, top-p,
min-p, then the draw. Temperature 0 takes the largest logit. The same seed gives the same tokens. This module knows no
model and no text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from mixq.errors import Fields, ModelFileError, UsageError, did_you_mean, is_integer, is_number, printable

GREEDY_BELOW = 1e-5
"""A temperature below this is greedy: dividing float32 differences of logits by it would overflow."""

DEFAULT_SAMPLING: Mapping[str, float] = {"temperature": 0.7, "top_p": 0.95}
"""The sampling if generation_config.json does not have do_sample, as Mixtral's does not."""

_TRANSFORMERS_DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens, and when to stop.

    Attributes:
        temperature: 0 is greedy.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probabilities reach p.
        min_p: drop tokens less likely than min_p times the most likely one.
        repetition_penalty: divide positive and multiply negative logits of tokens already seen (CTRL, Keskar 2019).
        presence_penalty: subtracted from the logit of every token of the answer so far (OpenAI's API).
        frequency_penalty: the same, times the number of times that the token is in the answer.
        logit_bias: added to the logits of these token ids, from -100 to 100.
        seed: of the draw; None takes a random one.
        max_tokens: None means up to the end of the context; 0 runs the prompt alone.
        stop: texts that end the answer; they are not part of it.
        logprobs: None for no log probabilities, else how many of the most likely tokens to list at each step.
        ignore_eos: continue after the end token (benches).
    """

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        checked = Fields({f.name: getattr(self, f.name) for f in fields(self)}, error=UsageError)
        checked.number("temperature", 0, 100)
        checked.integer("top_k", 0, 2**31 - 1)
        checked.number("top_p", 0, 1)
        checked.number("min_p", 0, 1)
        checked.number("repetition_penalty", 0.01, 100)
        checked.number("presence_penalty", -2, 2)
        checked.number("frequency_penalty", -2, 2)
        checked.integer("seed", 0, default=0)
        checked.integer("max_tokens", 0, 2**31 - 1, default=0)
        checked.integer("logprobs", 0, 100, default=0)
        if self.top_p == 0.0:
            raise UsageError("top_p is 0; it must be above 0.", hint="For greedy decoding set temperature 0.")
        logit_bias: Any = self.logit_bias
        if not isinstance(logit_bias, Mapping):
            raise UsageError("logit_bias must map token ids to numbers.")
        for token_id, bias in logit_bias.items():
            if not (is_integer(token_id) and is_number(bias, -100, 100)):
                shown = f"{printable(repr(token_id))}: {printable(repr(bias))}"
                raise UsageError(f"logit_bias has {shown}; it must map token ids to numbers from -100 to 100.")
        stop: Any = self.stop
        if not isinstance(stop, tuple) or not all(isinstance(s, str) and s for s in stop):
            raise UsageError("stop must be a tuple of non-empty texts.")

    @classmethod
    def from_kwargs(cls, **params: Any) -> SamplingParams:
        """Build parameters from keyword arguments, refusing unknown names with a suggestion."""
        known = [f.name for f in fields(cls)]
        for name in params:
            if name not in known:
                raise UsageError(f"unknown sampling parameter {printable(name)!r}." + did_you_mean(name, known))
        if "stop" in params:
            stop = params["stop"]
            params["stop"] = (stop,) if isinstance(stop, str) else tuple(stop or ())
        return cls(**params)


def default_sampling(generation_config: Mapping[str, Any]) -> dict[str, float]:
    """Return the sampling parameters that a parsed generation_config.json asks for, as arguments of `SamplingParams`.

    With do_sample true the file's values hold, and transformers' defaults where it has none; with do_sample false
    decoding is greedy; without do_sample it is `DEFAULT_SAMPLING`.

    Raises:
        ModelFileError: a value of the wrong kind; bounds are checked by `SamplingParams`.
    """
    fields = Fields(generation_config, "generation_config.json: ")
    if generation_config.get("do_sample") is None:
        return dict(DEFAULT_SAMPLING)
    if not fields.boolean("do_sample"):
        return {"temperature": 0.0}
    numbers = {name: fields.number(name, default=default) for name, default in _TRANSFORMERS_DEFAULTS.items()}
    return {**numbers, "top_k": fields.integer("top_k", default=50)}


class Sampler:
    """Draws the tokens of one answer; the ids of prompt and logit_bias are within the vocabulary."""

    def __init__(self, params: SamplingParams, prompt_ids: Iterable[int], vocab_size: int) -> None:
        self.params = params
        self.generator = torch.Generator()
        if params.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(params.seed)
        self._seen = torch.zeros(vocab_size, dtype=torch.bool)
        self._seen[torch.tensor(list(prompt_ids), dtype=torch.long)] = True
        self._counts = torch.zeros(vocab_size) if params.presence_penalty or params.frequency_penalty else None
        self._bias: Tensor | None = None
        if params.logit_bias:
            self._bias = torch.zeros(vocab_size)
            self._bias[list(params.logit_bias)] = torch.tensor(list(params.logit_bias.values()), dtype=torch.float32)

    def choose(self, logits: Tensor, allowed: Tensor | None = None) -> int:
        """Return the next token, given float32 logits [V].

        Args:
            allowed: bool [V], the tokens that a grammar allows, at least one; None for all.

        Raises:
            ModelFileError: the logits are not finite.
        """
        if not bool(torch.isfinite(logits).all()):
            raise ModelFileError(
                "The model's logits are not finite.", hint="The weights are damaged; check them with `mixq verify`."
            )
        logits = self._penalized(logits)
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -math.inf)
        params = self.params
        if params.temperature < GREEDY_BELOW:
            token = int(logits.argmax())
        else:
            probabilities = self.probabilities((logits - logits.max()) / params.temperature)
            token = self._draw(probabilities)
        self._seen[token] = True
        if self._counts is not None:
            self._counts[token] += 1
        return token

    def _draw(self, probabilities: Tensor) -> int:
        """Return an index drawn by its probability, in a tenth of torch.multinomial's time."""
        cumulative = probabilities.double().cumsum(0)  # [V]
        point = torch.rand((), generator=self.generator, dtype=torch.float64) * cumulative[-1]
        # The first beyond the point has a probability; if the point was rounded up to the end, the first at the end.
        beyond = min(int(torch.searchsorted(cumulative, point, right=True)), len(cumulative) - 1)
        return min(beyond, int(torch.searchsorted(cumulative, cumulative[-1])))

    def _penalized(self, logits: Tensor) -> Tensor:
        params = self.params
        penalty = params.repetition_penalty
        if penalty != 1.0:
            changed = torch.where(logits > 0, logits / penalty, logits * penalty)
            logits = torch.where(self._seen, changed, logits)
        if self._counts is not None:
            counted = params.frequency_penalty * self._counts
            logits = logits - counted - params.presence_penalty * (self._counts > 0)
        return logits if self._bias is None else logits + self._bias

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return what top-k, top-p and min-p leave of softmax(logits [V]), summing to one."""
        params = self.params
        if 0 < params.top_k < logits.numel():
            kth = logits.topk(params.top_k).values[-1]
            logits = logits.masked_fill(logits < kth, -math.inf)
        if params.top_p < 1.0:
            kept = _nucleus(logits.softmax(-1), params.top_p)
            logits = torch.full_like(logits, -math.inf).scatter(0, kept, logits[kept])
        if params.min_p > 0.0:
            likely = logits.softmax(-1)
            logits = logits.masked_fill(likely < params.min_p * likely.max(), -math.inf)
        return logits.softmax(-1)


def top_logprobs(logprobs: Tensor, count: int) -> Sequence[tuple[int, float]]:
    """Return the `count` most likely (token id, log probability) of logprobs [V], best first."""
    best = logprobs.topk(min(count, logprobs.numel()))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Return the ids of the smallest set of tokens whose probabilities [V] reach top_p, the most likely first.

    Only the few most likely are sorted at first: sorting a whole vocabulary would take longer than the rest of
    sampling.
    """
    for count in (256, 4096, len(probabilities)):
        best = probabilities.topk(min(count, len(probabilities)))
        before = best.values.cumsum(-1) - best.values
        if count >= len(probabilities) or before[-1] >= top_p:
            break
    surplus = before >= top_p  # the tokens before it already reach p
    surplus[0] = False  # the most likely stays, however small p is
    return best.indices[~surplus]
