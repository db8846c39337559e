"""Pages of a job's events as text, rendered once for everybody who reads them. Knows no followers.

A recorded event never changes, so a page is only ever extended. The pages used last stay in memory, up to a
number of bytes; others are read from the database again.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from anyio import to_thread

from app.core.jobs import events
from app.core.jobs.events import Event
from app.core.storage.database import Database

PAGE_EVENTS = 64
_MAX_BYTES = 64 << 20

Render = Callable[[Event], str]
_Key = tuple[str, Render, int]


@dataclass(frozen=True)
class RenderedEvents:
    """Events that follow each other, as one text: `ends[n]` is where the event n ends in it."""

    content: bytes = b""
    ends: tuple[int, ...] = ()

    def after(self, count: int) -> bytes:
        """The text without its first `count` events."""
        return self.content[self.ends[count - 1] :] if count else self.content


class EventPages:
    """Pages of `PAGE_EVENTS` events, by job and format. Used from one event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pages: OrderedDict[_Key, RenderedEvents] = OrderedDict()
        self._bytes = 0
        self._loads: dict[_Key, asyncio.Task[RenderedEvents]] = {}

    async def read(self, job_id: str, render: Render, after: int) -> tuple[bytes, int]:
        """Events after a seq as text, at most a page, and the seq of the last of them.

        Nothing, and `after` itself, where there are none yet.
        """
        number, skipped = divmod(after, PAGE_EVENTS)
        key = (job_id, render, number)
        page = self._pages.get(key)
        if page is None or len(page.ends) <= skipped:
            page = await self._load(key)
        else:
            self._pages.move_to_end(key)
        if len(page.ends) <= skipped:
            return b"", after
        return page.after(skipped), number * PAGE_EVENTS + len(page.ends)

    async def _load(self, key: _Key) -> RenderedEvents:
        """The page with what was recorded since; all who wait for it share one read."""
        task = self._loads.get(key)
        if task is None:
            task = self._loads[key] = asyncio.create_task(self._extend(key))
            task.add_done_callback(lambda _: self._loads.pop(key))
        return await asyncio.shield(task)

    async def _extend(self, key: _Key) -> RenderedEvents:
        page = await to_thread.run_sync(self._read_more, key, self._pages.get(key, RenderedEvents()))
        self._bytes += len(page.content) - len(self._pages.pop(key, RenderedEvents()).content)
        self._pages[key] = page
        while self._bytes > _MAX_BYTES and len(self._pages) > 1:
            self._bytes -= len(self._pages.popitem(last=False)[1].content)
        return page

    def _read_more(self, key: _Key, page: RenderedEvents) -> RenderedEvents:
        job_id, render, number = key
        count = len(page.ends)
        with self._database.snapshot() as session:
            found = events.read(
                session, job_id, after=number * PAGE_EVENTS + count, limit=PAGE_EVENTS - count
            )
        pieces, ends, end = [page.content], list(page.ends), len(page.content)
        for event in found:
            pieces.append(render(event).encode(errors="replace"))
            end += len(pieces[-1])
            ends.append(end)
        return RenderedEvents(b"".join(pieces), tuple(ends))
