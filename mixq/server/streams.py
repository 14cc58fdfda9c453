"""From the engine's thread to the event loop: the events of one request's answers, and the replies made of them.

Contract: `Answers` takes events on the engine's thread without blocking it and gives them to one reader on the event
loop. Whoever leaves it early, by an error or because the client has hung up, cancels what still runs. `EventStream`
writes one line or block at a time and waits for slow readers, which so hold up nobody but themselves.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mixq.engine.batching import Batcher, Ticket
from mixq.engine.events import Done, Event, Failed, Notice, PromptLogprobs, Token
from mixq.engine.request import Request
from mixq.errors import MixqError

Indexed = tuple[int, Event | Failed]
Told = tuple[int, Event]


@dataclass(slots=True)
class Result:
    """One answer, whole.

    Attributes:
        prompt_tokens: with their log probabilities, where they were asked for.
    """

    done: Done
    prompt_tokens: Sequence[Token] = field(default=())


class Answers:
    """The answers to the requests that were submitted together.

    Args:
        loop: on which they are read.
        say: takes what whoever runs the server should see.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, say: Callable[[str], None]) -> None:
        self._loop = loop
        self._say = say
        self._events: asyncio.Queue[Indexed] = asyncio.Queue()
        self._lock = threading.Lock()
        self._ticket: Ticket | None = None  # guarded by _lock, as is the next
        self._over = False
        self._left = 0

    def submit(self, batcher: Batcher, requests: Sequence[Request]) -> None:
        """Queue the requests; from any thread, once.

        Raises:
            MixqError: see `Batcher.submit`.
        """
        self._left = len(requests)
        ticket = batcher.submit(requests, self._deliver)
        with self._lock:
            self._ticket = ticket
            if self._over:  # the client hung up while the prompt was tokenized
                ticket.cancel()

    def cancel(self) -> None:
        """End what still runs; from any thread, at any time."""
        with self._lock:
            self._over = True
            if self._ticket is not None:
                self._ticket.cancel()

    def fail(self, error: MixqError) -> None:
        """End the reading with an error now, whatever the engine is doing; on the event loop."""
        self._events.put_nowait((0, Failed(error)))

    def _deliver(self, index: int, event: Event | Failed) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

    async def batches(self) -> AsyncIterator[list[Told]]:
        """Yield all events that have come, without notices, until every answer is done.

        Raises:
            MixqError: an answer has failed.
        """
        while self._left:
            batch = [await self._events.get()]
            while not self._events.empty():
                batch.append(self._events.get_nowait())
            told: list[Told] = []
            for index, event in batch:
                if isinstance(event, Failed):
                    if told:
                        yield told
                    raise event.error
                if isinstance(event, Notice):
                    self._say(event.text)
                else:
                    told.append((index, event))
            self._left -= sum(isinstance(event, Done) for _, event in told)
            if told:
                yield told

    async def results(self, count: int) -> list[Result]:
        """Return all answers, by index.

        Raises:
            MixqError: an answer has failed.
        """
        done: dict[int, Done] = {}
        prompts: dict[int, Sequence[Token]] = {}
        async for batch in self.batches():
            for index, event in batch:
                if isinstance(event, Done):
                    done[index] = event
                elif isinstance(event, PromptLogprobs):
                    prompts[index] = event.tokens
        return [Result(done[i], prompts.get(i, ())) for i in range(count)]


class EventStream(Response):
    """A reply that is written as it comes.

    Args:
        chunks: what to write.
        media_type: of the whole.
        stack: what to leave at the end, however it comes: it cancels what still runs.
    """

    def __init__(self, chunks: AsyncIterator[bytes], media_type: str, stack: AsyncExitStack) -> None:
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self._chunks = chunks
        self._stack = stack
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write the reply; a task that is cancelled leaves in the middle."""
        async with self._stack:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for chunk in self._chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
