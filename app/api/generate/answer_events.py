"""A response of server-sent events. Writes bytes directly: every token of every stream passes through it."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.generate.answers import Answers

KEEP_ALIVE_SECONDS = 15.0
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class EventStream(Response):
    """The events, with a comment every 15 silent seconds, until they end or the client disconnects."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[str, None], answers: Answers, *, headers: Mapping[str, str]
    ) -> None:
        super().__init__(headers={**_HEADERS, **headers})
        del self.headers["content-length"]
        self._events = events
        self._answers = answers
        self._is_silent = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events. However that ends, the requests to the engine are closed."""
        works = [
            asyncio.create_task(work)
            for work in (self._send(send), self._keep_alive(send), _wait_for_disconnect(receive))
        ]
        try:
            await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for work in works:
                work.cancel()
            results = await asyncio.gather(*works, return_exceptions=True)
            await self._answers.close()
        for result in results:
            # An OSError while writing means that the client has disconnected.
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


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
