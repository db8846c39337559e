"""Threads of their own for what waits for the artifact store.

An object store that hangs would otherwise take every thread of the pool, and no other request would be
answered, not even the health check.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread

from app.core.errors.storage import StoreUnreachable
from app.core.storage.artifacts import ArtifactStore

STORE_THREADS = 40
_CHECK_SECONDS = 3.0
_CHECKED_FOR_SECONDS = 5.0

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def in_store_threads(
    endpoint: Callable[Parameters, Result],
) -> Callable[Parameters, Coroutine[Any, Any, Result]]:
    """Make an endpoint that takes `services` run in one of the store's threads."""

    @wraps(endpoint)
    async def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        services: Any = kwargs["services"]
        call = partial(endpoint, *args, **kwargs)
        return await to_thread.run_sync(call, limiter=services.store_threads)

    return run


async def read_in_store_threads(limiter: CapacityLimiter, chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    """Yield the chunks of a download, each read in one of the store's threads."""
    iterator = iter(chunks)
    while (chunk := await to_thread.run_sync(partial(next, iterator, None), limiter=limiter)) is not None:
        yield chunk


class StoreCheck:
    """Whether the artifact store answers, for the readiness check. One check runs at a time."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._threads = CapacityLimiter(1)
        self._running: asyncio.Task[str | None] | None = None
        self._found: str | None = None
        self._found_at: float | None = None

    async def find_problem(self) -> str | None:
        """Returns why the store can't be used, or None. The result of a check is used for five seconds."""
        if self._store.local_folder is not None:
            return None
        if self._found_at is not None and time.monotonic() - self._found_at < _CHECKED_FOR_SECONDS:
            return self._found
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._check())
        done, _ = await asyncio.wait({self._running}, timeout=_CHECK_SECONDS)
        return self._running.result() if done else "The artifact store does not answer."

    async def _check(self) -> str | None:
        try:
            await to_thread.run_sync(self._store.check, limiter=self._threads, abandon_on_cancel=True)
            self._found = None
        except StoreUnreachable as error:
            self._found = error.message
        self._found_at = time.monotonic()
        return self._found
