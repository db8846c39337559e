"""Starts requests a few at a time: a thousand that arrive together do not delay others by all their work."""

from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.http.turns import Turns

# The part of a request before its first wait takes up to a millisecond.
_REQUESTS_PER_ITERATION = 8
# It must show that the process is alive even then, and costs next to nothing.
_AT_ONCE = {"/health"}


class PacingMiddleware:
    """Lets each request wait for its turn in the event loop; where few arrive, none waits."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._turns = Turns(_REQUESTS_PER_ITERATION)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _AT_ONCE:
            await self._turns.take()
        await self._app(scope, receive, send)
