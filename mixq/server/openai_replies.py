"""What the replies of OpenAI's two interfaces share: events, usage, finish reasons, the extension `mixq`."""

from __future__ import annotations

import time
import uuid
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mixq.engine.events import Done, Event, PromptProgress, Token
from mixq.engine.request import Request
from mixq.engine.sampling import SamplingParams
from mixq.errors import MixqError
from mixq.server.answers import Result
from mixq.server.engine_host import EngineHost
from mixq.server.errors import openai_error
from mixq.server.openai_body import Shared
from mixq.server.replies import Document, Reply, finish_reason


class OpenAIReply(Reply):
    """One request to either interface.

    Args:
        prefix: of the reply's id.
        sampling: parameters beside those that both interfaces have.
    """

    media_type = "text/event-stream"
    prefix, suffix = b"data: ", b"\n\n"
    end = b"data: [DONE]\n\n"
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, host: EngineHost, body: Shared, prefix: str, **sampling: Any) -> None:
        engine = host.engine
        self.host = host
        self.shared = body
        self.scores: bool = sampling["logprobs"] is not None
        self.prompt_tokens = 0  # set by `requests`, of all prompts
        self._params = {**body.sampling(engine.sampling, seed=engine.model.options.seed), **sampling}
        self._grammar = body.grammar()
        self._extended = "mixq" in body.model_fields_set
        self._finished: list[Done] = []
        self._head = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": host.name}

    def request(self, ids: Sequence[int], index: int, **options: Any) -> Request:
        """Return the request for a prompt's choice number `index`; each choice has a seed of its own."""
        seed = self._params["seed"]
        params = {**self._params, "seed": None if seed is None else (seed + index) % 2**63}
        extension = self.shared.mixq
        return Request(
            ids,
            SamplingParams.from_kwargs(**params),
            grammar=self._grammar,
            reuse=extension.cache,
            experts=extension.experts,
            **options,
        )

    @abstractmethod
    def whole_choice(self, index: int, results: Sequence[Result]) -> Document:
        """Return answer number `index`, whole, without what the extension adds."""

    @abstractmethod
    def choice(self, index: int, text: str | None, reason: str | None = None, logprobs: Any = None) -> Document:
        """Return a part of an answer; `text` is None where only its state changes."""

    @abstractmethod
    def token_logprobs(self, index: int, token: Token) -> Document:
        """Return the log probabilities of a streamed token."""

    def last_choices(self, index: int, done: Done) -> list[Document]:
        """Return the last parts of an answer."""
        return [self.choice(index, done.tail, finish_reason(done))]

    def whole(self, results: Sequence[Result]) -> Document:
        choices = []
        for index, result in enumerate(results):
            extra = {"mixq": {"stats": result.done.stats.as_dict()}} if self._extended else {}
            choices.append({**self.whole_choice(index, results), **extra})
            self._finished.append(result.done)
        return {"object": self.whole_object, **self._head, "choices": choices, "usage": self._usage()}

    def part(self, index: int, event: Event) -> list[Document]:
        if isinstance(event, Token):
            experts = {"experts": [event.experts]} if self.shared.mixq.experts else None
            if not event.text and not self.scores and experts is None:
                return []
            logprobs = self.token_logprobs(index, event) if self.scores else None
            return [self.chunk(self.choice(index, event.text, logprobs=logprobs), mixq=experts)]
        if isinstance(event, Done):
            self._finished.append(event)
            *parts, last = self.last_choices(index, event)
            stats = {"stats": event.stats.as_dict()} if self._extended else None
            return [*map(self.chunk, parts), self.chunk(last, mixq=stats)]
        if isinstance(event, PromptProgress) and self._extended:
            progress = {"prompt_progress": {"done": event.done, "total": event.total}}
            return [self.chunk(self.choice(index, None), mixq=progress)]
        return []

    def closing(self) -> list[Document]:
        """Return the chunk with the usage, where it is asked for."""
        return [self.chunk(usage=self._usage())] if self.shared.stream_options.include_usage else []

    def chunk(
        self, *choices: Document, mixq: Mapping[str, Any] | None = None, usage: Document | None = None
    ) -> Document:
        """Return a chunk of a stream."""
        chunk = {"object": self.chunk_object, **self._head, "choices": choices}
        if self.shared.stream_options.include_usage:
            chunk["usage"] = usage
        if mixq is not None:
            chunk["mixq"] = mixq
        return chunk

    def _usage(self) -> Document:
        """Return the tokens of a request; a prompt counts once, however many answers it has."""
        completion = sum(len(done.token_ids) for done in self._finished)
        cached = max((done.stats.cached_tokens for done in self._finished), default=0)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
            "prompt_tokens_details": {"cached_tokens": min(cached, self.prompt_tokens)},
        }

    def error(self, error: MixqError) -> Document:
        return openai_error(error)
