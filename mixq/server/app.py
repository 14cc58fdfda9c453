"""The server as an ASGI application: which address is answered by what, behind the guard.

Contract: `create_app` opens no port and loads no model. Every failure that a client can cause is a JSON error with a
status of 4xx or 503 (`errors`); what is left is a defect, 500 without details.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from mixq.config import did_you_mean, parse_size
from mixq.errors import MixqError, UsageError, printable
from mixq.server import (
    facts,
    fields,
    models_list,
    ollama,
    openai_chat,
    openai_completions,
    page_files,
    tokens,
)
from mixq.server.engine_host import EngineHost
from mixq.server.errors import RequestError, bad_field
from mixq.server.fields import Field
from mixq.server.guard import Guard, Settings
from mixq.server.hang_up import EndsWithClient
from mixq.server.json_body import json_body
from mixq.server.metrics import CONTENT_TYPE, Metrics, Observed
from mixq.server.replies import error_reply, json_reply

Handler = Callable[[EngineHost, HttpRequest], Awaitable[Response]]


async def health(host: EngineHost, _http: HttpRequest) -> Response:
    """Say whether requests are answered."""
    return json_reply({"status": "ok" if host.state == "ready" else host.state}, 200 if host.state == "ready" else 503)


async def status(host: EngineHost, _http: HttpRequest) -> Response:
    """Say what the page shows."""
    return json_reply(facts.status(host))


async def reload(host: EngineHost, http: HttpRequest) -> Response:
    """Begin to load the model with another share of GPU memory."""
    values = fields.read({"vram": Field(_vram, nullable=True, required=True)}, await json_body(http))
    host.reload({"vram": values["vram"]})
    return json_reply(facts.status(host), 202)


def _vram(value: object, param: str) -> int:
    if isinstance(value, str):
        try:
            value = parse_size(value)
        except UsageError as error:
            raise bad_field(param, f"{param}: {error.message} {error.hint or ''}".rstrip()) from None
    found: int = fields.whole(1, 2**60)(value, param)
    return found


async def version(_host: EngineHost, _http: HttpRequest) -> Response:
    """Say mixq's version, where Ollama says its own."""
    return json_reply({"version": facts.VERSION})


GET: dict[str, Handler] = {
    "/health": health,
    "/v1/models": models_list.listed,
    "/v1/models/{name:path}": models_list.one,
    "/tokenizer_info": tokens.tokenizer_info,
    "/mixq/status": status,
    "/api/tags": ollama.tags,
    "/api/ps": ollama.running,
    "/api/version": version,
}
POST: dict[str, Handler] = {
    "/v1/chat/completions": openai_chat.complete,
    "/v1/completions": openai_completions.complete,
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
        host: has the model, or will have it.
        settings: what the guard lets through.
        log: takes the lines of the access log.
    """
    metrics = Metrics(host)

    def endpoint(handler: Handler) -> Callable[[HttpRequest], Awaitable[Response]]:
        async def handle(http: HttpRequest) -> Response:
            return await handler(host, http)

        return handle

    async def figures(_host: EngineHost, _http: HttpRequest) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    routes = [
        Route("/", page_files.index, methods=["GET"]),
        Route("/page/{name:path}", page_files.other, methods=["GET"]),
        *(Route(path, endpoint(handler), methods=["GET"]) for path, handler in (*GET.items(), ("/metrics", figures))),
        *(Route(path, endpoint(handler), methods=["POST"]) for path, handler in POST.items()),
    ]
    starlette = Starlette(
        routes=routes,
        exception_handlers={MixqError: _mixq_error, HTTPException: _http_error, Exception: _defect},
    )
    starlette.router.redirect_slashes = False
    paths = ("/", "/metrics", *GET, *POST)
    return Observed(Guard(EndsWithClient(starlette), settings), metrics, paths, log)


async def _mixq_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, MixqError)
    return error_reply(error, http.url.path)


async def _http_error(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = http.url.path
    shown = printable(path, 80)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        refused = RequestError(405, f"{shown} is asked with {allowed}.")
    else:
        near = did_you_mean(path[:80], [known for known in (*GET, *POST) if "{" not in known])
        refused = RequestError(error.status_code, f"There is no {shown} here.{near}", code="unknown_url")
    return error_reply(refused, path)


async def _defect(http: HttpRequest, _error: Exception) -> Response:
    return error_reply(RequestError(500, "The server has failed; its own words say why."), http.url.path)
