"""The events of one request's answers, from the engine's thread to the event loop.

Contract: `Answers` takes events on the engine's thread without blocking it and gives them to one reader on the event
loop. `EngineHost.answers` cancels what still runs when the reader leaves early: an error, or a client that hung up.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from mixq.engine.batching import Batcher, Ticket
from mixq.engine.events import Done, Event, Failed, Notice, PromptLogprobs, Token
from mixq.engine.request import Request
from mixq.errors import MixqError

Indexed = tuple[int, Event]
"""An event and the number of its answer."""


@dataclass(slots=True)
class Result:
    """One answer, whole.

    Attributes:
        prompt_tokens: with their log probabilities, where requested.
    """

    done: Done
    prompt_tokens: Sequence[Token] = ()


class Answers:
    """The answers to the requests that were submitted together.

    Args:
        loop: on which they are read.
        say: takes notices for the server's log.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, say: Callable[[str], None]) -> None:
        self._loop = loop
        self._say = say
        self._events: asyncio.Queue[tuple[int, Event | Failed]] = asyncio.Queue()
        self._lock = threading.Lock()
        self._ticket: Ticket | None = None  # guarded by _lock
        self._over = False  # guarded by _lock
        self._left = 0

    def submit(self, batcher: Batcher, requests: Sequence[Request]) -> None:
        """Queue the requests; from any thread, once. Raises what `Batcher.submit` does."""
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
        """End the reading with an error now, without waiting for the engine; on the event loop."""
        self._events.put_nowait((0, Failed(error)))

    def _deliver(self, index: int, event: Event | Failed) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

    async def batches(self) -> AsyncIterator[list[Indexed]]:
        """Yield the events that have come, without notices, until every answer is done.

        Raises:
            MixqError: an answer failed.
        """
        while self._left:
            batch = [await self._events.get()]
            while not self._events.empty():
                batch.append(self._events.get_nowait())
            events: list[Indexed] = []
            for index, event in batch:
                if isinstance(event, Failed):
                    if events:
                        yield events
                    raise event.error
                if isinstance(event, Notice):
                    self._say(event.text)
                else:
                    events.append((index, event))
            self._left -= sum(isinstance(event, Done) for _, event in events)
            if events:
                yield events

    async def results(self) -> list[Result]:
        """Return all answers, by index.

        Raises:
            MixqError: an answer failed.
        """
        count = self._left
        done: dict[int, Done] = {}
        prompts: dict[int, Sequence[Token]] = {}
        async for batch in self.batches():
            for index, event in batch:
                if isinstance(event, Done):
                    done[index] = event
                elif isinstance(event, PromptLogprobs):
                    prompts[index] = event.tokens
        return [Result(done[i], prompts.get(i, ())) for i in range(count)]
