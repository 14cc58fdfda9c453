"""Batching: one thread runs several answers together, so that a forward pass reads the weights once for all.

Contract: `submit` takes requests from any thread and never blocks; events are delivered on the engine's thread, the
last of each request is Done or Failed. Waiting requests start in the order of arrival. Before each forward pass the
thread drops cancelled requests; then one prompt advances by a chunk, in turn, and all answers advance by a token. So
neither a long prompt nor a slow reader delays the others by more than one pass.

Continuous batching (Yu et al., "Orca", 2022) with whole KV caches instead of pages: `mixq.engine.sequences`. An answer
is bit-identical whichever others share its batch (see "Arithmetic" in mixq/README.md).
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mixq.engine.answer import Answer, Request, Task, step
from mixq.engine.events import Done, Event, Failed, Notice, Stats
from mixq.engine.model import Model
from mixq.engine.sequences import WORTH_SHARING, SequencePool, common_prefix
from mixq.errors import MixqError, QueueFull

MAX_SEQUENCES = 8
"""Most rows of a decode pass with the arithmetic of a single row: integer dot products."""

RATE_SECONDS = 5.0
"""`state` has the speed over the last seconds, this many."""

Deliver = Callable[[int, Event | Failed], None]
"""Receives a request's index in `submit` and its events; must not block."""


@dataclass(frozen=True, slots=True)
class BatcherState:
    """What a batcher is doing, and has done since its start."""

    # queued, running: requests
    queued: int
    running: int
    kept: int  # KV caches of finished answers, kept for a next turn
    busy_positions: int  # positions of KV caches in which answers are running
    # prompt_tokens, cached_tokens, decode_tokens: run, found in a KV cache, generated; of requests that have ended
    prompt_tokens: int
    cached_tokens: int
    decode_tokens: int
    finished: dict[str, int]  # how many requests ended for which reason, "failed" among them
    decode_tokens_per_second: float  # of the passes of the last seconds, all answers together; 0 without one
    expert_hit_rate: float | None  # since the model was loaded; None without a cache of experts
    broken: str | None  # why the thread has ended, None while it runs


@dataclass(slots=True, eq=False)
class _Item:
    """A request between `submit` and its last event."""

    index: int
    request: Request
    task: Task
    deliver: Deliver
    asked_at: float
    cancelled: bool = False
    turn: int = 0  # when a chunk of its prompt was run last, as a count
    answer: Answer | None = None

    @property
    def decodes(self) -> bool:
        return self.answer is not None and not self.answer.in_prompt


@dataclass(slots=True)
class _Totals:
    prompt_tokens: int = 0
    cached_tokens: int = 0
    decode_tokens: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    request_seconds: float = 1.0  # of one request, a moving average


class Ticket:
    """Requests that were submitted together. It does not keep the model in memory."""

    def __init__(self, batcher: Batcher, items: Sequence[_Item]) -> None:
        self._batcher = weakref.ref(batcher)
        self._items = items

    def cancel(self, index: int | None = None) -> None:
        """End one of them, or all, within a token or a prompt chunk; any thread may call this at any time."""
        if (batcher := self._batcher()) is not None:
            batcher._cancel(self._items if index is None else [self._items[index]])


class Batcher:
    """Runs the requests of a model on a thread of its own.

    Args:
        model: only this batcher may run it. Its option `sequences` is the number of answers that run together, and of
            KV caches that are kept in all.
        queue: requests that may wait.
        reuse: reuse what a kept KV cache holds of a prompt, if the request allows it.
    """

    def __init__(self, model: Model, *, queue: int = 64, reuse: bool = True) -> None:
        self.model = model
        self.sequences = min(model.options.sequences, MAX_SEQUENCES)
        self._capacity = queue
        self._reuse = reuse
        self._pool = SequencePool(self.sequences, model.new_kv_cache)
        self._changed = threading.Condition()
        self._waiting: deque[_Item] = deque()  # guarded by _changed, as are the next five
        self._withdrawn: list[_Item] = []  # cancelled while they waited
        self._running: list[_Item] = []
        self._closing: str | None = None
        self._broken: str | None = None
        self._totals = _Totals()
        self._recent: deque[tuple[float, int, float]] = deque()  # when passes ended, their tokens and seconds
        self._turns = 0
        self._thread = threading.Thread(target=self._run, name="mixq-engine", daemon=True)
        self._thread.start()

    # For any thread

    def submit(self, requests: Sequence[Request], deliver: Deliver) -> Ticket:
        """Queue requests, all or none.

        Raises:
            PromptError: a prompt is empty, too long for the context, or has an id outside the vocabulary.
            UsageError: a parameter does not suit the model.
            QueueFull: too many requests wait.
            MixqError: the batcher is closed.
        """
        tasks = [self.model.prompting.task(request) for request in requests]
        now = time.perf_counter()
        items = [_Item(i, r, t, deliver, now) for i, (r, t) in enumerate(zip(requests, tasks, strict=True))]
        with self._changed:
            if self._closing is not None or self._broken is not None:
                raise MixqError(f"No new requests are accepted: {self._closing or self._broken}.")
            free = self._capacity + max(0, self.sequences - len(self._running))
            if len(self._waiting) + len(items) > free:
                raise QueueFull(len(self._waiting), self._retry_after())
            self._waiting.extend(items)
            self._changed.notify()
        return Ticket(self, items)

    def state(self) -> BatcherState:
        offload = self.model.placement.offload
        with self._changed:
            since = time.perf_counter() - RATE_SECONDS
            recent = [(tokens, seconds) for at, tokens, seconds in self._recent if at >= since]
            totals = self._totals
            return BatcherState(
                queued=len(self._waiting),
                running=len(self._running),
                kept=self._pool.kept,
                busy_positions=self._pool.busy_positions,
                prompt_tokens=totals.prompt_tokens,
                cached_tokens=totals.cached_tokens,
                decode_tokens=totals.decode_tokens,
                finished=dict(totals.finished),
                decode_tokens_per_second=sum(n for n, _ in recent) / max(sum(s for _, s in recent), 1e-9),
                expert_hit_rate=offload.telemetry.counters.hit_rate if offload is not None else None,
                broken=self._broken,
            )

    def close(self, reason: str = "the server is stopping", timeout: float | None = None) -> bool:
        """End all answers with Failed, and the thread after its current pass; return whether it has ended."""
        with self._changed:
            self._closing = self._closing or reason
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _cancel(self, items: Sequence[_Item]) -> None:
        with self._changed:
            for item in items:
                item.cancelled = True
                if item in self._waiting:
                    self._waiting.remove(item)
                    self._withdrawn.append(item)
            self._changed.notify()

    def _retry_after(self) -> int:
        """Return the seconds until about half of the waiting requests will have been answered."""
        seconds = self._totals.request_seconds * len(self._waiting) / (2 * self.sequences)
        return max(1, min(60, math.ceil(seconds)))

    # On the engine's thread

    def _run(self) -> None:
        self.model.use_this_thread()
        try:
            while self._next_requests():
                self._deliver_notices()
                self._run_a_prompt()
                self._drop_cancelled()
                self._run_answers()
        except BaseException as error:
            self._broken = f"the engine has failed ({type(error).__name__})"
            raise
        finally:
            self._fail_all()

    def _next_requests(self) -> bool:
        """Wait for work, start waiting requests, drop cancelled ones; return False when the batcher is closing."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._waiting or self._withdrawn or self._running)
            if self._closing is not None:
                return False
            withdrawn, self._withdrawn = self._withdrawn, []
            while self._waiting and len(self._running) < self.sequences:
                self._running.append(self._waiting.popleft())
        self._drop_cancelled(withdrawn)
        return True

    def _drop_cancelled(self, withdrawn: Sequence[_Item] = ()) -> None:
        for item in [*withdrawn, *(item for item in self._running if item.cancelled)]:
            if item.answer is not None:
                done = item.answer.end("cancelled")
            else:  # nothing has been run
                waited = time.perf_counter() - item.asked_at
                done = Done("cancelled", "", (), Stats(0, 0, 0.0, 0, 0.0, waited, 0, 0))
            self._finish(item, done)

    def _run_a_prompt(self) -> None:
        """Run a chunk of one prompt; the prompts take turns."""
        prompts = [item for item in self._running if not item.decodes]
        for item in sorted(prompts, key=lambda item: item.turn):
            if item.answer is None and self._waits_for_a_beginning(item):
                continue
            self._turns += 1
            item.turn = self._turns
            try:
                self._begin(item)
            except MixqError as error:  # no memory for its KV cache
                self._finish(item, Failed(error))
            else:
                self._pass([item])
            return

    def _run_answers(self) -> None:
        answers = [item for item in self._running if item.decodes]
        if not answers:
            return
        begun = time.perf_counter()
        self._pass(answers)
        with self._changed:
            now = time.perf_counter()
            self._recent.append((now, len(answers), now - begun))
            while self._recent[0][0] < now - RATE_SECONDS:
                self._recent.popleft()

    def _pass(self, items: Sequence[_Item]) -> None:
        """Advance some requests together, and deliver their events."""
        events: Sequence[Sequence[Event | Failed]]
        try:
            events = step(self.model.network, [item.answer for item in items if item.answer is not None]).events
        except MixqError as error:  # the forward pass failed, so every answer in it failed
            events = [[Failed(error)]] * len(items)
        for item, of_item in zip(items, events, strict=True):
            for event in of_item:
                if isinstance(event, Done | Failed):
                    self._finish(item, event)
                else:
                    self._deliver(item, event)

    def _waits_for_a_beginning(self, item: _Item) -> bool:
        """Return whether a running prompt shares a longer beginning with this one than any KV cache holds."""
        if not (self._reuse and item.request.reuse):
            return False
        ids = item.task.prompt_ids
        begun = [other for other in self._running if other.answer is not None and other.answer.in_prompt]
        to_come = max((min(common_prefix(other.task.prompt_ids, ids), len(ids) - 1) for other in begun), default=0)
        return to_come >= WORTH_SHARING and to_come > self._pool.shared(ids)

    def _begin(self, item: _Item) -> None:
        if item.answer is not None:
            return
        reuse = self._reuse and item.request.reuse and item.request.prompt_logprobs is None
        sequence = self._pool.take(item.task.prompt_ids, reuse=reuse)
        telemetry = self.model.placement.telemetry
        item.answer = Answer(item.task, sequence, telemetry=telemetry, asked_at=item.asked_at)

    def _finish(self, item: _Item, end: Done | Failed) -> None:
        """Deliver the last event of a request, and forget the request; its KV cache is kept."""
        done = end if isinstance(end, Done) else None
        if item.answer is not None:
            item.answer.sequence.busy = False
            self.model.log.last = done or self.model.log.last
        item.answer = None
        with self._changed:
            if item in self._running:
                self._running.remove(item)
            totals = self._totals
            totals.finished["failed" if done is None else done.reason] += 1
            if done is not None:
                totals.prompt_tokens += done.stats.prompt_tokens
                totals.cached_tokens += done.stats.cached_tokens
                totals.decode_tokens += done.stats.decode_tokens
                totals.request_seconds += 0.1 * (time.perf_counter() - item.asked_at - totals.request_seconds)
        self._deliver(item, end)

    def _deliver(self, item: _Item, event: Event | Failed) -> None:
        try:
            item.deliver(item.index, event)
        except RuntimeError:  # the reader's event loop is closed
            item.cancelled = True

    def _deliver_notices(self) -> None:
        for line in self.model.notices():
            for item in self._running:
                self._deliver(item, Notice(line))

    def _fail_all(self) -> None:
        with self._changed:
            items = [*self._running, *self._waiting, *self._withdrawn]
            self._waiting.clear()
            self._withdrawn.clear()
            reason = self._closing or self._broken
        for item in items:
            self._finish(item, Failed(MixqError(f"The answer was interrupted: {reason}.")))
