"""Copies experts to the accelerator, in chunks: uploads that a layer waits for (demanded) first.

Contract: `Uploader` has a thread that queues one chunk after the other on the accelerator, at most two at a time. A
demanded upload goes before background ones, also before the rest of a started one, at its next chunk. `finished`
returns the complete uploads; the caller decides what to copy, and what may be overwritten. The estimates for the
scheduler (`Copies`) come from the rate of the copies so far.
"""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from mixq.experts.accelerators.interface import Accelerator, Event
from mixq.experts.scheduler import BACKGROUND, CHUNK
from mixq.experts.store import Piece

IN_FLIGHT = 2
"""Chunks on the accelerator at a time."""

_RECENT = 0.1  # weight of a chunk in the running average of the rate
_MEASURED = 1 << 18  # smaller chunks measure latency rather than the rate


@dataclass(slots=True, eq=False)
class Upload:
    """The copy of an expert to a slot or a staging buffer."""

    key: tuple[int, int]  # layer and expert
    slot: int | None  # of the cache; None for a staging buffer
    chunks: deque[tuple[Tensor, Tensor]]  # (target, source) that are not queued on the accelerator yet
    demanded: bool  # a layer waits for it
    after: Event | None  # the event after which it may start
    begun: bool = False
    arrived: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None  # of a chunk
    # nbytes, left: in total, and not arrived
    nbytes: int = field(init=False)
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.nbytes = self.left = sum(len(source) for _, source in self.chunks)

    def done(self) -> bool:
        """Return whether it is complete; raise its error."""
        if self.arrived.is_set() and self.error is not None:
            raise self.error
        return self.arrived.is_set()

    def wait(self) -> None:
        """Wait until it is complete; raise its error."""
        self.arrived.wait()
        self.done()


def _chunks(memory: Tensor, pieces: Iterable[Piece]) -> Iterator[tuple[Tensor, Tensor]]:
    for piece in pieces:
        for start in range(0, len(piece.source), CHUNK):
            source = piece.source[start : start + CHUNK]
            first = piece.offset + start
            yield memory[first : first + len(source)], source


class LinkMeter:
    """The speed of copies.

    Attributes:
        rate: bytes per second, a running average that starts with the expected rate.
        measured: whether a copy was large enough to measure the rate.
        nbytes: copied so far.
        busy: the latest intervals with running copies: start and end on `time.perf_counter`'s clock.
    """

    def __init__(self, rate: float) -> None:
        self.nbytes = 0
        self.busy: deque[tuple[float, float]] = deque(maxlen=4096)
        self.expect(rate)

    def expect(self, rate: float) -> None:
        """Start with another rate, in bytes per second."""
        self.rate, self.measured = rate, False

    def note(self, nbytes: int, begun: float) -> None:
        """Record a chunk that has just arrived."""
        now = time.perf_counter()
        begun = max(begun, self.busy[-1][1] if self.busy else 0.0)  # two are in flight, and copied one after the other
        self.busy.append((begun, now))
        self.nbytes += nbytes
        if nbytes >= _MEASURED and now > begun:
            self.rate += _RECENT * (nbytes / (now - begun) - self.rate)
            self.measured = True


class _State:
    """The state shared by thread and uploader; it does not keep the uploader alive."""

    def __init__(self, accelerator: Accelerator, rate: float) -> None:
        self.accelerator = accelerator
        self.changed = threading.Condition()
        self.demand: deque[Upload] = deque()
        self.background: deque[Upload] = deque()
        self.finished: deque[Upload] = deque()
        self.closed = False
        self.link = LinkMeter(rate)
        self.copied: Callable[[int, int], None] = lambda layer, expert: None

    def next_chunk(self) -> tuple[Upload, Tensor, Tensor] | None:
        """Take the next chunk; call with the lock held."""
        for waiting in (self.demand, self.background):
            if waiting:
                upload = waiting[0]
                upload.begun = True
                target, source = upload.chunks.popleft()
                if not upload.chunks:
                    waiting.popleft()
                return upload, target, source
        return None

    def end(self) -> None:
        """Drop chunks that are not queued on the accelerator: the uploader is gone, and no layer waits."""
        with self.changed:
            self.closed = True
            self.demand.clear()
            self.background.clear()
            self.changed.notify_all()


class Uploader:
    """Copies experts to an accelerator; `link` has the speed, `rate` bytes per second until copies are measured."""

    def __init__(self, accelerator: Accelerator, rate: float = 10e9) -> None:
        state = self._state = _State(accelerator, rate)
        self.link = state.link
        self._under_way: dict[tuple[int, int], Upload] = {}
        self._thread = threading.Thread(target=_serve, args=(state,), name="mixq-uploads", daemon=True)
        _serving[self._thread] = state
        self._thread.start()
        self._end = weakref.finalize(self, state.end)

    def start(
        self,
        key: tuple[int, int],
        slot: int | None,
        memory: Tensor,
        pieces: Iterable[Piece],
        *,
        demanded: bool,
        after: Event | None = None,
    ) -> Upload:
        """Start to copy an expert to memory that nothing else uses, now or after an event.

        `finished` does not return uploads without a slot; the caller waits for them.
        """
        if not self._end.alive:
            raise RuntimeError("the uploader has been closed")
        upload = Upload(key, slot, deque(_chunks(memory, pieces)), demanded, after)
        if slot is not None:
            self._under_way[key] = upload
        with self._state.changed:
            (self._state.demand if demanded else self._state.background).append(upload)
            self._state.changed.notify()
        return upload

    def under_way(self, layer: int, expert: int) -> Upload | None:
        """Return the upload of an expert that has not been reported by `finished` yet."""
        return self._under_way.get((layer, expert))

    def demand(self, upload: Upload) -> None:
        """Move an upload before the background ones, because a layer waits for it."""
        with self._state.changed:
            if not upload.demanded:
                upload.demanded = True
                if upload in self._state.background:
                    self._state.background.remove(upload)
                    self._state.demand.append(upload)

    def cancel_waiting(self) -> list[Upload]:
        """Cancel background uploads of which nothing has been copied yet, and return them."""
        with self._state.changed:
            taken = [upload for upload in self._state.background if not upload.begun]
            for upload in taken:
                self._state.background.remove(upload)
                del self._under_way[upload.key]
        return taken

    def finished(self) -> list[Upload]:
        """Return the uploads completed since the last call."""
        state, found = self._state, []
        while state.finished:
            upload = state.finished.popleft()
            if self._under_way.get(upload.key) is upload:
                del self._under_way[upload.key]
            found.append(upload)
        return found

    def drain(self) -> None:
        """Wait for every upload."""
        for upload in list(self._under_way.values()):
            upload.wait()

    def close(self) -> None:
        """End the thread; uploads that have not started are dropped."""
        self._end()
        self._thread.join()

    def on_copied(self, call: Callable[[int, int], None]) -> None:
        """Let the thread call a function with each layer and expert whose host memory has been read completely."""
        self._state.copied = call

    # What the scheduler needs (`mixq.experts.scheduler.Copies`)

    def demand_seconds(self) -> float:
        with self._state.changed:
            return sum(upload.left for upload in self._state.demand) / self.link.rate

    def remaining_seconds(self, layer: int, expert: int) -> float:
        upload = self._under_way.get((layer, expert))
        if upload is None:
            return 0.0
        before = 0.0
        with self._state.changed:
            for other in self._state.demand:
                if other is upload:
                    break
                before += other.left
        return (before + upload.left) / self.link.rate

    def room(self) -> bool:
        with self._state.changed:
            return len(self._state.background) < BACKGROUND


_serving: dict[threading.Thread, _State] = {}
"""Threads that run, in the order of their start."""


@atexit.register
def _end_all() -> None:
    """End every thread before the interpreter ends: a thread killed during a copy would cause SIGABRT."""
    for thread, state in reversed(list(_serving.items())):
        state.end()
        thread.join()


def _serve(state: _State) -> None:
    try:
        _copy_chunks(state)
    finally:
        _serving.pop(threading.current_thread(), None)


def _copy_chunks(state: _State) -> None:
    in_flight: deque[tuple[Upload, Event | None, int, float]] = deque()
    while True:
        with state.changed:
            while not (in_flight or state.demand or state.background or state.closed):
                state.changed.wait()
            chunk = state.next_chunk() if len(in_flight) < IN_FLIGHT else None
            if chunk is None and not in_flight:
                return  # closed, and nothing left
        if chunk is not None:
            upload, target, source = chunk
            event = _give(state.accelerator, upload, target, source)
            in_flight.append((upload, event, len(source), time.perf_counter()))
            del chunk, target, source, event
            if len(in_flight) < IN_FLIGHT:
                continue
        upload, event, nbytes, begun = in_flight.popleft()
        try:
            if event is not None:
                event.wait()
        except BaseException as error:  # noqa: BLE001  (raised again in `Upload.wait`)
            upload.error = error
        state.link.note(nbytes, begun)
        with state.changed:
            upload.left -= nbytes
        if upload.left == 0:
            state.copied(*upload.key)
            if upload.slot is not None:
                state.finished.append(upload)
            upload.arrived.set()
        del upload, event


def _give(accelerator: Accelerator, upload: Upload, target: Tensor, source: Tensor) -> Event | None:
    """Start to copy a chunk; None if the accelerator refused it."""
    try:
        if upload.after is not None:
            upload.after.wait()
            upload.after = None
        return accelerator.upload(target, source)
    except BaseException as error:  # noqa: BLE001  (raised again in `Upload.wait`)
        upload.error = error
        return None
