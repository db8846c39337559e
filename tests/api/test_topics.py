import asyncio
from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy.exc import OperationalError, ProgrammingError

from app.api.topics import Topic, Topics

Read = Callable[[str], Awaitable[int | None]]


def scripted(*found: int | Exception | None) -> Read:
    """What reads of a topic find, one after another; the last one again and again."""
    left = list(found)

    async def read(key: str) -> int | None:
        one = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(one, Exception):
            raise one
        return one

    return read


def follow(read: Read, until: Callable[[Topic[int]], bool]) -> Topic[int]:
    """Follow a topic until a change after which this holds. Returns the topic."""

    async def scenario() -> Topic[int]:
        topics = Topics(read, noun="evaluation", poll_seconds=0.001)
        async with asyncio.timeout(20):
            with topics.subscribed("ev_1") as topic, topics.subscribed("ev_1") as same:
                assert same is topic
                while not until(topic):
                    await topic.wait()
        assert topics.keys == []
        return topic

    return asyncio.run(scenario())


def test_followers_wake_when_something_has_changed() -> None:
    assert follow(scripted(1, 1, 2), lambda topic: topic.latest == 2).latest == 2


def test_followers_of_what_is_deleted_wake() -> None:
    assert follow(scripted(1, None), lambda topic: topic.is_gone).latest is None


def test_an_outage_is_waited_out_and_not_logged_by_every_poller(caplog: pytest.LogCaptureFixture) -> None:
    away = OperationalError("SELECT", {}, Exception("connection refused"))
    assert follow(scripted(away, away, 1), lambda topic: topic.latest == 1).latest == 1
    assert caplog.records == []


def test_another_error_of_the_database_is_logged_with_what_could_not_be_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = ProgrammingError("SELECT", {}, Exception("no such column"))
    assert follow(scripted(broken, 1), lambda topic: topic.latest == 1).latest == 1
    assert "The evaluation ev_1 can't be read now" in caplog.text
