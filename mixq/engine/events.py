"""The events of an answer, in their order: what every front end reads.

Contract: plain data. A stream is PromptProgress, then Token after Token, with a Notice where something changes, and one
Done; in a batch (`mixq.engine.batching`) an answer that cannot be finished ends with Failed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from mixq.errors import MixqError
from mixq.experts.stats import ExpertStats

FinishReason = Literal["stop", "length", "context", "cancelled"]


@dataclass(frozen=True, slots=True)
class Stats:
    """Times and counts of one answer.

    `prompt_tokens` were run; `cached_tokens` were in the KV cache already. Times are in seconds;
    `time_to_first_token` counts from the call. `experts` says where experts were computed in that time, for all answers
    of a batch together; None on the CPU alone.
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
        """Prefill speed; 0 if nothing was run."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds > 0 else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Decode speed after the first token; 0 if there was no later one."""
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
    """One line for the user: what has changed, and why."""

    text: str


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token.

    `text` is the new text to show: empty while a character or a possible stop string is incomplete.
    `logprob` and `top_logprobs` (token id, log probability) are those of the model, before sampling.
    `experts` computed it, layer by layer; listed on request.
    """

    id: int
    text: str
    logprob: float | None = None
    top_logprobs: Sequence[tuple[int, float]] = ()
    experts: Sequence[Sequence[int]] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """The end of an answer.

    `tail` is text that no Token carried (an incomplete character, the beginning of a stop string that did not follow);
    `text` is the whole answer, `token_ids` its tokens without the end token. `prompt_tokens` are those of the prompt
    where the request asks for their log probabilities, each given the tokens before it; the first has none.
    """

    reason: FinishReason
    text: str
    token_ids: tuple[int, ...]
    stats: Stats
    tail: str = ""
    tokens: tuple[Token, ...] = field(default=(), repr=False)
    prompt_tokens: tuple[Token, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of an answer that could not be finished, and why."""

    error: MixqError


Event = PromptProgress | Notice | Token | Done


class Log:
    """What a model reports besides its answers.

    Attributes:
        say: adds a line for the user.
        last: the end of the last answer; None before the first.
    """

    def __init__(self) -> None:
        self._lines: deque[str] = deque()
        self.say = self._lines.append
        self.last: Done | None = None

    def lines(self) -> Iterator[str]:
        """Yield the lines that have been added since the last call."""
        while self._lines:
            yield self._lines.popleft()
