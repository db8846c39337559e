"""Finds the models that requests name: for all requests that wait at the time, in one database snapshot.

That takes milliseconds, most of them for what is the same for all requests: the workers, their engines, the
names in the models folders. Adapters and aliases are read together. No result is cached: each snapshot begins
after the requests that it serves.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from anyio import to_thread

from app.api.http.pacing import Turns
from app.core.adapters.targets import Target, Targets
from app.core.errors import TunesmithError
from app.core.settings import Settings
from app.core.storage.database import Database

Find = Callable[[Targets], Target]

# As many requests go on with their target in an iteration of the event loop.
_REQUESTS_PER_ITERATION = 8
# Of so many requests each may name another model, and to find them still holds no thread for long.
_MAX_REQUESTS = 256


@dataclass(frozen=True)
class _Lookup:
    """A request that waits for its target, and the name that it will look for, where it has one."""

    find: Find
    name: str | None
    found: asyncio.Future[Target]


class TargetLookups:
    """Finds the targets of requests, many in one snapshot. Used from one event loop."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings
        self._database = database
        self._waiting: list[_Lookup] = []
        self._finding: asyncio.Task[None] | None = None
        self._turns = Turns(_REQUESTS_PER_ITERATION)

    async def find(self, find: Find, name: str | None = None) -> Target:
        """Returns what `find` returns, and raises what it raises; it is called in a thread.

        `name`: what it will look for, which is read together with the names of the others.
        """
        found: asyncio.Future[Target] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Lookup(find, name, found))
        if self._finding is None:
            self._finding = asyncio.create_task(self._find_for_all())
        target = await found
        await self._turns.take()
        return target

    async def _find_for_all(self) -> None:
        try:
            while self._waiting:
                waiting = self._waiting[:_MAX_REQUESTS]
                del self._waiting[:_MAX_REQUESTS]
                results = await to_thread.run_sync(self._find_in_one_snapshot, waiting)
                for lookup, result in zip(waiting, results, strict=True):
                    _end(lookup.found, result)
        finally:
            self._finding = None

    def _find_in_one_snapshot(self, lookups: list[_Lookup]) -> list[Target | Exception]:
        """Returns what each function finds, or raises, in one state of the database."""
        names = {lookup.name for lookup in lookups if lookup.name is not None}
        try:
            with self._database.snapshot() as session:
                targets = Targets(session, self._settings, names)
                return [_try(lookup.find, targets) for lookup in lookups]
        except Exception as error:  # the database's: each request gets it
            return [error] * len(lookups)


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
