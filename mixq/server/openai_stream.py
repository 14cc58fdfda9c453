"""What OpenAI's two interfaces share in their replies: server-sent events, usage, reasons to end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from mixq.engine.events import Done
from mixq.errors import MixqError
from mixq.server.engine_host import EngineHost, Make
from mixq.server.errors import openai_error
from mixq.server.json_body import dump
from mixq.server.streams import Answers, EventStream

END = b"data: [DONE]\n\n"


def event(document: Any) -> bytes:
    """Return a server-sent event."""
    return b"data: " + dump(document) + b"\n\n"


def finish_reason(done: Done) -> str:
    """Return OpenAI's word for why an answer ended; a full context is a length too."""
    return "stop" if done.reason == "stop" else "length"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request; a prompt counts once, however many answers it has."""

    prompt: int
    completion: int
    cached: int

    @classmethod
    def of(cls, prompt: int, done: Sequence[Done]) -> Usage:
        """Return the tokens of prompts and their answers."""
        return cls(
            prompt, sum(len(each.token_ids) for each in done), max((d.stats.cached_tokens for d in done), default=0)
        )

    def as_dict(self) -> dict[str, Any]:
        """Return OpenAI's form."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": min(self.cached, self.prompt)},
        }


async def sse(host: EngineHost, make: Make, chunks: Callable[[Answers], AsyncIterator[bytes]]) -> Response:
    """Return a stream; what is refused before it begins is raised, what fails in it is its last event.

    Raises:
        MixqError: the request cannot be asked.
    """
    stack = AsyncExitStack()
    answers = await stack.enter_async_context(host.answers(make))

    async def events() -> AsyncIterator[bytes]:
        try:
            async for chunk in chunks(answers):
                yield chunk
            yield END
        except MixqError as error:
            yield event(openai_error(error))

    return EventStream(events(), "text/event-stream", stack)
