"""The web page: the files of mixq/server/page/ and its folder vendor, at / and /page/NAME.

Contract: no other file is served: a name must match `_NAME`, and its suffix must be in `KINDS`. The page loads nothing
from other sites; `POLICY` makes browsers enforce this.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from mixq.server.errors import RequestError

FOLDER = Path(__file__).parent / "page"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_NAME = re.compile(r"(vendor/)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


async def reply(http: HttpRequest) -> Response:
    """Return a file of the page; at / the index."""
    name = http.path_params.get("name", "index.html")
    path = FOLDER / name
    kind = KINDS.get(path.suffix)
    if kind is not None and _NAME.fullmatch(name):
        with contextlib.suppress(OSError):
            return Response(await asyncio.to_thread(path.read_bytes), media_type=kind, headers=HEADERS)
    raise RequestError(404, "The page does not have this file.")
