"""The first check of requests: allowed hosts and origins, the API key, size and time of the body.

Contract: an ASGI layer that refuses, or puts the whole body into the scope (`body.BODY`) and runs the application
until the client disconnects. It checks in this order: Host (DNS rebinding), Origin (pages of other sites), API key,
body. Without `cors_origins` no page of another site can read a response. Keys and bodies are not stored or logged.
Starlette's middlewares do not suffice: one allows names but no ranges of addresses, the other accepts requests of
foreign pages.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import re
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mixq.server.body import BODY
from mixq.server.errors import RequestError, error_reply, shown

MAX_BODY = 1 << 20
DRAIN_BODY, DRAIN_SECONDS, DRAIN_PAUSE = 16 << 20, 5.0, 0.5
"""Bytes of a too large body that are read and dropped: clients do not read the response while they send."""

MAX_HEAD = 16 << 10
"""Most bytes of all headers; h11's limit accepts larger ones that arrive in one piece."""

OPEN_PATHS = re.compile(r"/|/health|/page/(vendor/)?[^/]*|/favicon\.ico")
"""Paths that need no API key: the page, which asks the user for it, and the health check."""

METHODS = "GET, POST, OPTIONS"
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9.-]{1,253})(:\d{1,5})?")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the guard allows."""

    host: str = "127.0.0.1"  # the address that the server listens on
    api_key: str | None = None  # None if none is required
    cors_origins: tuple[str, ...] = ()  # sites whose pages may use the server; "*" for all
    allowed_hosts: tuple[str, ...] = ()  # further values of Host that are allowed
    body_seconds: float = 30.0  # time for the whole body of a request: a megabyte at 35 kB/s


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached only from this computer."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._key_digest = _digest(settings.api_key.encode()) if settings.api_key is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            _check_size(headers)
            self._check_host(headers)
            origin = self._checked_origin(headers)
        except RequestError as error:
            await error_reply(error, scope["path"])(scope, receive, send)
            return
        if origin is not None:
            send = _with_cors(send, origin)
        if scope["method"] == "OPTIONS" and origin is not None and "access-control-request-method" in headers:
            await _preflight(headers)(scope, receive, send)
            return
        try:
            self._check_key(scope["path"], headers)
            body = await asyncio.wait_for(_whole_body(headers, receive), self._settings.body_seconds)
        except TimeoutError:
            late = RequestError(408, f"The body did not arrive within {self._settings.body_seconds:g} seconds.")
            await error_reply(late, scope["path"], close=True)(scope, receive, send)
        except RequestError as error:
            await error_reply(error, scope["path"], close=error.status == 413)(scope, receive, send)
        else:
            if body is not None:
                scope[BODY] = body
                await _until_hang_up(self._app, scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        hosts = headers.getlist("host")
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if match is None or not self._is_own_name(match["name"].lower()):
            raise RequestError(
                403,
                f"Host {', '.join(map(shown, hosts))} is not allowed." if hosts else "The Host header is missing.",
                code="host_not_allowed",
                hint="Allow it with `mixq serve --allowed-host NAME`.",
            )

    def _is_own_name(self, name: str) -> bool:
        settings = self._settings
        if name in (host.lower() for host in settings.allowed_hosts) or name.strip("[]") == settings.host.lower():
            return True
        if is_loopback(settings.host):
            return is_loopback(name)
        if name == "localhost":
            return True
        try:  # DNS rebinding needs a name; it does not work with an IP address
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True

    def _checked_origin(self, headers: Headers) -> str | None:
        """Return the foreign origin that may read the response; None for this server's pages and for programs."""
        origins = headers.getlist("origin")
        if not origins:
            return None
        host = headers["host"].lower()
        if len(origins) == 1 and origins[0].lower() in (f"http://{host}", f"https://{host}"):
            return None
        allowed = self._settings.cors_origins
        if len(origins) != 1 or not ("*" in allowed or origins[0].lower() in (each.lower() for each in allowed)):
            raise RequestError(
                403,
                f"Origin {shown(origins[0])} is not allowed.",
                code="origin_not_allowed",
                hint="Allow it with `mixq serve --cors-origin ORIGIN`.",
            )
        return origins[0]

    def _check_key(self, path: str, headers: Headers) -> None:
        if self._key_digest is None or OPEN_PATHS.fullmatch(path):
            return
        given = headers.getlist("authorization")
        scheme, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        digest = _digest(key.strip().encode("latin-1", "replace"))
        if scheme.lower() != "bearer" or not hmac.compare_digest(digest, self._key_digest):
            message = "Wrong API key." if given else "An API key is required: send Authorization: Bearer KEY."
            raise RequestError(401, message, code="invalid_api_key")


def _digest(key: bytes) -> bytes:
    """Return a digest: comparing digests takes the same time for keys of any length."""
    return hashlib.sha256(key).digest()


async def _whole_body(headers: Headers, receive: Receive) -> bytes | None:
    """Return the body; None if the client disconnects before all of it has arrived."""
    declared = int(headers.get("content-length", "0"))  # the protocol has checked that it is digits
    if declared > MAX_BODY:
        if declared <= DRAIN_BODY and "expect" not in headers:
            await _drain(receive)
        raise _too_large()
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            body.clear()
            await _drain(receive)
            raise _too_large()
        more = message.get("more_body", False)
    return bytes(body)


async def _drain(receive: Receive) -> None:
    """Read and drop what a client still sends, up to `DRAIN_BODY` bytes and `DRAIN_SECONDS`."""
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while size < DRAIN_BODY:
                message = await asyncio.wait_for(receive(), DRAIN_PAUSE)
                size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


async def _until_hang_up(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Run the application as a task that is cancelled when the client disconnects."""
    whole = False

    async def noting_the_end(message: Message) -> None:
        nonlocal whole
        await send(message)
        whole = message["type"] == "http.response.body" and not message.get("more_body", False)

    work = asyncio.ensure_future(app(scope, _nothing_more, noting_the_end))
    gone = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done() and not whole:
            work.cancel()
        await asyncio.wait((work,))
        if not work.cancelled():
            work.result()  # raises what it raised
    finally:
        gone.cancel()
        work.cancel()  # the server is stopping


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _nothing_more() -> Any:
    return await asyncio.Future()


def _check_size(headers: Headers) -> None:
    if sum(len(name) + len(value) for name, value in headers.raw) > MAX_HEAD:
        raise RequestError(431, f"The headers are larger than {MAX_HEAD} bytes.", code="headers_too_large")


def _too_large() -> RequestError:
    return RequestError(413, f"The body is larger than {MAX_BODY} bytes.", code="body_too_large")


def _with_cors(send: Send, origin: str) -> Send:
    """Return `send` with headers that allow the pages of a site to read the response."""
    extra = {
        b"access-control-allow-origin": origin.encode("latin-1"),
        b"access-control-expose-headers": b"Retry-After",
        b"vary": b"Origin",
    }

    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *extra.items()]}
        await send(message)

    return wrapped


def _preflight(headers: Headers) -> Response:
    wished = headers.get("access-control-request-headers", "")
    names = [name.strip() for name in wished.split(",") if _HEADER_NAME.fullmatch(name.strip())]
    return Response(
        status_code=204,
        headers={
            "Access-Control-Allow-Methods": METHODS,
            "Access-Control-Allow-Headers": ", ".join(names),
            "Access-Control-Max-Age": "600",
        },
    )
