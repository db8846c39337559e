"""Answers HEAD wherever GET is answered: with the headers of GET and without a body."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadMiddleware:
    """Passes HEAD on as GET, and ends the response after its headers: a stream is not followed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self._app(scope, receive, send)
        has_ended = asyncio.Event()
        as_get = {**scope, "method": "GET"}

        async def send_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["route"] = as_get.get("route")
                await send(message)
                await send({"type": "http.response.body", "body": b""})
                has_ended.set()

        async def answer() -> None:
            await self._app(as_get, receive, send_headers)

        answering = asyncio.create_task(answer())
        ending = asyncio.create_task(has_ended.wait())
        try:
            await asyncio.wait({answering, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not has_ended.is_set():
                answering.result()
        finally:
            for task in (answering, ending):
                task.cancel()
            await asyncio.gather(answering, ending, return_exceptions=True)
