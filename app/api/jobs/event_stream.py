"""Follow the events of a job: any number of followers share one poller, one read and one rendering.

A follower is no more than a cursor: it reads pages of events (`event_pages.py`) until it is at the end that
the poller has seen last, and then waits for the poller. So there is no gap, no duplicate, and a slow client
takes no memory. Followers take turns: a thousand that join at once do not stop the event loop.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from anyio import to_thread
from sqlalchemy import select

from app.api.http.pacing import Turns
from app.api.jobs.event_pages import EventPages, Render
from app.api.topics import Topics
from app.core.errors.jobs import JobNotFound
from app.core.specs.states import JobState
from app.core.storage import tables
from app.core.storage.database import Database

POLL_SECONDS = 0.25
# A page takes about 0.1 ms to send.
_PAGES_PER_ITERATION = 4


@dataclass(frozen=True)
class JobEnd:
    """How far a job is: the seq of its last event, and whether the job has ended."""

    last_seq: int
    has_ended: bool


class EventStreams:
    """All followed jobs of this process. Used from one event loop."""

    def __init__(self, database: Database, *, poll_seconds: float = POLL_SECONDS) -> None:
        self._database = database
        self._pages = EventPages(database)
        self._turns = Turns(_PAGES_PER_ITERATION)
        self._topics: Topics[JobEnd] = Topics(self._read, noun="job", poll_seconds=poll_seconds)
        # Reads that have begun, and reads that begin next, by job.
        self._running: dict[str, asyncio.Task[JobEnd | None]] = {}
        self._waiting: dict[str, asyncio.Task[JobEnd | None]] = {}

    @property
    def followed_jobs(self) -> list[str]:
        """Ids of the jobs that have a poller now."""
        return self._topics.keys

    def close(self) -> None:
        """End every stream after the events it has sent, for a shutdown. Call from the event loop."""
        self._topics.close()

    async def find_end(self, job_id: str) -> JobEnd:
        """How far the job is now. Raises JobNotFound."""
        found = await self._read(job_id)
        if found is None:
            raise JobNotFound(f"There is no job {job_id!r}.", hint="GET /jobs lists them.")
        return found

    async def follow(self, job_id: str, render: Render, *, after: int = 0) -> AsyncIterator[bytes]:
        """Events after a seq, rendered, several at a time, until the job has ended and all were yielded."""
        with self._topics.subscribed(job_id) as topic:
            end = await self._read(job_id)
            cursor = min(after, end.last_seq) if end else after
            while end and not self._topics.is_closed and not topic.is_gone and not _is_over(end, cursor):
                if end.last_seq > cursor:
                    content, cursor = await self._pages.read(job_id, render, cursor)
                    await self._turns.take()
                    if content:
                        yield content
                elif topic.latest is None or topic.latest.last_seq <= end.last_seq:
                    await topic.wait()
                # The poller's read may be older than this follower's own.
                if topic.latest and topic.latest.last_seq > end.last_seq:
                    end = topic.latest

    async def _read(self, job_id: str) -> JobEnd | None:
        """A read that begins after this call, shared by all who call before it begins."""
        task = self._waiting.get(job_id)
        if task is None:
            task = self._waiting[job_id] = asyncio.create_task(self._read_next(job_id))
        found = await asyncio.shield(task)
        await self._turns.take()  # all who shared the read go on now
        return found

    async def _read_next(self, job_id: str) -> JobEnd | None:
        if earlier := self._running.get(job_id):
            await asyncio.wait([earlier])
        self._running[job_id] = self._waiting.pop(job_id)
        try:
            return await to_thread.run_sync(self._read_end, job_id)
        finally:
            del self._running[job_id]

    def _read_end(self, job_id: str) -> JobEnd | None:
        of_job = select(tables.JobRow.last_event_seq, tables.JobRow.state).where(tables.JobRow.id == job_id)
        with self._database.snapshot() as session:
            found = session.execute(of_job).one_or_none()
        return JobEnd(found[0], JobState(found[1]).has_ended) if found else None


def _is_over(end: JobEnd, cursor: int) -> bool:
    # Equal, not "at least": a cursor beyond the end means that the end is old, and the job may have been
    # retried since.
    return end.has_ended and end.last_seq == cursor
