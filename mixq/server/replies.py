"""From a request to its response, for all APIs: as one document, or as a stream.

Contract: a `Reply` translates one request of an API: into the engine's requests, and their answers into documents.
`answer` runs it. Errors before a stream starts are raised; a failure in the stream is its last event.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any, ClassVar

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from mixq.engine.answer import Request
from mixq.engine.events import Done, Event
from mixq.engine.model import Model
from mixq.errors import MixqError
from mixq.server.engine_host import Answers, EngineHost
from mixq.server.errors import dump, json_reply

Document = dict[str, Any]


def finish_reason(done: Done) -> str:
    """Return the reason as clients know it, stop or length; a full context counts as length."""
    return "stop" if done.reason == "stop" else "length"


class Reply(ABC):
    """A request and its response."""

    media_type: ClassVar[str]
    """Of a stream."""
    prefix: ClassVar[bytes] = b""
    suffix: ClassVar[bytes]
    """Around each document of a stream."""
    end: ClassVar[bytes] = b""
    """The last bytes of a stream without an error."""

    @abstractmethod
    def requests(self, model: Model) -> Sequence[Request]:
        """Return the engine's requests; called once, first, on a thread.

        Raises:
            MixqError: it cannot be answered.
        """

    @abstractmethod
    def whole(self, answers: Sequence[Done]) -> Document:
        """Return all answers as one document."""

    @abstractmethod
    def part(self, index: int, event: Event) -> list[Document]:
        """Return the documents for an event of answer number `index`."""

    def opening(self) -> list[Document]:
        """Return the first documents of a stream."""
        return []

    def closing(self) -> list[Document]:
        """Return the last documents of a stream."""
        return []

    @abstractmethod
    def error(self, error: MixqError) -> Document:
        """Return the last document of a stream that fails."""

    async def chunks(self, answers: Answers) -> AsyncIterator[bytes]:
        """Yield the bytes of a stream."""
        try:
            yield self._frames(self.opening())
            async for batch in answers.batches():
                yield self._frames(document for index, event in batch for document in self.part(index, event))
            yield self._frames(self.closing()) + self.end
        except MixqError as error:
            yield self._frames([self.error(error)])

    def _frames(self, documents: Iterable[Document]) -> bytes:
        return b"".join(self.prefix + dump(document) + self.suffix for document in documents)


async def answer(host: EngineHost, reply: Reply, *, stream: bool) -> Response:
    """Answer a request.

    Raises:
        MixqError: it cannot be answered.
    """
    async with AsyncExitStack() as stack:
        answers = await stack.enter_async_context(host.answers(reply.requests))
        if stream:
            return EventStream(reply.chunks(answers), reply.media_type, stack.pop_all())
        done = await answers.all_done()
    return json_reply(await host.aside(lambda: reply.whole(done)))


class EventStream(StreamingResponse):
    """A response that is written while the answer arrives.

    Args:
        stack: closed at the end, also after an error or a disconnect, which cancels what still runs. Starlette alone
            would leave that to the garbage collector.
    """

    def __init__(self, chunks: AsyncIterator[bytes], media_type: str, stack: AsyncExitStack) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(chunks, headers=headers, media_type=media_type)
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write the response; a cancelled task stops in the middle."""
        async with self._stack:
            await self.stream_response(send)
