"""What an answer is made of, as it comes: the events that every front end reads.

Contract: plain data. A stream is PromptProgress, perhaps PromptLogprobs, then Token after Token, with a Notice where
something changes, and one Done; in a batch (`mixq.engine.batching`) an answer that cannot be finished ends with Failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from mixq.errors import MixqError
from mixq.experts.stats import ExpertStats

FinishReason = Literal["stop", "length", "context", "cancelled"]


@dataclass(frozen=True, slots=True)
class Stats:
    """Times and counts of one answer.

    `prompt_tokens` counts what was run, `cached_tokens` what the KV cache held already. Times are in seconds;
    `time_to_first_token` counts from the call. `experts` says where experts were computed meanwhile, for all answers of
    a batch together; None on the CPU alone.
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
    `experts` are those that answered for it, layer by layer; given where they were asked for.
    """

    id: int
    text: str
    logprob: float | None = None
    top_logprobs: Sequence[tuple[int, float]] = ()
    experts: Sequence[Sequence[int]] = ()


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """The prompt's own tokens, each with its log probability after those before it; the first has none."""

    tokens: tuple[Token, ...]


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


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of an answer of a batch that could not be finished, and why."""

    error: MixqError


Event = PromptProgress | Notice | PromptLogprobs | Token | Done
