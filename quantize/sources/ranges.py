"""Reads ranges of bytes of files over HTTP, several parts at a time, and retries failed requests.

Contract: `RangeReader.read` fills a buffer with exactly the requested bytes, or raises. A reply is accepted only if its
headers name the requested range, of a file of the known length and the same version as before. After a lost or stalled
connection, reading resumes at the same byte; if the server is busy (408, 425, 429, 5xx), the reader waits first.
Nothing is written to disk. The reader's threads are daemons: a read that hangs does not keep a process from ending.
"""

from __future__ import annotations

import queue
import re
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mixq.errors import ModelFileError, StorageError, printable

CONNECTIONS = 4
PART = 8 << 20
CHUNK = 256 << 10
TIMEOUT = 30.0
"""Seconds after which a connection without data has failed."""

ATTEMPTS = 8
"""Failures in a row, without a byte in between, after which a part fails: about two minutes."""

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
BUSY = (408, 425, 429, 500, 502, 503, 504)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file to read from."""

    name: str  # for messages
    url: str  # its address; redirects are followed, and only the first host gets the token
    size: int  # bytes
    version: str | None = None  # the known version of its content: an ETag or sha256, or None


class Stopped(StorageError):
    """The read was cancelled."""


@dataclass(slots=True, eq=False)
class _Read:
    """A range being read: its remaining parts, and the first failure."""

    file: RemoteFile
    buffer: memoryview
    start: int
    parts: int
    failure: Exception | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def fail(self, error: Exception) -> None:
        self.failure = self.failure or error
        self.done.set()


class RangeReader:
    """Reads ranges through an HTTP client.

    Args:
        session: a client with the interface and exceptions of httpx.Client.
        headers: sent with every request; the token, for instance.
        first_wait: seconds before the second attempt; doubled each time.
    """

    def __init__(self, session: Any, headers: Mapping[str, str], *, first_wait: float = FIRST_WAIT) -> None:
        self._session = session
        self._headers = {**headers, "Accept-Encoding": "identity"}
        self._first_wait = first_wait
        self._transport_errors: tuple[type[Exception], ...] = transport_errors(session)
        self._versions: dict[str, str] = {}
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[tuple[_Read, int, int]] = queue.SimpleQueue()
        self._reads: set[_Read] = set()
        self._workers = 0
        self._stopped = False

    def read(self, file: RemoteFile, start: int, end: int, buffer: memoryview) -> None:
        """Fill a writable buffer of end - start bytes.

        Raises:
            StorageError: no stable connection; the range was refused; or `cancel` was called.
            ModelFileError: the file has changed, or has another length.
        """
        assert len(buffer) == end - start
        if self._stopped:
            raise Stopped("the read was stopped.")
        if start == end:
            return
        read = _Read(file, buffer, start, -(-(end - start) // PART))
        with self._lock:
            self._reads.add(read)
        for first in range(start, end, PART):
            self._queue.put((read, first, min(first + PART, end)))
        self._start_workers(read.parts)
        try:
            while not read.done.wait(0.2):  # on Windows Ctrl-C interrupts only waits with a timeout
                pass
        except BaseException:
            read.fail(Stopped("the read was stopped."))
            raise
        finally:
            with self._lock:
                self._reads.discard(read)
        if read.failure is not None:
            raise read.failure

    def cancel(self) -> None:
        """End reads under way, and all later ones, with `Stopped` at once."""
        with self._lock:
            self._stopped = True
            reads = list(self._reads)
        for read in reads:
            read.fail(Stopped("the read was stopped."))

    def _start_workers(self, wanted: int) -> None:
        with self._lock:
            missing = range(self._workers, min(wanted, CONNECTIONS))
            self._workers += len(missing)
        for _ in missing:
            threading.Thread(target=self._work, name="mixq-ranges", daemon=True).start()

    def _work(self) -> None:
        while True:
            read, start, end = self._queue.get()
            if read.failure is None:
                try:
                    self._part(read, start, end)
                except Exception as error:  # noqa: BLE001  (raised again by `read`)
                    read.fail(error)
            with self._lock:
                read.parts -= 1
                if read.parts == 0:
                    read.done.set()

    def _part(self, read: _Read, start: int, end: int) -> None:
        """Fill one part, with retries."""
        position, failures, wait = start, 0, self._first_wait
        passing: tuple[type[Exception], ...] = (_Cut, *self._transport_errors)
        while position < end and not read.done.is_set():
            before = position
            try:
                for chunk in self._reply(read.file, position, end):
                    if read.done.is_set():
                        return
                    if position + len(chunk) > end:
                        raise _Cut("the server sent more bytes than were requested")
                    read.buffer[position - read.start : position - read.start + len(chunk)] = chunk
                    position += len(chunk)
                if position < end:
                    raise _Cut("the connection ended early")
            except passing as error:
                failures, wait = (1, self._first_wait) if position > before else (failures + 1, wait)
                if failures >= ATTEMPTS:
                    what = printable(error, 200) or type(error).__name__
                    raise StorageError(
                        f"{printable(read.file.name)} could not be read: {what} (after {failures} attempts).",
                        hint="Run the same command again when the network is back, to resume.",
                    ) from None
                read.done.wait(max(wait, error.wait if isinstance(error, _Cut) else 0.0))
                wait = min(2 * wait, LONGEST_WAIT)

    def _reply(self, file: RemoteFile, start: int, end: int) -> Any:
        """Request bytes start to end, check the reply, and yield it in chunks."""
        headers = {**self._headers, "Range": f"bytes={start}-{end - 1}"}
        with self._session.stream("GET", file.url, headers=headers, follow_redirects=True, timeout=TIMEOUT) as reply:
            self._check(file, start, end, reply)
            yield from reply.iter_raw(CHUNK)

    def _check(self, file: RemoteFile, start: int, end: int, reply: Any) -> None:
        shown, status = printable(file.name), reply.status_code
        if status in BUSY:
            raise _Cut(f"the server answered {status}", _retry_after(reply))
        if status == 416:
            raise _changed(shown, f"it ends before byte {end:,}")
        if status == 200 and (start, end) != (0, file.size):
            raise StorageError(
                f"{shown} cannot be read in parts, because the server does not support range requests.",
                hint="Use another mirror (HF_ENDPOINT), or download the repository and quantize its folder.",
            )
        if status not in (200, 206):
            raise StorageError(f"{shown} cannot be read: the server answered {status}.", hint=_access_hint(status))
        if status == 206:
            found = _CONTENT_RANGE.fullmatch(reply.headers.get("Content-Range", ""))
            if found is None or (int(found[1]), int(found[2])) != (start, end - 1):
                raise _Cut("the server sent another range than was requested")
            if int(found[3]) != file.size:
                raise _changed(shown, f"it has {int(found[3]):,} bytes instead of {file.size:,}")
        length = reply.headers.get("Content-Length")
        if length is not None and length != str(end - start):
            raise _Cut(f"the server announced {printable(length, 20)} bytes instead of {end - start:,}")
        self._check_version(file, reply)

    def _check_version(self, file: RemoteFile, reply: Any) -> None:
        """Compare the content's version with the known one, or with that of the first reply."""
        linked = [first.headers.get("X-Linked-ETag") for first in (*reply.history, reply)]
        version = next((tag for tag in linked if tag), None)
        if version is not None and file.version is not None:
            if _bare(version) != file.version:
                raise _changed(printable(file.name), "its content is different now")
            return
        version = version or reply.headers.get("ETag")
        if version is not None and self._versions.setdefault(file.url, _bare(version)) != _bare(version):
            raise _changed(printable(file.name), "its content is different now")


class _Cut(Exception):
    """A failure that may not happen again; `wait` is the delay requested by the server, in seconds."""

    def __init__(self, text: str, wait: float = 0.0) -> None:
        super().__init__(text)
        self.wait = wait


def transport_errors(session: Any) -> tuple[type[Exception], ...]:
    """Return the exceptions of the client (httpx, under any package name) for failed connections and bad replies."""
    package = sys.modules[type(session).__module__.partition(".")[0]]
    return package.RequestError, package.StreamError, package.InvalidURL


def _retry_after(reply: Any) -> float:
    text = reply.headers.get("Retry-After", "")
    return min(float(text), 10 * LONGEST_WAIT) if re.fullmatch(r"\d{1,6}", text) else 0.0


def _bare(version: str) -> str:
    """Return an ETag without its quotes and the mark of a weak one."""
    return version.removeprefix("W/").strip('"')


def _changed(shown: str, how: str) -> ModelFileError:
    return ModelFileError(
        f"{shown} has changed on the hub: {how}.",
        hint="Run the command again with an empty target folder; use --revision COMMIT for a fixed version.",
    )


def _access_hint(status: int) -> str | None:
    if status in (401, 403):
        return "Run `hf auth login`, or set HF_TOKEN. For a gated model, accept the terms on its page first."
    return None
