"""Server-sent events made of answers. Plain bytes all the way: a token a client a step goes through here."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.generate.answers import Answers

KEEP_ALIVE_SECONDS = 15.0
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class EventStream(Response):
    """The events, with comments while there is nothing to say, until done or until the client is gone."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str, None], answers: Answers) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._events = events
        self._answers = answers
        self._is_silent = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send; however it ends, the work for the answers ends with it."""
        works = [
            asyncio.create_task(work)
            for work in (self._send(send), self._keep_alive(send), _wait_until_gone(receive))
        ]
        try:
            await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for work in works:
                work.cancel()
            results = await asyncio.gather(*works, return_exceptions=True)
            await self._answers.close()
        for result in results:
            # A socket that broke while it was written to is a client that left.
            if isinstance(result, Exception) and not isinstance(result, OSError):
                raise result

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send(start)
        async with aclosing(self._events) as events:
            async for event in events:
                self._is_silent = False
                await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _keep_alive(self, send: Send) -> None:
        while True:
            await asyncio.sleep(KEEP_ALIVE_SECONDS)
            if self._is_silent:
                await send({"type": "http.response.body", "body": b": keep-alive\n\n", "more_body": True})
            self._is_silent = True


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
