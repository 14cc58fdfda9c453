"""The events of an answer, in the order in which they come: what every front end reads.

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
    """One line for the user: what has changed, and why."""

    text: str


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token.

    `text` is what can be shown since the last event: empty while a character or a possible stop text is incomplete.
    `logprob` and `top_logprobs` (token id, log probability) are of the model's own distribution, before sampling.
    `experts` are those that computed it, layer by layer; listed on request.
    """

    id: int
    text: str
    logprob: float | None = None
    top_logprobs: Sequence[tuple[int, float]] = ()
    experts: Sequence[Sequence[int]] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """The end of an answer.

    `tail` is text that no Token carried (an incomplete character, the beginning of a stop text that did not follow);
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
    """What a model has to report beside its answers.

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
