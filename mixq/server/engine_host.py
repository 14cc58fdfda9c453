"""The server's model: loads, uses, reloads and closes it; and the events of its answers.

Contract: an `EngineHost` has a model and its batcher, or raises the reason why not (`RequestError` 503 while loading).
Slow work, such as tokenizing and compiling grammars, runs on threads, never on the event loop. A reload ends running
answers with an error; if the new options do not work, the previous ones are loaded again. All methods but `load` and
`close` belong to the event loop. `Answers` receives events on the engine's thread without blocking it, and passes them
to one reader on the event loop.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from mixq.engine.answer import Request
from mixq.engine.batching import Batcher, BatcherState, Ticket
from mixq.engine.events import Done, Event, Failed, Notice
from mixq.engine.model import Model
from mixq.engine.sampling import default_sampling
from mixq.errors import MixqError, printable
from mixq.server.errors import RequestError, shown

Indexed = tuple[int, Event]
"""An event and the number of its answer."""

T = TypeVar("T")

PREPARING_THREADS = 2
CLOSE_SECONDS = 30.0
"""Seconds that a reload waits for the current forward pass: a prompt chunk on a slow computer."""
LEAVE_SECONDS = 5.0
"""Seconds that a reload waits for clients to read the end of their answers, which keep the previous model in memory."""
LOADING_RETRY = 5
NOTES = 20
RELOADING = "the model is being reloaded"


class Answers:
    """The answers to requests that were submitted together.

    Args:
        loop: the event loop of the reader.
        say: called with notices for the server's log.
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
        """Queue the requests; once, from any thread. Raises what `Batcher.submit` raises."""
        self._left = len(requests)
        ticket = batcher.submit(requests, self._deliver)
        with self._lock:
            self._ticket = ticket
            if self._over:  # the client hung up while the prompt was tokenized
                ticket.cancel()

    def cancel(self) -> None:
        """End all that still run; from any thread, at any time."""
        with self._lock:
            self._over = True
            if self._ticket is not None:
                self._ticket.cancel()

    def fail(self, error: MixqError) -> None:
        """End the stream with an error now, without waiting for the engine; on the event loop."""
        self._events.put_nowait((0, Failed(error)))

    def _deliver(self, index: int, event: Event | Failed) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

    async def batches(self) -> AsyncIterator[list[Indexed]]:
        """Yield new events, without notices, until every answer is done.

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

    async def all_done(self) -> list[Done]:
        """Return the end of every answer, by index; raises what `batches` raises."""
        done = {index: event async for batch in self.batches() for index, event in batch if isinstance(event, Done)}
        return [done[index] for index in sorted(done)]


@dataclass(frozen=True, slots=True)
class Engine:
    """A loaded model, its batcher, and its sampling parameters."""

    model: Model
    batcher: Batcher
    sampling: Mapping[str, float]


class EngineHost:
    """Holds the model.

    Args:
        load: loads it with runtime options.
        options: the first ones.
        name: of the model in replies.
        aliases: other names that requests may use.
        queue: requests that may wait.
        reuse: reuse the KV caches of kept conversations.
        say: called with lines for the server's log.
    """

    def __init__(
        self,
        load: Callable[[Mapping[str, Any]], Model],
        options: Mapping[str, Any],
        *,
        name: str,
        aliases: Sequence[str] = (),
        queue: int = 64,
        reuse: bool = True,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.name = name
        self.aliases = tuple(aliases)
        self.loaded_at = time.time()
        self.state: Literal["loading", "ready", "failed", "stopping"] = "loading"
        self.notes: deque[str] = deque(maxlen=NOTES)
        self.options = dict(options)
        self._load = load
        self._queue = queue
        self._reuse = reuse
        self._print = say
        self._engine: Engine | None = None
        self._live: dict[Answers, asyncio.Task[Any] | None] = {}  # with the task that reads them
        self._pool = ThreadPoolExecutor(PREPARING_THREADS, thread_name_prefix="mixq-prepare")
        self._reloading: asyncio.Task[None] | None = None

    def load(self) -> None:
        """Load the model, in this thread, before anything else.

        Raises:
            MixqError: it cannot be loaded.
        """
        self._engine = self._start(self.options)
        self.state = "ready"

    def _start(self, options: Mapping[str, Any]) -> Engine:
        model = self._load(options)
        if model.prompting.has_text:
            _ = model.tokenizer, model.template  # read now, so that a damaged one is reported before the first request
        for line in (*model.notes, *model.notices()):
            if line not in self.notes:
                self.notes.append(line)
        sampling = default_sampling(model.folder.generation_config)
        return Engine(model, Batcher(model, queue=self._queue, reuse=self._reuse), sampling)

    @property
    def engine(self) -> Engine:
        """The model and its batcher.

        Raises:
            RequestError: 503, the model is loading or could not be loaded, or the server is stopping.
        """
        if self.state == "ready" and self._engine is not None:
            return self._engine
        why = {
            "loading": "The model is loading.",
            "failed": "The model could not be loaded: " + (self.notes[-1] if self.notes else "see the server log."),
        }.get(self.state, "The server is stopping.")
        raise RequestError(503, why, code=f"model_{self.state}", retry_after=LOADING_RETRY)

    @property
    def capacity(self) -> int:
        """Most answers of one request: those that can run and those that can wait."""
        return self._queue + self.engine.batcher.sequences

    def check_name(self, name: str | None) -> None:
        """Refuse a name that is not this server's model; None is this model.

        Raises:
            RequestError: 404 model_not_found, with the known names.
        """
        if name is None or name.removesuffix(":latest") in (self.name, *self.aliases):
            return
        served = " or ".join(f'"{each}"' for each in (self.name, *self.aliases))
        raise RequestError(
            404,
            f"Model {shown(name)} not found; this server has {served}.",
            param="model",
            code="model_not_found",
            hint="Use `mixq serve --alias NAME` to add a name.",
        )

    def say(self, line: str) -> None:
        """Write a line to the server's log and to the notes of the status, once."""
        if line not in self.notes:
            self.notes.append(line)
            self._print(line)

    @asynccontextmanager
    async def answers(self, make: Callable[[Model], Sequence[Request]]) -> AsyncIterator[Answers]:
        """Submit the requests that `make` returns, which is called on a thread; cancel those that still run at the end.

        Raises:
            RequestError: no model, or what `make` refuses.
            MixqError: what `Batcher.submit` raises.
        """
        engine = self.engine
        answers = Answers(asyncio.get_running_loop(), self.say)
        self._live[answers] = asyncio.current_task()
        try:
            await self.aside(lambda: answers.submit(engine.batcher, make(engine.model)))
            yield answers
        finally:
            del self._live[answers]
            answers.cancel()

    async def aside(self, work: Callable[[], T]) -> T:
        """Run slow work on a thread, so that it does not block the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def batcher_state(self) -> BatcherState | None:
        return self._engine.batcher.state() if self._engine is not None else None

    @property
    def model(self) -> Model | None:
        """The model, None while it is loading."""
        return self._engine.model if self._engine is not None else None

    def reload(self, changes: Mapping[str, Any]) -> None:
        """Start reloading the model with other options; `state` is "loading" until this is done.

        Raises:
            RequestError: 503, a model is already loading.
        """
        if self.state not in ("ready", "failed"):
            _ = self.engine  # raises
        self.state = "loading"
        self._end_answers(RELOADING)
        self._reloading = asyncio.get_running_loop().create_task(self._reload(changes))

    async def _reload(self, changes: Mapping[str, Any]) -> None:
        previous, self._engine = self._engine, None
        try:
            if previous is not None:
                await asyncio.to_thread(_close, previous)
                await self._readers_leave()
                previous = None  # frees its memory before the next is loaded
                gc.collect()
            for options in ({**self.options, **changes}, self.options):
                self._engine = await self._start_or_note(options)
                if self._engine is not None:
                    self.options = options
                    break
        finally:
            if self.state == "loading":
                self.state = "ready" if self._engine is not None else "failed"
                self.loaded_at = time.time()

    async def _readers_leave(self) -> None:
        readers = {task for task in self._live.values() if task is not None}
        for patience in (LEAVE_SECONDS, CLOSE_SECONDS):
            if readers:
                _, readers = await asyncio.wait(readers, timeout=patience)
            for task in readers:
                task.cancel()

    async def _start_or_note(self, options: Mapping[str, Any]) -> Engine | None:
        try:
            return await asyncio.to_thread(self._start, options)
        except MixqError as error:
            hint = f" {error.hint}" if error.hint else ""
            self.notes.append(f"{error.message}{hint}")
            self._print(self.notes[-1])
            return None

    def stop(self, reason: str) -> None:
        """Refuse new requests, and end all answers with an error."""
        self.state = "stopping"
        self._end_answers(reason)

    def close(self, timeout: float) -> bool:
        """End the engine's thread, after the event loop has stopped; return whether it has ended."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        return self._engine is None or self._engine.batcher.close(timeout=timeout)

    def _end_answers(self, reason: str) -> None:
        for answers in self._live:
            answers.cancel()
            answers.fail(RequestError(503, f"The answer was interrupted: {printable(reason)}."))


def _close(engine: Engine) -> None:
    engine.batcher.close(RELOADING, CLOSE_SECONDS)
    engine.model.close()
