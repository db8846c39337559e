"""Follow the progress of an evaluation: any number of followers share one poller.

An event has everything there is to know, so a follower that missed some loses nothing, and a slow client
takes no memory.
"""

from collections.abc import AsyncIterator

from anyio import to_thread

from app.api.evaluations.schemas import EvaluationProgressRead
from app.api.topics import Topics
from app.core.errors.evaluations import EvaluationNotFound
from app.core.evaluations import records
from app.core.storage.database import Database

POLL_SECONDS = 0.5


class ProgressStreams:
    """All followed evaluations of this process. Used from one event loop."""

    def __init__(self, database: Database, *, poll_seconds: float = POLL_SECONDS) -> None:
        self._database = database
        self._topics: Topics[EvaluationProgressRead] = Topics(
            self._find, noun="evaluation", poll_seconds=poll_seconds
        )

    def close(self) -> None:
        """End every stream, for a shutdown. Call from the event loop."""
        self._topics.close()

    async def read(self, evaluation_id: str) -> EvaluationProgressRead:
        """How far an evaluation is now. Raises EvaluationNotFound."""
        return await to_thread.run_sync(self._read, evaluation_id)

    async def follow(
        self, evaluation_id: str, first: EvaluationProgressRead
    ) -> AsyncIterator[EvaluationProgressRead]:
        """Yield `first`, then the progress whenever it has changed, until the evaluation has ended."""
        with self._topics.subscribed(evaluation_id) as topic:
            shown = first
            yield shown
            while not (shown.state.has_ended or topic.is_gone or self._topics.is_closed):
                if topic.latest is None or topic.latest == shown:
                    await topic.wait()
                else:
                    shown = topic.latest
                    yield shown

    async def _find(self, evaluation_id: str) -> EvaluationProgressRead | None:
        try:
            return await self.read(evaluation_id)
        except EvaluationNotFound:
            return None

    def _read(self, evaluation_id: str) -> EvaluationProgressRead:
        with self._database.snapshot() as session:
            return EvaluationProgressRead.from_row(records.get(session, evaluation_id))
