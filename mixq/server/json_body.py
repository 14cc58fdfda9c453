"""The JSON of a request: strict, bounded, and parsed beside the event loop where it is long.

Contract: no duplicate keys, no NaN or Infinity, no number that a float cannot hold, no invalid UTF-8, at most
`MAX_DEPTH` levels. Failures say where, never what.
"""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

from starlette.requests import Request

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
    try:
        parsed = json.loads(
            body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
        )
    except UnicodeDecodeError as error:
        raise RequestError(400, f"The body is not UTF-8: byte {error.start} begins no character.") from None
    except RecursionError:
        raise RequestError(400, "The JSON is nested too deep.") from None
    except json.JSONDecodeError as error:
        raise RequestError(
            400, f"The body is not JSON: {error.msg}, line {error.lineno}, column {error.colno}."
        ) from None
    except ValueError as error:  # an integer of thousands of digits, whose message has a number alone; or ours
        message = str(error) if isinstance(error, _NotJson) else "a number has too many digits"
        raise RequestError(400, f"The body is not JSON: {message}.") from None
    if not isinstance(parsed, dict):
        raise RequestError(400, "The body must be a JSON object.")
    _check_depth(parsed)
    return parsed


class _NotJson(ValueError):
    """What Python's parser takes, and JSON has not."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _NotJson("a key stands there twice in one object")
    return found


def _no_constant(name: str) -> None:
    raise _NotJson(f"{name} is no number of JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _NotJson("a number is too large")
    return value


def _check_depth(parsed: Any) -> None:
    level, depth = [parsed], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise RequestError(400, f"The JSON is nested too deep: more than {MAX_DEPTH} levels.")
        below: list[Any] = []
        for each in level:
            children = each.values() if isinstance(each, dict) else each
            below += [child for child in children if isinstance(child, dict | list)]
        level = below


def dump(document: Any) -> bytes:
    """Return compact JSON; half characters, which no UTF-8 can hold, stand there as JSON's own escapes."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")
