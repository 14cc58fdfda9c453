"""HTTP/1.1 over one connection, with time-outs that uvicorn does not have.

Contract: a connection is closed if the request's headers do not arrive within `head_seconds`, or if the client reads
nothing of a response for `write_seconds`. What h11 refuses (a bad Content-Length, headers beyond 16 KiB) gets a JSON
error with the cause. uvicorn's limits do not suffice: it has no time-outs for headers and writes, its
`limit_concurrency` keeps idle connections open, and it answers bad requests in plain text without the cause.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from mixq.server.errors import RequestError, error_reply

MOST_CONNECTIONS = 512
"""Most connections; more are closed at once, because file descriptors are limited."""


class WatchedProtocol(H11Protocol):
    """uvicorn's protocol with time-outs."""

    head_seconds = 10.0
    write_seconds = 30.0
    watch_seconds = 1.0  # between two checks

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._watch: asyncio.TimerHandle | None = None
        self._head_since: float | None = None
        self._stuck_since: float | None = None
        self._unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
            return
        self._head_since = self.loop.time()
        self._watch = self.loop.call_later(self.watch_seconds, self._check_times)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    def _check_times(self) -> None:
        self._watch = self.loop.call_later(self.watch_seconds, self._check_times)
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
        """Return whether the request's headers are incomplete; idle connections have uvicorn's time-out."""
        idle = self.timeout_keep_alive_task is not None and not self.conn.trailing_data[0]
        return not idle and self.conn.their_state is h11.IDLE

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP with the cause, unless a response has started; called while h11's error is
        handled."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        refusal = sys.exception()
        status, cause = 400, msg
        if isinstance(refusal, h11.RemoteProtocolError):
            status, cause = refusal.error_status_hint, str(refusal)
        if status == 431:
            cause = "the headers are too large"
        reply = error_reply(RequestError(status, f"This is not an HTTP request: {cause}."), "/", close=True)
        head = h11.Response(status_code=status, headers=reply.raw_headers)
        for event in (head, h11.Data(data=bytes(reply.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
