"""The request for an answer, and the state that a batcher of them reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mixq.engine.sampling import SamplingParams
from mixq.text.grammar import GrammarSpec


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to make.

    Attributes:
        prompt_ids: the whole prompt.
        params: how to choose tokens and when to stop.
        continues_text: keep the space in front of the first word (completion), or take it off (a reply).
        prompt_logprobs: how many of the likeliest tokens to list for each token of the prompt, which is then run whole;
            None for no log probabilities of the prompt.
        grammar: what the text must be.
        reuse: take over what a kept KV cache shares; without it an answer's bits do not depend on earlier requests.
        experts: list with each token the experts that computed it.
    """

    prompt_ids: Sequence[int]
    params: SamplingParams
    continues_text: bool = False
    prompt_logprobs: int | None = None
    grammar: GrammarSpec | None = None
    reuse: bool = True
    experts: bool = False


@dataclass(frozen=True, slots=True)
class BatcherState:
    """What a batcher is doing, and has done since it began.

    Attributes:
        queued, running: requests.
        kept: KV caches of ended answers, kept for a next turn.
        busy_positions: positions of KV caches in which answers are running.
        prompt_tokens, cached_tokens, decode_tokens: run, found in a KV cache, generated; of requests that have ended.
        finished: how many requests ended for which reason, "failed" among them.
        decode_tokens_per_second: of the passes of the last seconds, all answers together; 0 without one.
        expert_hit_rate: since the model was loaded; None without a cache of experts.
        broken: why the thread has ended, None while it runs.
    """

    queued: int
    running: int
    kept: int
    busy_positions: int
    prompt_tokens: int
    cached_tokens: int
    decode_tokens: int
    finished: dict[str, int]
    decode_tokens_per_second: float
    expert_hit_rate: float | None
    broken: str | None
