"""Starts requests a few at a time: a thousand that arrive together do not delay others by all their work."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from anyio import to_thread
from starlette.types import ASGIApp, Receive, Scope, Send

# The part of a request before its first wait takes up to a millisecond.
_REQUESTS_PER_ITERATION = 8
# So many parts of a request's body (messages, token ids) are looked through in less than a millisecond.
_FEW_PARTS = 200
# It must show that the process is alive even then, and costs next to nothing.
_AT_ONCE = {"/health"}

Result = TypeVar("Result")


class PacingMiddleware:
    """Lets each request wait for its turn in the event loop; where few arrive, none waits."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._turns = Turns(_REQUESTS_PER_ITERATION)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _AT_ONCE:
            await self._turns.take()
        await self._app(scope, receive, send)


class Turns:
    """At most `per_iteration` callers of `take` go on in an iteration of the event loop, in order.

    asyncio runs everything that is ready in one iteration, and looks at its sockets between iterations alone:
    a thousand tasks that become ready together would delay everybody else by all of their work. Used from
    one event loop.
    """

    def __init__(self, per_iteration: int) -> None:
        self._per_iteration = per_iteration
        self._left = per_iteration
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_scheduled = False

    async def take(self) -> None:
        """Go on at once where the turns of this iteration are not used up, else in a later one."""
        loop = asyncio.get_running_loop()
        self._schedule(loop)
        if self._left > 0 and not self._waiting:
            self._left -= 1
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            loop.call_soon(self._begin_iteration, loop)

    def _begin_iteration(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_scheduled = False
        self._left = self._per_iteration
        while self._waiting and self._left > 0:
            turn = self._waiting.popleft()
            if not turn.done():  # a caller that was cancelled
                turn.set_result(None)
                self._left -= 1
        if self._left < self._per_iteration:
            self._schedule(loop)


async def run_by_length(work: Callable[[], Result], parts: int) -> Result:
    """Returns what `work` returns. Work on many parts runs in a thread, so that it delays no other request.

    Work on few does not: the way to a thread and back takes longer.
    """
    return work() if parts <= _FEW_PARTS else await to_thread.run_sync(work)
