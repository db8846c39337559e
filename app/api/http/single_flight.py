"""Runs a blocking function in a thread once for all callers that need its result while it runs."""

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from anyio import to_thread

Result = TypeVar("Result")


class SingleFlight(Generic[Result]):
    """Runs one call for a key at a time; callers with the same key wait for its result.

    So a thousand requests that arrive together take one thread. No result is cached. Used from one event
    loop. The name is that of Go's golang.org/x/sync/singleflight.
    """

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[Result]] = {}

    async def run(self, key: Hashable, function: Callable[[], Result]) -> Result:
        """Returns what `function` returns, or what the call that runs for this key does. Raises likewise."""
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(to_thread.run_sync(function))
            task.add_done_callback(lambda done: self._end(key, done))
        # A caller that is cancelled does not cancel what the others wait for.
        return await asyncio.shield(task)

    def _end(self, key: Hashable, done: asyncio.Task[Result]) -> None:
        del self._running[key]
        if not done.cancelled():
            done.exception()  # asyncio logs an error that nobody has waited for
