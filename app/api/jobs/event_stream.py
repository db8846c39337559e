"""Follow the events of a job: one poller a job in this process feeds any number of followers.

A follower first reads the events in the database, then those that the poller finds. Its queue is bounded:
when it overflows it is emptied, and the follower reads the events after its cursor from the database. So
there is no gap, no duplicate, and a slow client takes no memory. Knows no HTTP.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from anyio import to_thread
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from app.core.jobs import events
from app.core.jobs.events import Event
from app.core.specs.states import JobState
from app.core.storage import tables
from app.core.storage.database import Database

POLL_SECONDS = 0.25
PAGE_EVENTS = 256
QUEUE_EVENTS = 512

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """One consistent read of a job: events after a cursor, its last seq, and whether the job has ended."""

    events: list[Event]
    last_seq: int
    has_ended: bool


class Follower:
    """One reader's queue."""

    def __init__(self) -> None:
        self.queue: list[Event] = []
        self.woken = asyncio.Event()

    def offer(self, entries: list[Event]) -> None:
        """Add events; a queue that would overflow is emptied instead, since the database has them."""
        if len(self.queue) + len(entries) > QUEUE_EVENTS:
            self.queue.clear()
        else:
            self.queue.extend(entries)
        self.woken.set()

    def take(self, cursor: int) -> list[Event]:
        """Empty the queue. Returns those of its events that follow the cursor without a gap."""
        entries, self.queue = self.queue, []
        fresh = [event for event in entries if event.seq > cursor]
        return [event for place, event in enumerate(fresh, start=1) if event.seq == cursor + place]


class Topic:
    """A job that is being followed: its followers, and the poller's latest snapshot of it."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.followers: set[Follower] = set()
        self.latest: Snapshot | None = None
        self.poller: asyncio.Task[None] | None = None


class EventStreams:
    """All followed jobs of this process. Used from one event loop."""

    def __init__(self, database: Database, *, poll_seconds: float = POLL_SECONDS) -> None:
        self._database = database
        self._poll_seconds = poll_seconds
        self._topics: dict[str, Topic] = {}
        self._is_closed = False

    @property
    def followed_jobs(self) -> list[str]:
        """Ids of the jobs that have a poller now."""
        return list(self._topics)

    def close(self) -> None:
        """End every stream after the events it has sent, for a shutdown. Call from the event loop."""
        self._is_closed = True
        for topic in self._topics.values():
            for follower in topic.followers:
                follower.woken.set()

    async def follow(self, job_id: str, *, after: int = 0) -> AsyncIterator[Event]:
        """Events after a seq, in order, until the job has ended and all of them were yielded."""
        with self._subscribed(job_id) as (topic, follower):
            snapshot = await self._take_snapshot(job_id, after)
            cursor = min(after, snapshot.last_seq)
            pending = snapshot.events
            while True:
                for event in pending:
                    cursor = event.seq
                    yield event
                latest = topic.latest or snapshot
                if self._is_closed or _is_over(snapshot, cursor) or _is_over(latest, cursor):
                    return
                if pending := follower.take(cursor):
                    continue
                if max(snapshot.last_seq, latest.last_seq) > cursor:
                    snapshot = await self._take_snapshot(job_id, cursor)
                    pending = snapshot.events
                else:
                    await follower.woken.wait()
                    follower.woken.clear()

    @contextlib.contextmanager
    def _subscribed(self, job_id: str) -> Iterator[tuple[Topic, Follower]]:
        topic = self._topics.get(job_id)
        if topic is None:
            topic = self._topics[job_id] = Topic(job_id)
            topic.poller = asyncio.create_task(self._poll(topic))
        follower = Follower()
        topic.followers.add(follower)
        try:
            yield topic, follower
        finally:
            topic.followers.discard(follower)
            if not topic.followers and topic.poller:
                topic.poller.cancel()
                del self._topics[job_id]

    async def _poll(self, topic: Topic) -> None:
        while True:
            after = topic.latest.last_seq if topic.latest else None
            try:
                latest = await self._take_snapshot(topic.job_id, after)
            except SQLAlchemyError:
                _log.warning("The events of job %s can't be read now", topic.job_id, exc_info=True)
            else:
                is_news = topic.latest is None or latest != topic.latest
                topic.latest = latest
                for follower in topic.followers if is_news else ():
                    follower.offer(latest.events)
            await asyncio.sleep(self._poll_seconds)

    async def _take_snapshot(self, job_id: str, after: int | None) -> Snapshot:
        return await to_thread.run_sync(self._read, job_id, after)

    def _read(self, job_id: str, after: int | None) -> Snapshot:
        of_job = select(tables.JobRow.last_event_seq, tables.JobRow.state).where(tables.JobRow.id == job_id)
        with self._database.snapshot() as session:
            last_seq, state = session.execute(of_job).one()
            found = events.read(
                session, job_id, after=last_seq if after is None else after, limit=PAGE_EVENTS
            )
        return Snapshot(found, last_seq, JobState(state).has_ended)


def _is_over(snapshot: Snapshot, cursor: int) -> bool:
    # Equal, not "at least": a cursor beyond the snapshot means that the snapshot is old, and the job may have
    # been retried since.
    return snapshot.has_ended and snapshot.last_seq == cursor
