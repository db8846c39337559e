import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from app.api.jobs import event_stream
from app.api.jobs.event_stream import EventStreams
from app.core.jobs import events, queue, records as job_records
from app.core.jobs.events import Event, Log
from app.core.storage.database import Database
from app.core.work.failures import WorkFailure
from tests.factories import make_job


@pytest.fixture
def job(database: Database) -> str:
    with database.transaction() as session:
        return make_job(session).id


def log(database: Database, job_id: str, count: int) -> None:
    with database.transaction() as session:
        events.append(session, job_id, [Log(message=str(number)) for number in range(count)])


def cancel(database: Database, job_id: str) -> None:
    with database.transaction() as session:
        job_records.request_cancel(session, job_id)


def run(database: Database, scenario: Callable[[EventStreams], Awaitable[None]]) -> None:
    async def with_deadline() -> None:
        async with asyncio.timeout(20):
            await scenario(EventStreams(database, poll_seconds=0.01))

    asyncio.run(with_deadline())


async def collect(stream: AsyncIterator[Event]) -> list[int]:
    return [event.seq async for event in stream]


def test_many_followers_share_one_poller_that_stops_with_the_last(database: Database, job: str) -> None:
    async def scenario(streams: EventStreams) -> None:
        followers = [asyncio.create_task(collect(streams.follow(job))) for _ in range(20)]
        while not streams.followed_jobs:
            await asyncio.sleep(0)
        pollers = [task for task in asyncio.all_tasks() if "_poll" in repr(task.get_coro())]
        assert len(pollers) == 1
        log(database, job, 10)
        cancel(database, job)
        assert await asyncio.gather(*followers) == [list(range(1, 13))] * 20
        assert streams.followed_jobs == []
        await asyncio.wait(pollers)

    run(database, scenario)


def test_a_slow_follower_misses_nothing_and_its_queue_stays_small(
    database: Database, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "QUEUE_EVENTS", 8)
    monkeypatch.setattr(event_stream, "PAGE_EVENTS", 5)

    async def scenario(streams: EventStreams) -> None:
        slow = streams.follow(job)
        found = [(await anext(slow)).seq]
        (follower,) = streams._topics[job].followers
        for _ in range(10):
            log(database, job, 7)
            follower.woken.clear()
            await follower.woken.wait()  # the poller offered them, and the slow one does not take them
            assert len(follower.queue) <= 8
        cancel(database, job)
        assert found + await collect(slow) == list(range(1, 73))

    run(database, scenario)


def test_a_follower_of_an_ended_job_gets_all_pages_and_ends(
    database: Database, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "PAGE_EVENTS", 5)
    log(database, job, 23)
    cancel(database, job)

    async def scenario(streams: EventStreams) -> None:
        assert await collect(streams.follow(job, after=3)) == list(range(4, 26))

    run(database, scenario)


def test_a_stream_goes_on_through_a_retry(database: Database, job: str) -> None:
    async def scenario(streams: EventStreams) -> None:
        with database.transaction() as session:
            lease = queue.claim(session, "worker-1", lease_seconds=30)
            assert lease
            queue.fail(session, lease, WorkFailure("x", "Failed."))
            job_records.retry(session, job)
        stream = streams.follow(job)
        assert [(await anext(stream)).seq for _ in range(4)] == [1, 2, 3, 4]
        cancel(database, job)
        assert await collect(stream) == [5]

    run(database, scenario)


def test_a_cursor_beyond_the_end_follows_what_comes(database: Database, job: str) -> None:
    async def scenario(streams: EventStreams) -> None:
        following = asyncio.create_task(collect(streams.follow(job, after=1000)))
        while not streams._topics or streams._topics[job].latest is None:
            await asyncio.sleep(0.001)
        cancel(database, job)
        assert await following == [2]

    run(database, scenario)


def test_a_follower_that_leaves_stops_the_poller(database: Database, job: str) -> None:
    async def scenario(streams: EventStreams) -> None:
        stream = streams.follow(job)
        await anext(stream)
        assert streams.followed_jobs == [job]
        await stream.aclose()  # type: ignore[attr-defined]
        assert streams.followed_jobs == []

    run(database, scenario)


def test_closing_ends_every_stream(database: Database, job: str) -> None:
    async def scenario(streams: EventStreams) -> None:
        following = asyncio.create_task(collect(streams.follow(job)))
        while not streams._topics or streams._topics[job].latest is None:
            await asyncio.sleep(0.001)
        streams.close()
        assert await following == [1]

    run(database, scenario)
