"""Finds what requests name: for all that wait at the time, with one look at the database.

A look takes milliseconds, most of them for what is the same for all requests: the workers, their engines, the
names in the models folders. Nothing is remembered: each look begins after the requests that it is for.
"""

import asyncio
from collections.abc import Callable

from anyio import to_thread

from app.api.http.pacing import Turns
from app.core.adapters.targets import Target, Targets
from app.core.errors import TunesmithError
from app.core.settings import Settings
from app.core.storage.database import Database

Find = Callable[[Targets], Target]

# As many requests go on with their target in an iteration of the event loop.
_REQUESTS_PER_ITERATION = 8
# Of so many requests each may name something else, and their look still holds no thread for long.
_MAX_REQUESTS = 256


class TargetLookups:
    """Used from one event loop."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._waiting: list[tuple[Find, asyncio.Future[Target]]] = []
        self._looking: asyncio.Task[None] | None = None
        self._turns = Turns(_REQUESTS_PER_ITERATION)

    async def find(self, find: Find) -> Target:
        """Returns what `find` returns, and raises what it raises; it is called in a thread."""
        found: asyncio.Future[Target] = asyncio.get_running_loop().create_future()
        self._waiting.append((find, found))
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_for_all())
        target = await found
        await self._turns.take()
        return target

    async def _look_for_all(self) -> None:
        try:
            while self._waiting:
                waiting = self._waiting[:_MAX_REQUESTS]
                del self._waiting[:_MAX_REQUESTS]
                results = await to_thread.run_sync(self._look, [find for find, _ in waiting])
                for (_, found), result in zip(waiting, results, strict=True):
                    _end(found, result)
        finally:
            self._looking = None

    def _look(self, finds: list[Find]) -> list[Target | Exception]:
        """What each of them finds, or raises, in one state of the database."""
        try:
            with self._database.snapshot() as session:
                targets = Targets(session, self._settings)
                return [_try(find, targets) for find in finds]
        except Exception as error:  # the database's: each request gets it
            return [error] * len(finds)


def _try(find: Find, targets: Targets) -> Target | TunesmithError:
    try:
        return find(targets)
    except TunesmithError as error:
        return error


def _end(found: asyncio.Future[Target], result: Target | Exception) -> None:
    if found.done():  # its client has disconnected
        return
    if isinstance(result, Exception):
        found.set_exception(result)
    else:
        found.set_result(result)
