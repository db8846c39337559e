"""Looks at the database in threads, each shared by the requests that need the same while it runs."""

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from anyio import to_thread

Result = TypeVar("Result")


class SharedLooks(Generic[Result]):
    """Runs one look for a key at a time: a thousand requests that arrive together take one thread, not all.

    Used from one event loop.
    """

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[Result]] = {}

    async def run(self, key: Hashable, look: Callable[[], Result]) -> Result:
        """Returns what `look` returns, or what that of another caller with this key does. Raises likewise."""
        looking = self._running.get(key)
        if looking is None:
            looking = self._running[key] = asyncio.create_task(to_thread.run_sync(look))
            looking.add_done_callback(lambda done: self._end(key, done))
        # A caller that is cancelled does not cancel what the others wait for.
        return await asyncio.shield(looking)

    def _end(self, key: Hashable, done: asyncio.Task[Result]) -> None:
        del self._running[key]
        if not done.cancelled():
            done.exception()  # asyncio logs an error that nobody has waited for
