"""Replies that are not streams: JSON, and errors in the form that the address's clients read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from mixq.errors import MixqError
from mixq.server.errors import as_request_error, ollama_error, openai_error
from mixq.server.json_body import dump


def json_reply(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON document."""
    return Response(dump(document), status, dict(headers or {}), media_type="application/json")


def error_reply(error: MixqError, path: str, *, close: bool = False) -> Response:
    """Return an error: Ollama's form under /api/, else OpenAI's; `close` where the body was not read to its end."""
    refused = as_request_error(error)
    body = ollama_error(refused) if path.startswith("/api/") else openai_error(refused)
    headers = {**refused.headers, **({"Connection": "close"} if close else {})}
    return json_reply(body, refused.status, headers)
