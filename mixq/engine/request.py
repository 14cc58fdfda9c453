"""What is asked of a batcher, and what it says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mixq.engine.sampling import SamplingParams
from mixq.text.grammar import GrammarSpec


@dataclass(frozen=True, slots=True)
class Request:
    """One answer that is asked for.

    Attributes:
        prompt_ids: the whole prompt.
        params: how to choose and when to stop.
        continues_text: keep the space in front of the first word (completion), or take it off (a reply).
        prompt_logprobs: how many of the likeliest to list for each token of the prompt; None for none of it. The prompt
            is then run whole.
        grammar: what the text must be.
        reuse: take over what a kept conversation shares; without it an answer's bits do not depend on earlier ones.
        experts: let tokens say which experts answered for them.
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
    """What a batcher is doing and has done since it began.

    Attributes:
        queued, running: requests.
        kept: conversations whose KV caches wait for their next turn.
        busy_positions: positions of KV caches in which answers are running.
        prompt_tokens, cached_tokens, decode_tokens: run, found in a KV cache, generated; of requests that have ended.
        finished: how many requests ended for which reason, "failed" among them.
        decode_tokens_per_second: of the passes of the last seconds, all answers together; 0 where there was none.
        expert_hit_rate: since the model was loaded; None where there is no cache of experts.
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
