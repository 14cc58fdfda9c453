"""HTTP/1.1 over one connection, with the time-outs that uvicorn does not have.

Contract: a connection is closed that brings no whole request head within `HEAD_SECONDS`, or takes nothing of a reply
for `WRITE_SECONDS`; so neither slow senders nor slow readers stay, and neither holds up others. What h11 refuses (a bad
Content-Length, headers beyond 16 KiB) is answered with a JSON error that says why.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from mixq.server.errors import RequestError, openai_error
from mixq.server.json_body import dump

HEAD_SECONDS = 10.0
WRITE_SECONDS = 30.0
WATCH_SECONDS = 1.0
MOST_CONNECTIONS = 512
"""Beyond them a new connection is closed at once: file descriptors are limited too."""


class _Connection(h11.Connection):
    """Remembers why it refused."""

    refusal: h11.RemoteProtocolError | None = None

    def next_event(self) -> Any:
        try:
            return super().next_event()
        except h11.RemoteProtocolError as error:
            self.refusal = error
            raise


class WatchedProtocol(H11Protocol):
    """uvicorn's protocol, watched."""

    head_seconds = HEAD_SECONDS
    write_seconds = WRITE_SECONDS
    watch_seconds = WATCH_SECONDS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = _Connection(h11.SERVER, self.conn._max_incomplete_event_size)
        self._watch: asyncio.TimerHandle | None = None
        self._head_since: float | None = None
        self._stuck_since: float | None = None
        self._unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, and begin to watch it."""
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
            return
        self._head_since = self.loop.time()
        self._watch = self.loop.call_later(self.watch_seconds, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the watch with the connection."""
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        self._watch = self.loop.call_later(self.watch_seconds, self._look)
        now = self.loop.time()
        if self._waits_for_a_head():
            self._head_since = self._head_since or now
            if now - self._head_since > self.head_seconds:
                self.transport.abort()
                return
        else:
            self._head_since = None
        unsent = self.transport.get_write_buffer_size()
        if not unsent or unsent < self._unsent or self._stuck_since is None:
            self._stuck_since = now
        self._unsent = unsent
        if now - self._stuck_since > self.write_seconds:
            self.transport.abort()

    def _waits_for_a_head(self) -> bool:
        """Return whether there is no request, or only the beginning of one; an idle client has its own time-out."""
        idle = self.timeout_keep_alive_task is not None and not self.conn.trailing_data[0]
        return not idle and self.conn.their_state is h11.IDLE

    def handle_websocket_upgrade(self, event: Any) -> None:
        """There are none."""
        raise AssertionError("ws is none")

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong with a request that is none; nothing where a reply has begun."""
        refusal = self.conn.refusal if isinstance(self.conn, _Connection) else None
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        status = refusal.error_status_hint if refusal is not None else 400
        cause = str(refusal) if refusal is not None else msg
        if status == 431:
            cause = "the headers are too large"
        body = dump(openai_error(RequestError(status, f"This is no HTTP request: {cause}.")))
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            output = self.conn.send(event)
            if output:
                self.transport.write(output)
        self.transport.close()
