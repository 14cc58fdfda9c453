"""The ASGI application: the handler of each path, behind guard, metrics and access log.

Contract: `create_app` opens no port and loads no model. Every failure that a client can cause is a JSON error with a
status of 4xx or 503 (`errors`); any other failure is a bug, and gets status 500 without details.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any

from pydantic import BeforeValidator
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from mixq.config import parse_size
from mixq.errors import MixqError, UsageError, did_you_mean, printable
from mixq.server import facts, ollama, openai, page_files, tokens
from mixq.server.body import Body, Whole, must_be, read
from mixq.server.engine_host import EngineHost
from mixq.server.errors import RequestError, error_reply, json_reply
from mixq.server.guard import Guard, Settings
from mixq.server.metrics import Metrics

Handler = Callable[[EngineHost, HttpRequest], Awaitable[Response]]


def _bytes(value: Any) -> Any:
    try:
        return parse_size(value) if isinstance(value, str) else value
    except UsageError:
        return None


Size = Annotated[Whole, BeforeValidator(_bytes), must_be("a size such as 8GB", lambda size: 1 <= size <= 2**60)]


class ReloadBody(Body):
    """The fields of /mixq/reload; null: all free GPU memory."""

    vram: Size | None


async def reload(host: EngineHost, http: HttpRequest) -> Response:
    """Start reloading the model with another GPU memory limit."""
    body = await read(ReloadBody, http)
    host.reload({"vram": body.vram})
    return json_reply(facts.status_of(host), 202)


GET: dict[str, Handler] = {
    "/health": facts.health,
    "/v1/models": facts.models,
    "/v1/models/{name:path}": facts.model,
    "/tokenizer_info": tokens.tokenizer_info,
    "/mixq/status": facts.status,
    "/api/tags": ollama.tags,
    "/api/ps": ollama.running,
    "/api/version": ollama.version,
}
POST: dict[str, Handler] = {
    "/v1/chat/completions": openai.chat,
    "/v1/completions": openai.complete,
    "/tokenize": tokens.tokenize,
    "/detokenize": tokens.detokenize,
    "/mixq/reload": reload,
    "/api/chat": ollama.chat,
    "/api/generate": ollama.generate,
    "/api/show": ollama.show,
}


def create_app(host: EngineHost, settings: Settings, log: Callable[[str], None] = lambda _: None) -> ASGIApp:
    """Return the application.

    Args:
        host: holds the model, once it is loaded.
        settings: what the guard allows.
        log: called with each line of the access log.
    """
    metrics = Metrics(host)

    routes = [
        Route("/", page_files.reply, methods=["GET"]),
        Route("/page/{name:path}", page_files.reply, methods=["GET"]),
        Route("/metrics", metrics.reply, methods=["GET"]),
        *(Route(path, partial(handler, host), methods=["GET"]) for path, handler in GET.items()),
        *(Route(path, partial(handler, host), methods=["POST"]) for path, handler in POST.items()),
    ]
    starlette = Starlette(
        routes=routes,
        exception_handlers={MixqError: _mixq_error, HTTPException: _http_error, Exception: _defect},
    )
    starlette.router.redirect_slashes = False
    return metrics.watch(Guard(starlette, settings), {"/", "/metrics", *GET, *POST}, log)


async def _mixq_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, MixqError)
    return error_reply(error, http.url.path)


async def _http_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = http.url.path
    address = printable(path, 80)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        refused = RequestError(405, f"{address} takes {allowed}, not {printable(http.method, 20)}.")
    else:
        near = did_you_mean(path[:80], [known for known in (*GET, *POST) if "{" not in known])
        refused = RequestError(error.status_code, f"Unknown endpoint {address}.{near}", code="unknown_url")
    return error_reply(refused, path)


async def _defect(http: HttpRequest, _error: Exception) -> Response:
    return error_reply(RequestError(500, "Internal error; see the server log."), http.url.path)
