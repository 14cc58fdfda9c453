"""The model that a server answers with: loaded, asked, loaded anew with another split, closed.

Contract: an `EngineHost` has a model and its batcher, or says why not (`RequestError` 503 while it loads). Whatever can
take long, tokenizing and grammars before all, runs on threads of its own, never on the event loop. A reload ends what
runs with an error; if the new split does not work, the former comes back. The event loop owns everything but `load`.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from mixq.engine.batching import Batcher
from mixq.engine.model import Model
from mixq.engine.request import BatcherState, Request
from mixq.engine.sampling import default_sampling
from mixq.errors import MixqError, printable
from mixq.server.errors import RequestError, shown
from mixq.server.streams import Answers

Load = Callable[[Mapping[str, Any]], Model]
"""Loads the model with these runtime options."""

Make = Callable[[Model], Sequence[Request]]
"""Makes requests from what a client has sent; runs on a thread, and raises MixqError for what cannot be asked."""

T = TypeVar("T")

PREPARING_THREADS = 2
CLOSE_SECONDS = 30.0
"""How long a reload waits for the pass that is running: a chunk of a prompt on a slow machine."""
LEAVE_SECONDS = 5.0
"""How long a reload waits for clients to read that their answers have ended: they hold the former model in memory."""
LOADING_RETRY = 5
NOTES = 20


@dataclass(frozen=True, slots=True)
class Engine:
    """A loaded model and what runs it."""

    model: Model
    batcher: Batcher
    sampling: Mapping[str, float]


class EngineHost:
    """Holds the model.

    Args:
        load: makes it.
        options: for `load`.
        name: of the model in replies.
        aliases: other names that requests may use.
        queue: requests that may wait.
        reuse: whether kept conversations are taken over.
        say: takes lines for whoever runs the server.
    """

    def __init__(
        self,
        load: Load,
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
        self._live: dict[Answers, asyncio.Task[Any] | None] = {}  # and who reads them
        self._pool = ThreadPoolExecutor(PREPARING_THREADS, thread_name_prefix="mixq-prepare")
        self._reloading: asyncio.Task[None] | None = None

    def load(self) -> None:
        """Load the model, in this thread; before anything else.

        Raises:
            MixqError: it cannot be loaded.
        """
        self._engine = self._start(self.options)
        self.state = "ready"

    def _start(self, options: Mapping[str, Any]) -> Engine:
        model = self._load(options)
        if model.folder.tokenizer_path is not None:
            _ = model.tokenizer, model.template  # read now, so that a broken one is said before the first request
        for line in (*model.notes, *model.notices()):
            if line not in self.notes:
                self.notes.append(line)
        sampling = default_sampling(model.folder.generation_config)
        return Engine(model, Batcher(model, queue=self._queue, reuse=self._reuse), sampling)

    @property
    def engine(self) -> Engine:
        """The model and what runs it.

        Raises:
            RequestError: 503, it is being loaded, could not be loaded, or the server is stopping.
        """
        if self.state == "ready" and self._engine is not None:
            return self._engine
        why = {
            "loading": "The model is being loaded.",
            "failed": "The model could not be loaded: " + (self.notes[-1] if self.notes else "see the server's words."),
        }.get(self.state, "The server is stopping.")
        raise RequestError(503, why, code=f"model_{self.state}", retry_after=LOADING_RETRY)

    @property
    def capacity(self) -> int:
        """How many answers one request may ask for: what queue and sequences take at most."""
        return self._queue + self.engine.batcher.sequences

    def check_name(self, name: str | None) -> None:
        """Refuse a model that is not the one that is served; None stands for that one.

        Raises:
            RequestError: 404 model_not_found, which names those there are.
        """
        if name is None or name.removesuffix(":latest") in (self.name, *self.aliases):
            return
        served = " or ".join(f'"{each}"' for each in (self.name, *self.aliases))
        raise RequestError(
            404,
            f"There is no model {shown(name)} here; this server has {served}.",
            param="model",
            code="model_not_found",
            hint="`mixq serve --alias NAME` lets it answer to another name.",
        )

    def say(self, line: str) -> None:
        """Note a line for whoever runs the server, once."""
        if line not in self.notes:
            self.notes.append(line)
            self._print(line)

    @asynccontextmanager
    async def answers(self, make: Make) -> AsyncIterator[Answers]:
        """Ask, and cancel what still runs at the end.

        Raises:
            RequestError: no model, or what `make` refuses.
            MixqError: see `Batcher.submit`.
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
        """Run what may take long on a thread; nobody waits for it who does not need it."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def batcher_state(self) -> BatcherState | None:
        """Return what the batcher says, None while there is none."""
        return self._engine.batcher.state() if self._engine is not None else None

    @property
    def model(self) -> Model | None:
        """The model, None while it is being loaded."""
        return self._engine.model if self._engine is not None else None

    def reload(self, changes: Mapping[str, Any]) -> None:
        """Begin to load the model with other options; `state` tells when it is done.

        Raises:
            RequestError: 503, it is being loaded already.
        """
        if self.state not in ("ready", "failed"):
            _ = self.engine  # raises
        self.state = "loading"
        self._end_answers("the model is being loaded anew")
        self._reloading = asyncio.get_running_loop().create_task(self._reload(dict(changes)))

    async def _reload(self, changes: dict[str, Any]) -> None:
        former, self._engine = self._engine, None
        wanted = {**self.options, **changes}
        try:
            if former is not None:
                await asyncio.to_thread(_close, former)
                await self._readers_leave()
                former = None  # its memory is free before the next is loaded
                gc.collect()
            self._engine = await self._start_or_note(wanted)
            if self._engine is not None:
                self.options = wanted
            else:
                self._engine = await self._start_or_note(self.options)
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
        """Take no requests any more, and end every answer with an error; on the event loop."""
        self.state = "stopping"
        self._end_answers(reason)

    def close(self, timeout: float) -> bool:
        """End the engine's thread; return whether it has ended. From any thread, once the loop has been stopped."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        return self._engine is None or self._engine.batcher.close(timeout=timeout)

    def _end_answers(self, reason: str) -> None:
        for answers in self._live:
            answers.cancel()
            answers.fail(RequestError(503, f"The answer was broken off: {printable(reason)}."))


def _close(engine: Engine) -> None:
    engine.batcher.close("the model is being loaded anew", CLOSE_SECONDS)
    engine.model.close()
