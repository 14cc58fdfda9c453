"""One answer: prefill in chunks, then a token at a time, as an iterator of typed events.

Contract: `generate` yields PromptProgress, then Token, then one Done, and every front end reads the same stream (the
engine puts a Notice between them where something changes). The
KV cache holds afterwards exactly the tokens that were run. Closing the iterator or setting `cancel` ends it within
one token or one prefill chunk. This module knows no folder and no terminal.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from mixq.errors import ModelFileError, PromptError, printable
from mixq.experts.offload import ExpertOffload
from mixq.experts.stats import ExpertStats
from mixq.model.attention import Chunk
from mixq.model.kv_cache import KVCache
from mixq.sampling import Sampler, SamplingParams, top_logprobs
from mixq.text.stream import StopMatcher, StreamDecoder

PREFILL_CHUNK = 512
"""Tokens of a prompt that run in one pass: bounds activations and attention mask at any prompt length."""

FinishReason = Literal["stop", "length", "context", "cancelled"]


@dataclass(frozen=True, slots=True)
class Stats:
    """Times and counts of one answer.

    `prompt_tokens` counts what was run, `cached_tokens` what the KV cache held already. Times are in seconds;
    `time_to_first_token` counts from the call. `experts` says where experts were computed, None on the CPU alone.
    """

    prompt_tokens: int
    cached_tokens: int
    prompt_seconds: float
    decode_tokens: int
    decode_seconds: float
    time_to_first_token: float
    context_used: int
    context_size: int
    experts: ExpertStats | None = None

    @property
    def prompt_tokens_per_second(self) -> float:
        """Prefill speed; 0 where nothing was run."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds > 0 else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Decode speed over the passes after the first token; 0 where there was none."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return fields and speeds for --json."""
        return {
            **{f.name: getattr(self, f.name) for f in fields(self) if f.name != "experts"},
            "prompt_tokens_per_second": self.prompt_tokens_per_second,
            "decode_tokens_per_second": self.decode_tokens_per_second,
            **({"experts": self.experts.as_dict()} if self.experts is not None else {}),
        }


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """`done` of `total` prompt tokens have been run."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Notice:
    """One line that the user should see: something is not as it was, and why."""

    text: str


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token.

    `text` is what can be shown since the last event: empty while a character or a possible stop text is incomplete.
    `logprob` and `top_logprobs` (token id, log probability) are of the model's own distribution, before sampling.
    """

    id: int
    text: str
    logprob: float | None = None
    top_logprobs: Sequence[tuple[int, float]] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """The end of an answer.

    `tail` is text that no Token carried (an incomplete character, a stop text that did not come); `text` is the
    whole answer, `token_ids` its tokens without the end token.
    """

    reason: FinishReason
    text: str
    token_ids: tuple[int, ...]
    stats: Stats
    tail: str = ""
    tokens: tuple[Token, ...] = field(default=(), repr=False)


Event = PromptProgress | Notice | Token | Done


class Network(Protocol):
    """What generating needs of a model."""

    def forward(self, chunks: Sequence[Chunk], *, all_logits: bool = False) -> Tensor:
        """Run tokens and return float32 logits."""
        ...


def generate(
    network: Network,
    kv_cache: KVCache,
    prompt_ids: Sequence[int],
    params: SamplingParams,
    *,
    eos_token_ids: Sequence[int],
    vocab_size: int,
    decoder: StreamDecoder | None,
    cancel: threading.Event | None = None,
    experts: ExpertOffload | None = None,
) -> Iterator[Event]:
    """Answer `prompt_ids`, of which the first `kv_cache.length` have been run already.

    Args:
        network: the model.
        kv_cache: of this conversation; at least the last prompt token must be new.
        prompt_ids: the whole prompt.
        params: how to choose and when to stop.
        eos_token_ids: tokens that end an answer.
        vocab_size: tokens that may be drawn: the first so many logits.
        decoder: turns tokens into text; None for a model without a tokenizer (no text, no stop texts).
        cancel: ends the answer when set.
        experts: what counts for the statistics where experts were computed.

    Raises:
        PromptError: the prompt is empty, does not fit into the context, or holds an id outside the vocabulary.
        ModelFileError: the logits are not finite.
    """
    check_prompt(prompt_ids, kv_cache.capacity, vocab_size)
    answer = _Answer(kv_cache, len(prompt_ids), experts)
    logits: Tensor | None = None
    while kv_cache.length < len(prompt_ids):
        if cancel is not None and cancel.is_set():
            yield answer.done("cancelled")
            return
        ids = prompt_ids[kv_cache.length : kv_cache.length + PREFILL_CHUNK]
        logits = _next_logits(network, kv_cache, ids, vocab_size)  # [V]
        yield PromptProgress(kv_cache.length - answer.cached, len(prompt_ids) - answer.cached)
    assert logits is not None, "the caller leaves at least one token to run"

    sampler = Sampler(params, prompt_ids, vocab_size)
    stops = StopMatcher(params.stop)
    reason: FinishReason | None = None
    while reason is None:
        token_id = _choose(sampler, logits)
        answer.note_first_token()
        if token_id in eos_token_ids and not params.ignore_eos:
            reason = "stop"
            break
        text, stopped = stops.push(decoder.push(token_id) if decoder is not None else "")
        yield answer.add(_token(token_id, text, logits, params.logprobs))
        if stopped:
            reason = "stop"
        elif params.max_tokens is not None and len(answer.tokens) >= params.max_tokens:
            reason = "length"
        elif kv_cache.length >= kv_cache.capacity:
            reason = "context"
        elif cancel is not None and cancel.is_set():
            reason = "cancelled"
        else:
            logits = _next_logits(network, kv_cache, [token_id], vocab_size)

    rest, _ = stops.push(decoder.flush() if decoder is not None else "")
    yield answer.done(reason, tail=rest + stops.flush())


def check_prompt(prompt_ids: Sequence[int], capacity: int, vocab_size: int) -> None:
    """Refuse a prompt that cannot be run whole; nothing is ever cut.

    Raises:
        PromptError: empty, too long for `capacity` positions, or with an id outside the vocabulary.
    """
    if not len(prompt_ids):
        raise PromptError("The prompt is empty.", hint="Give some text.")
    if len(prompt_ids) > capacity:
        raise PromptError(
            f"The prompt has {len(prompt_ids)} tokens; the context holds {capacity}.",
            hint="Shorten it, or give a larger --context (up to the model's own maximum, shown by `mixq show`).",
        )
    for token_id in prompt_ids:
        if not isinstance(token_id, int) or isinstance(token_id, bool):
            raise PromptError(f"{printable(repr(token_id))} is no token id; ids are whole numbers.")
    worst = max(prompt_ids) if min(prompt_ids) >= 0 else min(prompt_ids)
    if not 0 <= worst < vocab_size:
        raise PromptError(f"Token id {worst} is outside the vocabulary of {vocab_size}.")


def _next_logits(network: Network, kv_cache: KVCache, ids: Sequence[int], vocab_size: int) -> Tensor:
    return network.forward([Chunk(torch.tensor(ids, dtype=torch.long), kv_cache)])[0, :vocab_size]


def _token(token_id: int, text: str, logits: Tensor, logprobs: int | None) -> Token:
    if logprobs is None:
        return Token(token_id, text)
    distribution = logits.log_softmax(-1)
    return Token(token_id, text, float(distribution[token_id]), top_logprobs(distribution, logprobs))


def _choose(sampler: Sampler, logits: Tensor) -> int:
    try:
        return sampler.choose(logits)
    except ArithmeticError as error:
        raise ModelFileError(
            "The model's logits are not finite.", hint="The weights are damaged; check them with `mixq verify`."
        ) from error


class _Answer:
    """What has been said so far, and when."""

    def __init__(self, kv_cache: KVCache, prompt_tokens: int, experts: ExpertOffload | None) -> None:
        self.kv_cache = kv_cache
        self.experts = experts
        self.experts_before = experts.snapshot() if experts is not None else None
        self.prompt_tokens = prompt_tokens
        self.cached = kv_cache.length
        self.tokens: list[Token] = []
        self.started = time.perf_counter()
        self.first_token_at: float | None = None

    def note_first_token(self) -> None:
        if self.first_token_at is None:
            self.first_token_at = time.perf_counter()

    def add(self, token: Token) -> Token:
        self.tokens.append(token)
        return token

    def done(self, reason: FinishReason, tail: str = "") -> Done:
        now = time.perf_counter()
        first = now if self.first_token_at is None else self.first_token_at
        decoded = max(0, self.kv_cache.length - self.prompt_tokens)
        stats = Stats(
            prompt_tokens=self.kv_cache.length - decoded - self.cached,
            cached_tokens=self.cached,
            prompt_seconds=first - self.started,
            decode_tokens=decoded,
            decode_seconds=now - first,
            time_to_first_token=first - self.started,
            context_used=self.kv_cache.length,
            context_size=self.kv_cache.capacity,
            experts=self._expert_stats(),
        )
        text = "".join(t.text for t in self.tokens) + tail
        return Done(reason, text, tuple(t.id for t in self.tokens), stats, tail, tuple(self.tokens))

    def _expert_stats(self) -> ExpertStats | None:
        if self.experts is None or self.experts_before is None:
            return None
        return self.experts.stats_since(self.experts_before)
