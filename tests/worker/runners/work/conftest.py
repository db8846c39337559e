"""A runner of the made-up work, whose children are real."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.children import find_children
from tests.worker.runners.work.counts import (
    COUNTING,
    Claim,
    CountHandler,
    CountLease,
    CountRow,
    CountRunner,
    CountTable,
)


@pytest.fixture
def brisk(settings: Settings) -> Settings:
    return settings.model_copy(update={"cancel_grace_seconds": 0.5, "max_lost_attempts": 2})


@pytest.fixture
def handler(brisk: Settings, store: ArtifactStore) -> CountHandler:
    return CountHandler(brisk, store)


@pytest.fixture
def runner(
    brisk: Settings, database: Database, store: ArtifactStore, handler: CountHandler, stop: threading.Event
) -> CountRunner:
    CountTable.metadata.create_all(database.engine)
    return CountRunner(brisk, database, store, handler, stop=stop)


@pytest.fixture
def claimed(runner: CountRunner, database: Database) -> Claim:
    def submit_and_claim(script: str) -> CountLease:
        with database.transaction() as session:
            session.add(CountRow(id="count_1", script=script, created_at=datetime.now(UTC)))
        lease = runner.claim()
        assert lease is not None
        return lease

    return submit_and_claim


@pytest.fixture(autouse=True)
def nothing_is_left(runner: CountRunner, handler: CountHandler, store: ArtifactStore) -> Iterator[None]:
    """However work ends, its child and its folder are gone, and what has no name is not in the store."""
    yield
    assert find_children(COUNTING) == []
    assert [path for path in handler.root.glob("*") if path.is_dir()] == []
    assert bool(store.list_files("counts")) is bool(handler.succeeded)
