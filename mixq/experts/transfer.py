"""Experts on their way to the accelerator: uploads in chunks, those that somebody waits for before the rest.

Contract: `Uploader` has a thread that gives the accelerator one chunk after the other, at most two at a time. A
demanded upload goes before background ones, also before the rest of one that has begun: that waits for its next chunk.
What is whole is named by `finished`; what to copy, and what may be overwritten, is the caller's business. The estimates
that it gives the scheduler (`Copies`) come from the rate of the copies so far.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from mixq.experts.accelerators import threads
from mixq.experts.accelerators.interface import Accelerator, Event
from mixq.experts.store import Piece

CHUNK = 4 << 20
"""Bytes after which a background upload lets a demanded one pass: 0.2 ms at 20 GB/s."""

IN_FLIGHT = 2
BACKGROUND = 2
"""Background uploads that may wait at once; more would arrive when nobody wants them any more."""

_RECENT = 0.1  # weight of a chunk in the running average of the rate
_MEASURED = 1 << 18  # smaller chunks say more about latency than about the rate


class Upload:
    """One expert on its way to a slot or a staging buffer.

    Attributes:
        key: layer and expert.
        slot: of the cache; None for a staging buffer.
        demanded: somebody waits for it.
    """

    def __init__(
        self,
        key: tuple[int, int],
        slot: int | None,
        memory: Tensor,
        pieces: Iterable[Piece],
        *,
        demanded: bool,
        after: Event | None,
    ) -> None:
        self.key = key
        self.after = after
        self.slot = slot
        self.demanded = demanded
        self._chunks = deque(_chunks(memory, pieces))
        self.nbytes = self.left = sum(len(source) for _, source in self._chunks)
        self.begun = False
        self.cancelled = False
        self._over = threading.Event()
        self._error: BaseException | None = None

    def done(self) -> bool:
        """Return whether it has arrived; raises what went wrong."""
        if not self._over.is_set():
            return False
        if self._error is not None:
            raise self._error
        return True

    def wait(self) -> None:
        """Return once it has arrived; raises what went wrong."""
        self._over.wait()
        self.done()


def _chunks(memory: Tensor, pieces: Iterable[Piece]) -> Iterator[tuple[Tensor, Tensor]]:
    for piece in pieces:
        for start in range(0, len(piece.source), CHUNK):
            source = piece.source[start : start + CHUNK]
            first = piece.offset + start
            yield memory[first : first + len(source)], source


class _State:
    """What the thread and the uploader share; it does not keep the uploader alive."""

    def __init__(self, accelerator: Accelerator, rate: float) -> None:
        self.accelerator = accelerator
        self.changed = threading.Condition()
        self.demand: deque[Upload] = deque()
        self.background: deque[Upload] = deque()
        self.finished: deque[Upload] = deque()
        self.closed = False
        self.rate = rate
        self.measured = False
        self.nbytes = 0
        self.busy: deque[tuple[float, float]] = deque(maxlen=4096)
        self.copied: Callable[[int, int], None] | None = None

    def next_chunk(self) -> tuple[Upload, Tensor, Tensor] | None:
        """Take the chunk that goes next; call with the lock held."""
        for waiting in (self.demand, self.background):
            if waiting:
                upload = waiting[0]
                upload.begun = True
                target, source = upload._chunks.popleft()
                if not upload._chunks:
                    waiting.popleft()
                return upload, target, source
        return None

    def end(self) -> None:
        """Drop what has not been given to the accelerator: nobody is left who would wait for it."""
        with self.changed:
            self.closed = True
            self.demand.clear()
            self.background.clear()
            self.changed.notify_all()


class Uploader:
    """Copies experts to an accelerator.

    Args:
        accelerator: where to.
        rate: bytes per second to expect until copies have been measured.
    """

    def __init__(self, accelerator: Accelerator, rate: float = 10e9) -> None:
        state = _State(accelerator, rate)
        self._state = state
        self._under_way: dict[tuple[int, int], Upload] = {}
        self._thread = threads.start(lambda: _serve(state), state.end, "mixq-uploads")
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
        """Begin to copy an expert into memory that nobody reads until it is done, or after an event.

        One without a slot is the caller's to wait for; `finished` does not name it.
        """
        if not self._end.alive:
            raise RuntimeError("the uploader has been closed")
        upload = Upload(key, slot, memory, pieces, demanded=demanded, after=after)
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
        """Somebody waits for it now: it goes before the background."""
        with self._state.changed:
            if not upload.demanded:
                upload.demanded = True
                if upload in self._state.background:
                    self._state.background.remove(upload)
                    self._state.demand.append(upload)

    def cancel_waiting(self) -> list[Upload]:
        """Take back background uploads of which nothing has been copied yet, and return them."""
        with self._state.changed:
            taken = [upload for upload in self._state.background if not upload.begun]
            for upload in taken:
                self._state.background.remove(upload)
        for upload in taken:
            upload.cancelled = True
            del self._under_way[upload.key]
        return taken

    def finished(self) -> list[Upload]:
        """Return the uploads that have arrived since the last call."""
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
        """End the thread; what has not begun is not copied."""
        self._end()
        self._thread.join()

    def tell(self, copied: Callable[[int, int], None]) -> None:
        """Have somebody told, by the thread, of each layer and expert whose host memory has been read in full."""
        self._state.copied = copied

    def expect(self, rate: float) -> None:
        """Take another rate to begin with, in bytes per second."""
        self._state.rate, self._state.measured = rate, False

    @property
    def measured(self) -> bool:
        """Whether copies since have been large enough to tell a rate."""
        return self._state.measured

    @property
    def rate(self) -> float:
        """Bytes per second, of late."""
        return self._state.rate

    @property
    def nbytes(self) -> int:
        """Bytes copied so far."""
        return self._state.nbytes

    def busy(self) -> list[tuple[float, float]]:
        """Return when copies were under way of late: begin and end on `time.perf_counter`'s clock."""
        return list(self._state.busy)

    def demand_seconds(self) -> float:
        """See `mixq.experts.scheduler.Copies`."""
        with self._state.changed:
            return sum(upload.left for upload in self._state.demand) / self._state.rate

    def remaining_seconds(self, layer: int, expert: int) -> float:
        """See `mixq.experts.scheduler.Copies`."""
        upload = self._under_way.get((layer, expert))
        if upload is None:
            return 0.0
        before = 0.0
        with self._state.changed:
            for other in self._state.demand:
                if other is upload:
                    break
                before += other.left
        return (before + upload.left) / self._state.rate

    def room(self) -> bool:
        """See `mixq.experts.scheduler.Copies`."""
        with self._state.changed:
            return len(self._state.background) < BACKGROUND


def _serve(state: _State) -> None:
    in_flight: deque[tuple[Upload, Event, int, float]] = deque()
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
            event.wait()
        except BaseException as error:  # noqa: BLE001  (raised again where somebody waits)
            upload._error = error
        _note(state, upload, nbytes, begun)
        del upload, event


class _Refused:
    """A copy that the accelerator did not take: whoever waits for it hears why."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def done(self) -> bool:
        raise self._error

    def wait(self) -> None:
        raise self._error


def _give(accelerator: Accelerator, upload: Upload, target: Tensor, source: Tensor) -> Event:
    try:
        if upload.after is not None:
            upload.after.wait()
            upload.after = None
        return accelerator.upload(target, source)
    except BaseException as error:  # noqa: BLE001  (raised again where somebody waits)
        return _Refused(error)


def _note(state: _State, upload: Upload, nbytes: int, begun: float) -> None:
    """Count a chunk that has arrived."""
    now = time.perf_counter()
    last_end = state.busy[-1][1] if state.busy else 0.0
    begun = max(begun, last_end)  # two are in flight, and one is copied after the other
    state.busy.append((begun, now))
    state.nbytes += nbytes
    if nbytes >= _MEASURED and now > begun:
        state.rate += _RECENT * (nbytes / (now - begun) - state.rate)
        state.measured = True
    with state.changed:
        upload.left -= nbytes
    if upload.left == 0:
        if state.copied is not None:
            state.copied(*upload.key)
        if upload.slot is not None:
            state.finished.append(upload)
        upload._over.set()
