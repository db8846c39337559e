"""What is being followed in the database: any number of followers share one poller.

Knows neither what a topic is nor how it is sent: the streams of one kind of topic read it and yield events.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Generic, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from app.core.storage.outages import log_unless_away

Seen = TypeVar("Seen")

_log = logging.getLogger(__name__)


class Topic(Generic[Seen]):
    """What is being followed: the number of its followers, and what its poller has seen last."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.followers = 0
        self.latest: Seen | None = None
        self.is_gone = False
        self.poller: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    async def wait(self) -> None:
        """Wait for the next change."""
        await self._changed.wait()

    def announce(self) -> None:
        """Wake all who wait."""
        self._changed.set()
        self._changed = asyncio.Event()


class Topics(Generic[Seen]):
    """All followed topics of one kind in this process. Used from one event loop.

    `read` returns what there is to see of a topic, or None where it was deleted; `noun` names one in the log.
    """

    def __init__(
        self, read: Callable[[str], Awaitable[Seen | None]], *, noun: str, poll_seconds: float
    ) -> None:
        self._read = read
        self._noun = noun
        self._poll_seconds = poll_seconds
        self._topics: dict[str, Topic[Seen]] = {}
        self.is_closed = False

    @property
    def keys(self) -> list[str]:
        """The keys of the topics that have a poller now."""
        return list(self._topics)

    def close(self) -> None:
        """Wake all followers, who find `is_closed`, for a shutdown. Call from the event loop."""
        self.is_closed = True
        for topic in self._topics.values():
            topic.announce()

    @contextlib.contextmanager
    def subscribed(self, key: str) -> Iterator[Topic[Seen]]:
        """A topic as one of its followers; its poller runs while there is one."""
        topic = self._topics.get(key)
        if topic is None:
            topic = self._topics[key] = Topic(key)
            topic.poller = asyncio.create_task(self._poll(topic))
        topic.followers += 1
        try:
            yield topic
        finally:
            topic.followers -= 1
            if not topic.followers and topic.poller:
                topic.poller.cancel()
                del self._topics[key]

    async def _poll(self, topic: Topic[Seen]) -> None:
        while not topic.is_gone:
            try:
                latest = await self._read(topic.key)
            except SQLAlchemyError as error:
                log_unless_away(_log, f"The {self._noun} {topic.key} can't be read now", error)
            else:
                is_news, topic.latest, topic.is_gone = latest != topic.latest, latest, latest is None
                if is_news or topic.is_gone:
                    topic.announce()
            await asyncio.sleep(self._poll_seconds)
