"""Runs the application: the port, the signals, the end.

Contract: the port is bound before the model is loaded, so that a port in use is said at once. SIGTERM or SIGINT ends
every stream with an error event, and the process within `STOP_SECONDS`; a second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from mixq.errors import MixqError, StorageError, UsageError, printable
from mixq.server.engine_host import EngineHost
from mixq.server.protocol import WatchedProtocol

STOP_SECONDS = 4.0
"""How long clients and the engine have to take the end."""
ENGINE_SECONDS = 2.0
KEEP_ALIVE_SECONDS = 30
BACKLOG = 128
STOPPING = "the server is stopping"


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that has the address, and does not listen yet.

    Raises:
        UsageError: the address is none of this machine's, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise UsageError(f"{printable(host)} is no address of this machine: {error.strerror}.") from error
    bound = socket.socket(family, kind, protocol)
    try:
        if os.name != "nt":  # there it would let two programs share the port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"Port {port} is taken.", hint="Give another one: mixq serve --port N.") from error
        if error.errno in (errno.EACCES, errno.EADDRNOTAVAIL):
            raise UsageError(f"{printable(host)} port {port} cannot be used: {error.strerror}.") from error
        raise StorageError(f"{printable(host)} port {port}: {error.strerror}.") from error
    return bound


def address_of(bound: socket.socket) -> str:
    """Return the address to show and to open; a wildcard stands for this machine."""
    host, port = bound.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: ASGIApp, host: EngineHost, bound: socket.socket) -> None:
    """Serve until a signal comes."""
    make_server(app, host).run(sockets=[bound])
    if not host.close(ENGINE_SECONDS):  # a long pass is running; nobody waits for what it gives
        sys.stderr.flush()
        os._exit(0)


def make_server(app: ASGIApp, host: EngineHost, protocol: type[WatchedProtocol] = WatchedProtocol) -> Server:
    """Return what runs the application; `should_exit` ends it."""
    logging.getLogger("uvicorn.error").addFilter(_without_the_expected)
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=1,
    )
    return Server(config, host)


class Server(uvicorn.Server):
    """uvicorn's server, which tells the clients why it stops."""

    def __init__(self, config: uvicorn.Config, host: EngineHost) -> None:
        super().__init__(config)
        self._host = host

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End every answer, then as uvicorn does."""
        self._host.stop(STOPPING)
        await asyncio.sleep(0.05)  # so that the streams write their last event before connections are shut
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at the first signal, and end at the second; the way to stop a server is no failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        former = {each: signal.signal(each, self.handle_exit) for each in signals}
        try:
            yield
        finally:
            for each, handler in former.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal."""
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True


def _without_the_expected(record: logging.LogRecord) -> bool:
    """Keep defects; leave out what clients do, and tasks that are cancelled at the end."""
    error = record.exc_info[1] if record.exc_info else None
    if record.msg.startswith("Cancel "):  # tasks that are still there after the time-out
        return False
    return record.levelno >= logging.ERROR and not isinstance(error, asyncio.CancelledError | MixqError)
