import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from sqlalchemy.orm import Session

from app.api.jobs import event_pages, event_stream
from app.api.jobs.event_stream import EventStreams
from app.core.errors.jobs import JobNotFound
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


def render(event: Event) -> str:
    return f"{event.seq},"


def seqs(content: bytes) -> list[int]:
    return [int(seq) for seq in content.decode().split(",") if seq]


async def poller_has_read(streams: EventStreams, job_id: str) -> None:
    with streams._topics.subscribed(job_id) as topic:
        while topic.latest is None:
            await asyncio.sleep(0.001)


async def collect(stream: AsyncIterator[bytes]) -> list[int]:
    return [seq async for content in stream for seq in seqs(content)]


def test_many_followers_share_one_poller_that_stops_with_the_last(database: Database, job: str) -> None:
    async def scenario(streams: EventStreams) -> None:
        followers = [asyncio.create_task(collect(streams.follow(job, render))) for _ in range(20)]
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


def test_a_slow_follower_misses_nothing_and_pages_that_are_not_in_memory_are_read_again(
    database: Database, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_pages, "PAGE_EVENTS", 5)
    monkeypatch.setattr(event_pages, "_MAX_BYTES", 30)

    async def scenario(streams: EventStreams) -> None:
        slow = streams.follow(job, render)
        found = seqs(await anext(slow))
        quick = asyncio.create_task(collect(streams.follow(job, render)))
        for _ in range(10):
            log(database, job, 7)
        cancel(database, job)
        assert await quick == list(range(1, 73))
        assert found + await collect(slow) == list(range(1, 73))
        assert streams._pages._bytes <= 30

    run(database, scenario)


def test_events_are_read_and_rendered_once_for_all_followers(
    database: Database, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log(database, job, 500)
    cancel(database, job)
    rendered: list[int] = []
    reads: list[int] = []
    read = events.read

    def count(event: Event) -> str:
        rendered.append(event.seq)
        return render(event)

    def counted_read(session: Session, job_id: str, *, after: int, limit: int) -> list[Event]:
        reads.append(after)
        return read(session, job_id, after=after, limit=limit)

    monkeypatch.setattr(events, "read", counted_read)

    async def scenario(streams: EventStreams) -> None:
        found = await asyncio.gather(*(collect(streams.follow(job, count, after=n)) for n in range(100)))
        assert found == [list(range(n + 1, 503)) for n in range(100)]

    run(database, scenario)
    assert sorted(rendered) == list(range(1, 503))
    assert sorted(reads) == list(range(0, 502, event_pages.PAGE_EVENTS))


def test_followers_that_join_together_send_a_few_pages_in_each_iteration_of_the_loop(
    database: Database, job: str
) -> None:
    log(database, job, 3 * event_pages.PAGE_EVENTS)
    cancel(database, job)

    async def scenario(streams: EventStreams) -> None:
        iteration = 0
        sent: Counter[int] = Counter()

        async def follow() -> None:
            async for _ in streams.follow(job, render):
                sent[iteration] += 1

        following = asyncio.gather(*(follow() for _ in range(100)))
        while not following.done():
            iteration += 1
            await asyncio.sleep(0)
        assert sum(sent.values()) == 400
        assert max(sent.values()) <= 2 * event_stream._PAGES_PER_ITERATION

    run(database, scenario)


def test_a_job_that_does_not_exist_is_not_found(database: Database) -> None:
    async def scenario(streams: EventStreams) -> None:
        with pytest.raises(JobNotFound):
            await streams.find_end("job_x")
        assert await collect(streams.follow("job_x", render)) == []

    run(database, scenario)


def test_a_follower_of_an_ended_job_gets_all_pages_and_ends(
    database: Database, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_pages, "PAGE_EVENTS", 5)
    log(database, job, 23)
    cancel(database, job)

    async def scenario(streams: EventStreams) -> None:
        assert await collect(streams.follow(job, render, after=3)) == list(range(4, 26))

    run(database, scenario)


def test_a_stream_goes_on_through_a_retry(database: Database, job: str) -> None:
    async def scenario(streams: EventStreams) -> None:
        with database.transaction() as session:
            lease = queue.claim(session, "worker-1", lease_seconds=30)
            assert lease
            queue.fail(session, lease, WorkFailure("x", "Failed."))
            job_records.retry(session, job)
        stream = streams.follow(job, render)
        assert seqs(await anext(stream)) == [1, 2, 3, 4]
        cancel(database, job)
        assert await collect(stream) == [5]

    run(database, scenario)


def test_a_cursor_beyond_the_end_follows_what_comes(database: Database, job: str) -> None:
    async def scenario(streams: EventStreams) -> None:
        following = asyncio.create_task(collect(streams.follow(job, render, after=1000)))
        await poller_has_read(streams, job)
        cancel(database, job)
        assert await following == [2]

    run(database, scenario)


def test_a_follower_that_leaves_stops_the_poller(database: Database, job: str) -> None:
    async def scenario(streams: EventStreams) -> None:
        stream = streams.follow(job, render)
        await anext(stream)
        assert streams.followed_jobs == [job]
        await stream.aclose()  # type: ignore[attr-defined]
        assert streams.followed_jobs == []

    run(database, scenario)


def test_closing_ends_every_stream(database: Database, job: str) -> None:
    async def scenario(streams: EventStreams) -> None:
        following = asyncio.create_task(collect(streams.follow(job, render)))
        await poller_has_read(streams, job)
        streams.close()
        assert await following == [1]

    run(database, scenario)
