"""What a client is told when a request cannot be answered: one error, in OpenAI's form and in Ollama's.

Contract: `as_request_error` turns every `MixqError` into a status that says whose fault it is: 4xx the client's, 503 to
be tried again, 500 the model's. Messages quote a field's value at most, never a body.
"""

from __future__ import annotations

from typing import Any

from mixq.errors import MixqError, PromptTooLong, QueueFull, UsageError, printable


class RequestError(MixqError):
    """A request that is refused.

    Args:
        status: of HTTP.
        message: the cause.
        param: the field at fault, such as "messages[2].content".
        code: for programs, such as "context_length_exceeded".
        retry_after: seconds after which it may be worth to ask again.
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
    def headers(self) -> dict[str, str]:
        """Headers of the reply."""
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers

    @property
    def text(self) -> str:
        """The cause and the next step in one line."""
        return f"{self.message} {self.hint}" if self.hint else self.message


def bad_field(param: str, message: str, *, code: str | None = None) -> RequestError:
    """Return the refusal of a field; `message` says what is wrong with it."""
    return RequestError(400, message, param=param, code=code)


def shown(value: object) -> str:
    """Return a value from a request for a message: on one line, and short."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f'"{printable(value, 60)}"'
    return printable(repr(value), 60)


def as_request_error(error: MixqError) -> RequestError:
    """Return what a client is told of a failure."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, PromptTooLong):
        return RequestError(400, error.message, code="context_length_exceeded", hint=error.hint)
    if isinstance(error, QueueFull):
        return RequestError(503, error.message, code="queue_full", retry_after=error.retry_after, hint=error.hint)
    if isinstance(error, UsageError):
        return RequestError(400, error.message, hint=error.hint)
    return RequestError(500, error.message, hint=error.hint)


def openai_error(error: MixqError) -> dict[str, Any]:
    """Return the body of an error as OpenAI writes it."""
    refused = as_request_error(error)
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
    kind = kinds.get(refused.status, "invalid_request_error" if refused.status < 500 else "server_error")
    return {"error": {"message": refused.text, "type": kind, "param": refused.param, "code": refused.code}}


def ollama_error(error: MixqError) -> dict[str, Any]:
    """Return the body of an error as Ollama writes it."""
    return {"error": as_request_error(error).text}
