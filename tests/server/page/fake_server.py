"""A server with the page and the interface it uses, whose model says what a test wants.

`FakeServer` runs Starlette and uvicorn on a thread. A test sets what the next replies are (`say`), and reads what was
asked (`asked`). A held reply waits after its pieces until the test lets it go on: no test sleeps.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

PAGE = Path(__file__).parents[3] / "mixq" / "server" / "page"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
LAYERS, EXPERTS = 4, 8
STATS = {
    "prompt_tokens": 12,
    "cached_tokens": 0,
    "prompt_seconds": 0.1,
    "decode_tokens": 40,
    "decode_seconds": 2.0,
    "time_to_first_token": 0.25,
    "context_used": 512,
    "context_size": 2048,
    "prompt_tokens_per_second": 120.0,
    "decode_tokens_per_second": 20.0,
    "experts": {"hit_rate": 0.75},
}


@dataclass
class Reply:
    """What the model says next.

    Attributes:
        pieces: of text, one event each.
        hold: wait for `FakeServer.go` after the pieces.
        cut: the connection ends without an end.
        error: an error event after the pieces.
        refuse: (status, error, headers) instead of a stream.
        progress: prompt progress before the pieces.
        reason: why it ends.
    """

    pieces: list[str] = field(default_factory=list)
    hold: bool = False
    cut: bool = False
    error: dict[str, Any] | None = None
    refuse: tuple[int, dict[str, Any], dict[str, str]] | None = None
    progress: tuple[int, int] | None = None
    reason: str = "stop"


class FakeServer:
    """The server; `url` is where it listens."""

    def __init__(self) -> None:
        self.reset()
        routes = [
            Route("/", self._index),
            Route("/page/{name:path}", self._file),
            Route("/mixq/status", self._status),
            Route("/mixq/reload", self._reload, methods=["POST"]),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._completions, methods=["POST"]),
        ]
        config = uvicorn.Config(Starlette(routes=routes), host="127.0.0.1", port=0, log_level="warning", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def reset(self) -> None:
        """Forget everything of the test before."""
        self.replies: list[Reply] = []
        self.asked: list[dict[str, Any]] = []
        self.reloads: list[Any] = []
        self.hung_up = threading.Event()
        self.key: str | None = None
        self.gone = False
        self.go = threading.Event()
        self.status: dict[str, Any] = {
            "model": "fake-8x7b",
            "path": "/models/fake-8x7b",
            "loading": False,
            "ready": True,
            "notes": [],
            "layers": LAYERS,
            "experts": EXPERTS,
            "experts_per_token": 2,
            "context": 2048,
            "is_chat": True,
            "template": "mistral-v1",
            "device": "cuda",
            "ram_planned": 27_000_000_000,
            "vram": 8_000_000_000,
            "vram_total": 24_000_000_000,
            "vram_used": 7_900_000_000,
            "ram_used": 26_000_000_000,
            "queued": 0,
            "running": 0,
            "decode_tokens_per_second": None,
            "expert_hit_rate": 0.7,
            "version": "0.1.0",
        }

    def start(self) -> FakeServer:
        """Listen."""
        self._thread.start()
        ready = threading.Event()
        while not self._server.started and self._thread.is_alive():
            ready.wait(0.01)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"
        return self

    def stop(self) -> None:
        """End."""
        self.go.set()
        self._server.should_exit = True
        self._thread.join(10)

    def say(self, *pieces: str, **more: Any) -> None:
        """Set one more reply."""
        self.replies.append(Reply(list(pieces), **more))

    async def _index(self, request: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": CSP})

    async def _file(self, request: Request) -> Response:
        path = PAGE / request.path_params["name"]
        return FileResponse(path) if path.is_file() else Response(status_code=404)

    def _refused(self, request: Request) -> Response | None:
        if self.gone:
            return Response(status_code=502)
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "API key required", "code": "invalid_api_key"}}, 401)
        return None

    async def _status(self, request: Request) -> Response:
        return self._refused(request) or JSONResponse(self.status)

    async def _reload(self, request: Request) -> Response:
        self.reloads.append((await request.json())["vram"])
        self.status["loading"] = True
        return JSONResponse({"status": "loading"}, 202)

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, lambda text: {"delta": {"content": text}})

    async def _completions(self, request: Request) -> Response:
        return await self._answer(request, lambda text: {"text": text})

    async def _answer(self, request: Request, choice: Any) -> Response:
        refused = self._refused(request)
        if refused is not None:
            return refused
        body = await request.json()
        self.asked.append(body)
        reply = self.replies.pop(0)
        if reply.refuse is not None:
            status, error, headers = reply.refuse
            return JSONResponse({"error": error}, status, headers)
        return StreamingResponse(
            self._events(reply, choice, bool(body["mixq"]["experts"])), media_type="text/event-stream"
        )

    async def _events(self, reply: Reply, choice: Any, experts: bool) -> AsyncIterator[bytes]:
        def chunk(text: str, reason: str | None = None, **mixq: Any) -> bytes:
            one = {"index": 0, **choice(text), "finish_reason": reason}
            return _event({"choices": [one], **({"mixq": mixq} if mixq else {})})

        try:
            if reply.progress is not None:
                yield chunk("", prompt_progress={"done": reply.progress[0], "total": reply.progress[1]})
            for i, piece in enumerate(reply.pieces):
                chosen = [[[(i + layer) % EXPERTS, (i + 3 * layer + 1) % EXPERTS] for layer in range(LAYERS)]]
                yield chunk(piece, **({"experts": chosen} if experts else {}))
            if reply.hold:
                await self._wait()
            if reply.cut:
                return
            if reply.error is not None:
                yield _event({"error": reply.error})
                return
            yield chunk("", reply.reason, stats=STATS)
            yield b"data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.hung_up.set()
            raise

    async def _wait(self) -> None:
        while not self.go.is_set():
            await asyncio.sleep(0.01)


def _event(document: Any) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def pieces(text: str, size: int = 7) -> Iterable[str]:
    """Cut a text as tokens would."""
    return (text[i : i + size] for i in range(0, len(text), size))
