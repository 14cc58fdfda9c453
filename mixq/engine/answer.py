"""One answer while it is made: which tokens run next, and what the logits after them mean.

Contract: the caller runs `pending()` over the answer's KV cache and gives the logits to `take`, which returns events,
until `finished`. How many answers share a pass is the caller's business and changes nothing here. The KV cache holds
afterwards exactly the tokens that were run. This module knows no network, no folder and no terminal.

Axes: T tokens that were run, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mixq.engine.events import Done, Event, FinishReason, PromptLogprobs, PromptProgress, Stats, Token
from mixq.engine.sampling import Sampler, SamplingParams, top_logprobs
from mixq.errors import ModelFileError, PromptError, PromptTooLong, printable
from mixq.experts.offload import ExpertOffload
from mixq.experts.stats import ExpertStats
from mixq.model.kv_cache import KVCache
from mixq.text.grammar import Grammar
from mixq.text.stream import StopMatcher, StreamDecoder

PREFILL_CHUNK = 512
"""Tokens of a prompt that run in one pass: bounds activations and attention mask at any prompt length."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be answered, and how.

    Attributes:
        prompt_ids: the whole prompt.
        params: how to choose and when to stop.
        eos_token_ids: tokens that end an answer.
        vocab_size: tokens that may be drawn: the first so many logits.
        decoder: turns tokens into text; None for a model without a tokenizer (no text, no stop texts).
        grammar: what the text must be; None for anything.
        prompt_logprobs: how many of the likeliest to list for each token of the prompt; None for no log probabilities
            of the prompt. Nothing of such a prompt may be in the KV cache.
        show_experts: whether tokens say which experts answered for them.
    """

    prompt_ids: Sequence[int]
    params: SamplingParams
    eos_token_ids: Sequence[int]
    vocab_size: int
    decoder: StreamDecoder | None
    grammar: Grammar | None = None
    prompt_logprobs: int | None = None
    show_experts: bool = False


class Answer:
    """An answer to a prompt of which the first `kv_cache.length` tokens have been run already.

    Args:
        task: what is to be answered.
        kv_cache: of this conversation; at least the last prompt token must be new.
        experts: what counts where experts were computed, for the statistics.
        asked_at: when it was asked for (`time.perf_counter`), if that is longer ago.

    Raises:
        PromptError: the prompt is empty, does not fit into the context, or holds an id outside the vocabulary.

    Attributes:
        finished: no token is pending any more; the last event was Done.
    """

    def __init__(
        self, task: Task, kv_cache: KVCache, *, experts: ExpertOffload | None = None, asked_at: float | None = None
    ) -> None:
        check_prompt(task.prompt_ids, kv_cache.capacity, task.vocab_size)
        assert kv_cache.length < len(task.prompt_ids), "the caller leaves at least one token to run"
        assert task.prompt_logprobs is None or kv_cache.length == 0, "log probabilities need every token to run"
        self.task = task
        self.kv_cache = kv_cache
        self.finished = False
        self._sampler = Sampler(task.params, task.prompt_ids, task.vocab_size)
        self._stops = StopMatcher(task.params.stop)
        self._tokens: list[Token] = []
        self._prompt_tokens: list[Token] = []
        self._last_row: Tensor | None = None  # log probabilities after the prompt tokens that have run
        self._cached = kv_cache.length
        self._experts = experts
        self._experts_before = experts.snapshot() if experts is not None else None
        self._began = time.perf_counter()
        self._asked = self._began if asked_at is None else asked_at
        self._first_token_at: float | None = None

    @property
    def in_prompt(self) -> bool:
        """Whether the prompt has not been run whole."""
        return self.kv_cache.length < len(self.task.prompt_ids)

    @property
    def needs_all_logits(self) -> bool:
        """Whether `take` wants the logits of every token that runs, not of the last alone."""
        return self.in_prompt and self.task.prompt_logprobs is not None

    def pending(self) -> Sequence[int]:
        """Return the tokens that run next: a part of the prompt, or the last token."""
        if self.in_prompt:
            return self.task.prompt_ids[self.kv_cache.length : self.kv_cache.length + PREFILL_CHUNK]
        return [self._tokens[-1].id]

    def take(self, logits: Tensor, experts: Sequence[Sequence[int]] = ()) -> list[Event]:
        """Go on after the pending tokens have run.

        Args:
            logits: float32, of the last of them [1, V], or of each [T, V] where `needs_all_logits` said so.
            experts: of the last of them, layer by layer, for the token that is chosen now.

        Raises:
            ModelFileError: the logits are not finite.
        """
        logits = logits[:, : self.task.vocab_size]
        if self._tokens:
            return self._choose(logits[-1], experts)
        done, total = self.kv_cache.length - self._cached, len(self.task.prompt_ids) - self._cached
        events: list[Event] = [PromptProgress(done, total)]
        if self.task.prompt_logprobs is not None:
            self._score(logits, self.task.prompt_logprobs)
            if not self.in_prompt:
                events.append(PromptLogprobs(tuple(self._prompt_tokens)))
        if self.in_prompt:
            return events
        return [*events, *self._choose(logits[-1], experts)]

    def end(self, reason: FinishReason) -> Done:
        """Finish now: what was held back of the text comes as the tail."""
        self.finished = True
        decoder = self.task.decoder
        rest, _ = self._stops.push(decoder.flush() if decoder is not None else "")
        tail = rest + self._stops.flush()
        tokens = tuple(self._tokens)
        text = "".join(token.text for token in tokens) + tail
        return Done(reason, text, tuple(token.id for token in tokens), self._stats(), tail, tokens)

    def _choose(self, logits: Tensor, experts: Sequence[Sequence[int]]) -> list[Event]:
        """Return the events of the next token, chosen by its logits [V]."""
        params, grammar = self.task.params, self.task.grammar
        if params.max_tokens == 0:
            return [self.end("length")]
        allowed = _bits(grammar.allowed(), len(logits)) if grammar is not None else None
        try:
            token_id = self._sampler.choose(logits, allowed)
        except ArithmeticError as error:
            raise ModelFileError(
                "The model's logits are not finite.", hint="The weights are damaged; check them with `mixq verify`."
            ) from error
        if self._first_token_at is None:
            self._first_token_at = time.perf_counter()
        if token_id in self.task.eos_token_ids and not params.ignore_eos:
            return [self.end("stop")]
        if grammar is not None:
            grammar.accept(token_id)
        decoder = self.task.decoder
        text, stopped = self._stops.push(decoder.push(token_id) if decoder is not None else "")
        token = _token(token_id, text, logits, params.logprobs)
        if self.task.show_experts:
            token = replace(token, experts=experts)
        self._tokens.append(token)
        reason = self._reason_to_end(stopped or (grammar is not None and grammar.complete))
        return [token] if reason is None else [token, self.end(reason)]

    def _reason_to_end(self, stopped: bool) -> FinishReason | None:
        if stopped:
            return "stop"
        if self.task.params.max_tokens is not None and len(self._tokens) >= self.task.params.max_tokens:
            return "length"
        return "context" if self.kv_cache.length >= self.kv_cache.capacity else None

    def _score(self, logits: Tensor, count: int) -> None:
        """Note the log probabilities of the prompt's tokens that have just run, by the logits [T, V] after each."""
        distributions = logits.log_softmax(-1)
        ids = self.task.prompt_ids[self.kv_cache.length - len(logits) : self.kv_cache.length]
        for token_id, after in zip(ids, distributions, strict=True):
            before = self._last_row
            if before is None:
                self._prompt_tokens.append(Token(token_id, ""))
            else:
                likely = top_logprobs(before, count)
                self._prompt_tokens.append(Token(token_id, "", float(before[token_id]), likely))
            self._last_row = after

    def _stats(self) -> Stats:
        now = time.perf_counter()
        first = now if self._first_token_at is None else self._first_token_at
        decoded = max(0, self.kv_cache.length - len(self.task.prompt_ids))
        return Stats(
            prompt_tokens=self.kv_cache.length - decoded - self._cached,
            cached_tokens=self._cached,
            prompt_seconds=first - self._began,
            decode_tokens=decoded,
            decode_seconds=now - first,
            time_to_first_token=first - self._asked,
            context_used=self.kv_cache.length,
            context_size=self.kv_cache.capacity,
            experts=self._expert_stats(),
        )

    def _expert_stats(self) -> ExpertStats | None:
        if self._experts is None or self._experts_before is None:
            return None
        return self._experts.stats_since(self._experts_before)


def check_prompt(prompt_ids: Sequence[int], capacity: int, vocab_size: int) -> None:
    """Refuse a prompt that cannot be run whole; nothing is ever cut.

    Raises:
        PromptTooLong: it does not fit into `capacity` positions.
        PromptError: it is empty, or holds an id outside the vocabulary.
    """
    if not len(prompt_ids):
        raise PromptError("The prompt is empty.", hint="Give some text.")
    if len(prompt_ids) > capacity:
        raise PromptTooLong(len(prompt_ids), capacity)
    for token_id in prompt_ids:
        if not isinstance(token_id, int) or isinstance(token_id, bool):
            raise PromptError(f"{printable(repr(token_id))} is no token id; ids are whole numbers.")
    worst = max(prompt_ids) if min(prompt_ids) >= 0 else min(prompt_ids)
    if not 0 <= worst < vocab_size:
        raise PromptError(f"Token id {worst} is outside the vocabulary of {vocab_size}.")


def pending_tensor(answer: Answer) -> Tensor:
    """Return the tokens that run next, int64 [T]."""
    return torch.tensor(list(answer.pending()), dtype=torch.long)


def _token(token_id: int, text: str, logits: Tensor, logprobs: int | None) -> Token:
    if logprobs is None:
        return Token(token_id, text)
    distribution = logits.log_softmax(-1)
    return Token(token_id, text, float(distribution[token_id]), top_logprobs(distribution, logprobs))


def _bits(mask: bytes, count: int) -> Tensor:
    """Return bits as bool [count], the lowest of the first byte first."""
    bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), count=count, bitorder="little")
    return torch.from_numpy(bits).bool()
