"""The gate in front of everything: who may ask, from where, and how much they may send.

Contract: an ASGI layer that refuses by itself, or puts the whole body into the scope (`json_body.BODY`) and hands on.
It checks in this order: Host (DNS rebinding), Origin (pages of other sites), the key, the body's size and pace. Without
`cors_origins` no page of another site may read an answer. Neither keys nor bodies are kept or written anywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mixq.server.errors import RequestError, shown
from mixq.server.json_body import BODY
from mixq.server.replies import error_reply

MAX_BODY = 1 << 20
BODY_SECONDS = 30.0
"""For the whole body: a megabyte at 35 kB/s."""

DRAIN_BODY, DRAIN_SECONDS, DRAIN_PAUSE = 16 << 20, 5.0, 0.5
"""What is read and thrown away of a body that is too large: a client that still sends does not read its refusal."""

MAX_HEAD = 16 << 10
"""Bytes of all headers; what comes in one piece passes the protocol's own limit."""

OPEN_PATHS = re.compile(r"/|/health|/page/(vendor/)?[^/]*|/favicon\.ico")
"""What needs no key: the page, which asks for it, and whether the server lives."""

METHODS = "GET, POST, OPTIONS"
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9.-]{1,253})(:\d{1,5})?")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the guard lets through.

    Attributes:
        host: the address that the server listens on.
        api_key: None for no key.
        cors_origins: sites whose pages may use the server; "*" for all.
        allowed_hosts: further names under which the server is asked.
        body_seconds: for the whole body of a request.
    """

    host: str = "127.0.0.1"
    api_key: str | None = None
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    body_seconds: float = BODY_SECONDS


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """Refuses, or hands on."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._key_digest = _digest(settings.api_key.encode()) if settings.api_key is not None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":  # no lifespan events are asked for, and web sockets are not offered
            return
        headers = Headers(scope=scope)
        try:
            _check_size(headers)
            self._check_host(headers)
            origin = self._checked_origin(headers)
        except RequestError as error:
            await error_reply(error, scope["path"])(scope, receive, send)
            return
        if origin is not None:
            send = _with_headers(send, self._cors_headers(origin))
        if scope["method"] == "OPTIONS" and origin is not None and "access-control-request-method" in headers:
            await _preflight(headers)(scope, receive, send)
            return
        try:
            self._check_key(scope["path"], headers)
            scope[BODY] = await asyncio.wait_for(_whole_body(headers, receive), self._settings.body_seconds)
        except TimeoutError:
            late = RequestError(408, f"The body did not arrive within {self._settings.body_seconds:g} seconds.")
            await error_reply(late, scope["path"], close=True)(scope, receive, send)
        except RequestError as error:
            await error_reply(error, scope["path"], close=error.status == 413)(scope, receive, send)
        except _HungUp:
            pass
        else:
            await self._app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        hosts = headers.getlist("host")
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if match is None or not self._is_own_name(match["name"].lower()):
            asked = shown(hosts[0]) if len(hosts) == 1 else "no name" if not hosts else "several names"
            raise RequestError(
                403,
                f"This server is not asked as {asked}.",
                code="host_not_allowed",
                hint="`mixq serve --allowed-host NAME` allows a name.",
            )

    def _is_own_name(self, name: str) -> bool:
        settings = self._settings
        if name in (host.lower() for host in settings.allowed_hosts) or name.strip("[]") == settings.host.lower():
            return True
        if is_loopback(settings.host):
            return is_loopback(name)
        if name == "localhost":
            return True
        try:  # an attacker's page needs a name that it can point elsewhere; an address it cannot
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True

    def _checked_origin(self, headers: Headers) -> str | None:
        """Return the site of another origin that may read the reply; None where there is none."""
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
                f"Pages of {shown(origins[0])} may not use this server.",
                code="origin_not_allowed",
                hint="`mixq serve --cors-origin ORIGIN` allows a site.",
            )
        return origins[0]

    def _cors_headers(self, origin: str) -> dict[str, str]:
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": "Retry-After",
            "Vary": "Origin",
        }

    def _check_key(self, path: str, headers: Headers) -> None:
        if self._key_digest is None or OPEN_PATHS.fullmatch(path):
            return
        given = headers.getlist("authorization")
        scheme, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        digest = _digest(key.strip().encode("latin-1", "replace"))
        if scheme.lower() != "bearer" or not hmac.compare_digest(digest, self._key_digest):
            raise RequestError(
                401,
                "This server wants its key: Authorization: Bearer KEY."
                if not given
                else "The key is not this server's.",
                code="invalid_api_key",
            )


class _HungUp(Exception):
    """The client went away before its body was there."""


def _digest(key: bytes) -> bytes:
    """Return a digest, so that keys of any length compare in the same time."""
    return hashlib.sha256(key).digest()


async def _whole_body(headers: Headers, receive: Receive) -> bytes:
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
            raise _HungUp
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            body.clear()
            await _drain(receive)
            raise _too_large()
        more = message.get("more_body", False)
    return bytes(body)


async def _drain(receive: Receive) -> None:
    """Throw away what a client is still sending, as long as it keeps coming, and not for ever."""
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while size < DRAIN_BODY:
                message = await asyncio.wait_for(receive(), DRAIN_PAUSE)
                size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def _check_size(headers: Headers) -> None:
    if sum(len(name) + len(value) for name, value in headers.raw) > MAX_HEAD:
        raise RequestError(431, f"The headers are larger than {MAX_HEAD} bytes.", code="headers_too_large")


def _too_large() -> RequestError:
    return RequestError(413, f"The body is larger than {MAX_BODY} bytes.", code="body_too_large")


def _with_headers(send: Send, extra: Mapping[str, str]) -> Send:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in extra.items()]

    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *raw]}
        await send(message)

    return wrapped


def _preflight(headers: Headers) -> Response:
    """Return the answer to a browser that asks whether it may ask."""
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
