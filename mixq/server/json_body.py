"""The JSON of a request: strict, bounded, and parsed beside the event loop where it is long.

Contract: no duplicate keys, no NaN or Infinity, no number that a float cannot hold, no invalid UTF-8, at most
`MAX_DEPTH` levels. Failures say where, never what.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.requests import Request

from mixq.formats.json_file import parse_json_object
from mixq.server.errors import RequestError

MAX_DEPTH = 100
LONG = 64 << 10
"""Bytes from which a body is parsed in a thread; it takes about a millisecond."""

BODY = "mixq.body"
"""Where the guard puts the body into the scope."""


async def json_body(request: Request) -> dict[str, Any]:
    """Return the JSON object that a request brings.

    Raises:
        RequestError: 400, with the cause.
    """
    body: bytes = request.scope[BODY]
    if request.url.query:
        raise RequestError(400, "This address takes no query; put fields into the JSON body, a key into a header.")
    return parse_object(body) if len(body) < LONG else await asyncio.to_thread(parse_object, body)


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body.

    Raises:
        RequestError: 400, with the cause.
    """
    if not body.strip():
        raise RequestError(400, "The request has no body; it must be a JSON object.")
    return parse_json_object(body, "The body", MAX_DEPTH, lambda message: RequestError(400, message))


def dump(document: Any) -> bytes:
    """Return compact JSON; half characters, which no UTF-8 can hold, stand there as JSON's own escapes."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")
