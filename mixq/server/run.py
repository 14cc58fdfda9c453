"""Runs the application: port, signals, shutdown.

Contract: the port is bound before the model is loaded, so that a port in use is reported at once. SIGTERM or SIGINT
ends every stream with an error event, then the process; a second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import sys
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from mixq.errors import MixqError, StorageError, UsageError, printable
from mixq.server.engine_host import EngineHost
from mixq.server.protocol import WatchedProtocol

ENGINE_SECONDS = 2.0
"""Seconds that the engine has to end its forward pass when the server stops."""
KEEP_ALIVE_SECONDS = 30
BACKLOG = 128
STOPPING = "the server is stopping"


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address, not listening yet.

    Raises:
        UsageError: not an address of this computer, or the port is in use.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise UsageError(
            f"{printable(host)} is not an address: {error.strerror}.", hint="The default is 127.0.0.1."
        ) from error
    bound = socket.socket(family, kind, protocol)
    try:
        if os.name != "nt":  # on Windows it would let two programs share the port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"Port {port} is in use.", hint="Choose another port: mixq serve --port N.") from error
        if error.errno in (errno.EACCES, errno.EADDRNOTAVAIL):
            hint = "Ports below 1024 need root. Choose another port: mixq serve --port N."
            if error.errno == errno.EADDRNOTAVAIL:
                hint = "Use an address of this computer, such as 127.0.0.1."
            raise UsageError(f"{printable(host)} port {port} cannot be used: {error.strerror}.", hint=hint) from error
        raise StorageError(f"{printable(host)} port {port}: {error.strerror}.") from error
    return bound


def address_of(bound: socket.socket) -> str:
    """Return the URL to show and to open; for a wildcard address, this computer's."""
    host, port = bound.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: ASGIApp, host: EngineHost, bound: socket.socket) -> None:
    """Serve until a signal."""
    make_server(app, host).run(sockets=[bound])
    if not host.close(ENGINE_SECONDS):  # a long forward pass is still running, and its result is not needed
        sys.stderr.flush()
        os._exit(0)


def make_server(app: ASGIApp, host: EngineHost, protocol: type[WatchedProtocol] = WatchedProtocol) -> Server:
    """Return the server of an application; setting `should_exit` ends it."""
    logging.getLogger("uvicorn.error").addFilter(_is_defect)
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
    """uvicorn's server, stopped so that clients get the reason and the exit code is 0."""

    def __init__(self, config: uvicorn.Config, host: EngineHost) -> None:
        super().__init__(config)
        self._host = host

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End every answer, then shut down as uvicorn does."""
        self._host.stop(STOPPING)
        await asyncio.sleep(0.05)  # the streams write their last event before connections are closed
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop at the first signal, exit at the second. uvicorn's own would raise the first again at the end."""
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True


def _is_defect(record: logging.LogRecord) -> bool:
    """Return False for errors that clients cause, and for tasks cancelled at the end."""
    error = record.exc_info[1] if record.exc_info else None
    if record.msg.startswith("Cancel "):  # tasks that still run after the time-out
        return False
    return record.levelno >= logging.ERROR and not isinstance(error, asyncio.CancelledError | MixqError)
