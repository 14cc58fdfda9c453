"""Errors as clients see them: one exception, and its JSON in OpenAI's and in Ollama's format.

Contract: `as_request_error` gives every `MixqError` a status: 4xx for errors of the client, 503 if a later try may
succeed, 500 for the rest. A message quotes at most the start of one value, never a whole body.
"""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

from mixq.errors import MixqError, PromptTooLong, QueueFull, UsageError, printable

KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
"""OpenAI's error types by status; others are invalid_request_error below 500, server_error from 500 on."""


class RequestError(MixqError):
    """A request that is refused.

    Args:
        status: HTTP status.
        message: the cause.
        param: the wrong field, such as "messages[2].content".
        code: for programs, such as "context_length_exceeded".
        retry_after: seconds after which to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after = retry_after

    @property
    def text(self) -> str:
        """The cause and the next step in one line."""
        return f"{self.message} {self.hint}" if self.hint else self.message


def bad_field(param: str, message: str, *, code: str | None = None) -> RequestError:
    """Return the error for a field; `message` says what is wrong."""
    return RequestError(400, message, param=param, code=code)


def shown(value: object) -> str:
    """Return a value from a request for a message, in one short line."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return f'"{printable(value, 60)}"' if isinstance(value, str) else printable(repr(value), 60)


def as_request_error(error: MixqError) -> RequestError:
    """Return a failure as an error for the client."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, PromptTooLong):
        return RequestError(400, error.message, code="context_length_exceeded", hint=error.hint)
    if isinstance(error, QueueFull):
        return RequestError(503, error.message, code="queue_full", retry_after=error.retry_after, hint=error.hint)
    return RequestError(400 if isinstance(error, UsageError) else 500, error.message, hint=error.hint)


def openai_error(error: MixqError) -> dict[str, Any]:
    """Return the body of an error in OpenAI's format."""
    refused = as_request_error(error)
    kind = KINDS.get(refused.status, "invalid_request_error" if refused.status < 500 else "server_error")
    return {"error": {"message": refused.text, "type": kind, "param": refused.param, "code": refused.code}}


def ollama_error(error: MixqError) -> dict[str, Any]:
    """Return the body of an error in Ollama's format."""
    return {"error": as_request_error(error).text}


def dump(document: Any) -> bytes:
    """Return compact JSON; lone surrogates, which UTF-8 cannot hold, become JSON escapes."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


def json_reply(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(dump(document), status, headers, media_type="application/json")


def error_reply(error: MixqError, path: str, *, close: bool = False) -> Response:
    """Return an error response: in Ollama's format under /api/, else in OpenAI's; `close` if part of the body was not
    read."""
    refused = as_request_error(error)
    body = ollama_error(refused) if path.startswith("/api/") else openai_error(refused)
    headers = {"Connection": "close"} if close else {}
    if refused.retry_after is not None:
        headers["Retry-After"] = str(refused.retry_after)
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return json_reply(body, refused.status, headers)
