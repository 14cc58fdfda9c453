"""A server in this process, on a port of its own, and what tests need to look at it from both sides."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from mixq.engine.model import Model
from mixq.server import run
from mixq.server.app import create_app
from mixq.server.engine_host import EngineHost
from mixq.server.guard import Settings
from mixq.server.protocol import WatchedProtocol

SECONDS = 60.0
"""Until a test gives up waiting."""

ENDLESS = {"logit_bias": {"2": -100}, "temperature": 0, "max_tokens": 100_000}
"""Fields of a completion that only the context ends."""


class Gate:
    """Stands in front of a model's passes: lets all through, or one by one."""

    def __init__(self, model: Model) -> None:
        self._forward = model.network.forward
        self._changed = threading.Condition()
        self._open = True
        self._allowed = 0
        self.passes = 0
        self.waiting = False
        model.network.forward = self._pass  # type: ignore[method-assign]

    def _pass(self, *args: Any, **kwargs: Any) -> Any:
        with self._changed:
            self.waiting = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._open or self._allowed)
            self.waiting = False
            self._allowed = max(0, self._allowed - 1)
            self.passes += 1
        return self._forward(*args, **kwargs)

    def close(self) -> None:
        """Let no pass begin."""
        with self._changed:
            self._open = False

    def open(self) -> None:
        """Let all through."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def let(self, passes: int) -> None:
        """Let so many through, and wait until the next one waits."""
        with self._changed:
            target = self.passes + passes
            self._allowed += passes
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self.passes >= target and self.waiting, SECONDS)

    def wait(self) -> None:
        """Wait until a pass wants to begin."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.waiting, SECONDS)


@dataclass
class Running:
    """A server that runs."""

    host: EngineHost
    url: str
    port: int
    log: list[str]
    key: str | None = None
    _sockets: list[socket.socket] = field(default_factory=list)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, headers=self.headers, timeout=SECONDS, **options)

    def post(self, path: str, document: Mapping[str, Any]) -> httpx.Response:
        return httpx.post(self.url + path, json=document, headers=self.headers, timeout=SECONDS)

    def raw(self, data: bytes, *, shut: bool = False) -> tuple[int, dict[str, str], bytes]:
        """Send bytes as they are; return status, headers and body of the reply, 0 where there was none."""
        with socket.create_connection(("127.0.0.1", self.port), SECONDS) as client:
            with contextlib.suppress(ConnectionError):  # refused before all was sent
                client.sendall(data)
                if shut:
                    client.shutdown(socket.SHUT_WR)
            return read_reply(client)

    def request(self, head: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
        """Send a request with this head, a line each; the connection ends with it."""
        lines = "\r\n".join([*head.strip().splitlines(), "Connection: close", "", ""])
        return self.raw(lines.encode("utf-8", "surrogateescape") + body)

    def begin(self, path: str, document: Mapping[str, Any]) -> socket.socket:
        """Send a request and return the open connection."""
        client = socket.create_connection(("127.0.0.1", self.port), SECONDS)
        body = json.dumps(document).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        return client

    def state(self) -> Any:
        state = self.host.batcher_state()
        assert state is not None
        return state

    def wait(self, condition: Callable[[], bool]) -> None:
        wait_until(condition)

    def idle(self) -> bool:
        state = self.state()
        return not (state.queued or state.running or state.busy_positions)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.002)


def rest(client: socket.socket) -> bytes:
    """Read what is left of a connection."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while chunk := client.recv(1 << 16):
            data += chunk
    return data


def read_reply(client: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Read a reply to the end of the connection."""
    data = rest(client)
    if not data:
        return 0, {}, b""
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split()[1]), headers, body


@contextlib.contextmanager
def running(
    model: Model | Callable[[Mapping[str, Any]], Model],
    *,
    name: str = "demo",
    aliases: tuple[str, ...] = (),
    queue: int = 64,
    reuse: bool = True,
    protocol: type[WatchedProtocol] = WatchedProtocol,
    settings: Settings | None = None,
) -> Iterator[Running]:
    """Serve a model, or what loads one, until the block ends."""
    log: list[str] = []
    load = (lambda _: model) if isinstance(model, Model) else model
    host = EngineHost(load, {}, name=name, aliases=aliases, queue=queue, reuse=reuse, say=log.append)
    host.load()
    bound = run.bind("127.0.0.1", 0)
    port = bound.getsockname()[1]
    settings = settings or Settings()
    server = run.make_server(create_app(host, settings, log.append), host, protocol)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        yield Running(host, f"http://127.0.0.1:{port}", port, log, settings.api_key)
    finally:
        server.should_exit = True
        thread.join(SECONDS)
        bound.close()
        assert not thread.is_alive()
        assert host.close(SECONDS)


def events(client: socket.socket, count: int) -> bytes:
    """Read until so many server-sent events have come."""
    data = b""
    while data.count(b"data: ") < count:
        chunk = client.recv(1 << 16)
        assert chunk, data
        data += chunk
    return data
