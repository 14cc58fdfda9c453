"""An answer in progress, and the step that advances answers: schedule, run, sample, emit.

Contract: `step` runs the next tokens of one or more answers in one forward pass and returns their events. A single
answer is a batch of one; an answer does not depend on the others in its batch. The KV cache of an answer holds exactly
the tokens that were run.

Axes: S answers, T tokens that were run, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mixq.config import PREFILL_CHUNK
from mixq.engine.events import Done, Event, Failed, FinishReason, PromptProgress, Stats, Token
from mixq.engine.sampling import Sampler, SamplingParams, top_logprobs
from mixq.engine.sequences import KeptSequence
from mixq.errors import MixqError, PromptError, PromptTooLong, is_integer, printable
from mixq.experts.telemetry import ExpertTelemetry
from mixq.model.attention import Chunk
from mixq.model.mixtral import Mixtral
from mixq.text.grammar import Grammar, GrammarSpec
from mixq.text.stream import StopMatcher
from mixq.text.tokenizer import StreamDecoder


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass."""

    chunks: list[Chunk]  # the tokens that were run, of each answer
    seconds: float  # that the network took
    events: list[list[Event | Failed]]  # of each answer


def step(network: Mixtral, answers: Sequence[Answer]) -> Pass:
    """Advance answers by one forward pass: by the next chunk of one prompt, or by the next token of each.

    Raises:
        MixqError: the forward pass failed; if one answer fails, its events end with Failed.
    """
    chunks = [answer.schedule() for answer in answers]
    whole_chunks = any(answer.needs_all_logits for answer in answers)
    begun = time.perf_counter()
    logits = network.forward(chunks, all_logits=whole_chunks)  # [S, V], or [T, V] for whole chunks
    seconds = time.perf_counter() - begun
    by_answer = torch.split(logits, [len(chunk.token_ids) for chunk in chunks] if whole_chunks else 1)
    shown = network.chosen_experts() if any(answer.task.show_experts for answer in answers) else []
    experts = shown[-len(answers) :] or [[]] * len(answers)  # of the last token of each
    events = [answer.take(rows, chosen) for answer, rows, chosen in zip(answers, by_answer, experts, strict=True)]
    return Pass(chunks, seconds, events)


@dataclass(frozen=True, slots=True)
class Request:
    """A request for one answer."""

    prompt_ids: Sequence[int]  # the whole prompt
    params: SamplingParams  # how to choose tokens and when to stop
    continues_text: bool = False  # keep the space before the first word (completion), or remove it (reply)
    # how many of the most likely tokens to list for each token of the prompt, which is then run whole; None for no log
    # probabilities of the prompt
    prompt_logprobs: int | None = None
    grammar: GrammarSpec | None = None  # what the text must match
    # reuse a kept KV cache with the same beginning; without it, results are bit-identical whatever was requested before
    reuse: bool = True
    experts: bool = False  # list with each token the experts that computed it


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt, and how to answer it.

    Attributes:
        prompt_ids, params, prompt_logprobs: as in `Request`; nothing of a prompt with log probabilities may be in the
            KV cache.
        eos_token_ids: tokens that end an answer.
        vocab_size: tokens that may be drawn: the first so many logits.
        decoder: turns tokens into text; None for a model without a tokenizer (no text, no stop strings).
        grammar: what the text must match; None for any text.
        show_experts: list with each token the experts that computed it.
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
    """An answer to a prompt of which the first `sequence.kv_cache.length` tokens have been run already.

    Args:
        task: the prompt, and how to answer it.
        sequence: holds the prompt, and takes the answer's tokens; at least the last prompt token must be new.
        telemetry: counts where experts are computed; None on the CPU alone.
        asked_at: when the request came (`time.perf_counter`); None is now.

    Attributes:
        finished: the last event was Done or Failed.
    """

    def __init__(
        self, task: Task, sequence: KeptSequence, *, telemetry: ExpertTelemetry | None, asked_at: float | None = None
    ) -> None:
        self.task = task
        self.sequence = sequence
        self.finished = False
        self._kv_cache = sequence.kv_cache
        self._cached = sequence.kv_cache.length
        assert self._cached < len(task.prompt_ids), "the caller leaves at least one token to run"
        assert task.prompt_logprobs is None or not self._cached, "log probabilities need every token to run"
        self._sampler = Sampler(task.params, task.prompt_ids, task.vocab_size)
        self._stops = StopMatcher(task.params.stop)
        self._tokens: list[Token] = []
        self._prompt_tokens: list[Token] = []
        self._last_row: Tensor | None = None  # log probabilities after the prompt tokens that have run
        self._telemetry = telemetry
        self._counts_before = None if telemetry is None else telemetry.snapshot()
        self._began = time.perf_counter()
        self._asked = self._began if asked_at is None else asked_at
        self._first_token_at: float | None = None

    @property
    def in_prompt(self) -> bool:
        """Whether tokens of the prompt are still to be run."""
        return self._kv_cache.length < len(self.task.prompt_ids)

    @property
    def needs_all_logits(self) -> bool:
        """Whether `take` needs the logits of every token that runs, not only of the last."""
        return self.in_prompt and self.task.prompt_logprobs is not None

    def schedule(self) -> Chunk:
        """Return the tokens to run next: a chunk of the prompt, or the last token."""
        done = self._kv_cache.length
        return Chunk(torch.tensor(self.sequence.ids[done : done + PREFILL_CHUNK]), self._kv_cache)

    def take(self, logits: Tensor, experts: Sequence[Sequence[int]] = ()) -> list[Event | Failed]:
        """Return the events that follow from the tokens that have run; the next token is chosen here.

        Args:
            logits: float32, of the last of them [1, V], or of each [T, V] where `needs_all_logits`.
            experts: of the last of them, layer by layer; empty if they are not shown.
        """
        try:
            return [*self._progress(logits[:, : self.task.vocab_size], experts)]
        except MixqError as error:
            self.finished = True
            return [Failed(error)]

    def _progress(self, logits: Tensor, experts: Sequence[Sequence[int]]) -> Iterator[Event]:
        if not self._tokens:
            yield PromptProgress(self._kv_cache.length - self._cached, len(self.task.prompt_ids) - self._cached)
            if self.task.prompt_logprobs is not None:
                self._score(logits, self.task.prompt_logprobs)
        if not self.in_prompt:
            yield from self._choose(logits[-1], experts)

    def end(self, reason: FinishReason) -> Done:
        """Finish now: held-back text becomes the tail."""
        self.finished = True
        decoder = self.task.decoder
        rest, _ = self._stops.push(decoder.flush() if decoder is not None else "")
        tail = rest + self._stops.flush()
        tokens = tuple(self._tokens)
        text = "".join(token.text for token in tokens) + tail
        ids = tuple(token.id for token in tokens)
        return Done(reason, text, ids, self._stats(), tail, tokens, tuple(self._prompt_tokens))

    def _choose(self, logits: Tensor, experts: Sequence[Sequence[int]]) -> Iterator[Event]:
        """Choose the next token by its logits [V]."""
        params, grammar, decoder = self.task.params, self.task.grammar, self.task.decoder
        if params.max_tokens == 0:
            yield self.end("length")
            return
        allowed = _bits(grammar.allowed(), len(logits)) if grammar is not None else None
        token_id = self._sampler.choose(logits, allowed)
        if self._first_token_at is None:
            self._first_token_at = time.perf_counter()
        if token_id in self.task.eos_token_ids and not params.ignore_eos:
            yield self.end("stop")
            return
        if grammar is not None:
            grammar.accept(token_id)
        text, stopped = self._stops.push(decoder.push(token_id) if decoder is not None else "")
        token = Token(token_id, text, experts=experts if self.task.show_experts else ())
        if params.logprobs is not None:
            logprobs = logits.log_softmax(-1)
            likely = top_logprobs(logprobs, params.logprobs)
            token = replace(token, logprob=float(logprobs[token_id]), top_logprobs=likely)
        self._tokens.append(token)
        self.sequence.ids.append(token_id)
        yield token
        reason = self._reason_to_end(stopped or (grammar is not None and grammar.complete))
        if reason is not None:
            yield self.end(reason)

    def _reason_to_end(self, stopped: bool) -> FinishReason | None:
        if stopped:
            return "stop"
        if self.task.params.max_tokens is not None and len(self._tokens) >= self.task.params.max_tokens:
            return "length"
        return "context" if self._kv_cache.length >= self._kv_cache.capacity else None

    def _score(self, logits: Tensor, count: int) -> None:
        """Keep the log probabilities of the prompt tokens that have just run, given the logits [T, V] after each."""
        done = self._kv_cache.length
        ids = self.task.prompt_ids[done - len(logits) : done]
        for token_id, after in zip(ids, logits.log_softmax(-1), strict=True):
            token, before = Token(token_id, ""), self._last_row
            if before is not None:
                token = replace(token, logprob=float(before[token_id]), top_logprobs=top_logprobs(before, count))
            self._prompt_tokens.append(token)
            self._last_row = after

    def _stats(self) -> Stats:
        now = time.perf_counter()
        first = now if self._first_token_at is None else self._first_token_at
        decoded = max(0, self._kv_cache.length - len(self.task.prompt_ids))
        telemetry, before = self._telemetry, self._counts_before
        return Stats(
            prompt_tokens=self._kv_cache.length - decoded - self._cached,
            cached_tokens=self._cached,
            prompt_seconds=first - self._began,
            decode_tokens=decoded,
            decode_seconds=now - first,
            time_to_first_token=first - self._asked,
            context_used=self._kv_cache.length,
            context_size=self._kv_cache.capacity,
            experts=None if telemetry is None or before is None else telemetry.stats_since(before),
        )


def check_prompt(prompt_ids: Sequence[int], capacity: int, vocab_size: int) -> None:
    """Check that a prompt can be run whole; prompts are never cut.

    Raises:
        PromptTooLong: it does not fit into `capacity` positions.
        PromptError: it is empty, or holds an id outside the vocabulary.
    """
    if not len(prompt_ids):
        raise PromptError("The prompt is empty.", hint="Use a prompt with text.")
    if len(prompt_ids) > capacity:
        raise PromptTooLong(len(prompt_ids), capacity)
    for token_id in prompt_ids:
        if not is_integer(token_id, low=-(2**63)):
            raise PromptError(f"{printable(repr(token_id))} is not a token id; ids are whole numbers.")
    worst = max(prompt_ids) if min(prompt_ids) >= 0 else min(prompt_ids)
    if not 0 <= worst < vocab_size:
        raise PromptError(f"Token id {worst} is outside the vocabulary of {vocab_size}.")


def _bits(mask: bytes, count: int) -> Tensor:
    """Return bits as bool [count], the lowest of the first byte first."""
    bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), count=count, bitorder="little")
    return torch.from_numpy(bits).bool()
