"""Ends the work on a request when its client has gone: an ASGI layer behind the guard, which has read the body."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class EndsWithClient:
    """Runs an application as a task that is cancelled when the client hangs up, wherever it waits."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        whole = False

        async def noting_the_end(message: Message) -> None:
            nonlocal whole
            await send(message)
            whole = message["type"] == "http.response.body" and not message.get("more_body", False)

        work = asyncio.ensure_future(self._app(scope, _nothing_more, noting_the_end))
        gone = asyncio.ensure_future(_disconnect(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not whole:
                work.cancel()
            await asyncio.wait((work,))
            if not work.cancelled():
                work.result()  # raises what it raised
        finally:
            gone.cancel()
            work.cancel()  # the server is being stopped


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _nothing_more() -> Message:
    await asyncio.Future()
    raise AssertionError("unreachable")
