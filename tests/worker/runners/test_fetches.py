"""What becomes of a fetch when its child, its worker or its dataset goes away; with real children."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import psutil
import pytest

from app.core.datasets import records as dataset_records
from app.core.datasets.fetches import FetchLease, fetch_queue
from app.core.settings import Settings
from app.core.storage import tables
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.children import find_children
from tests.servers.hub import FakeHub
from worker.runners.fetches import FETCHING_MODULE, FetchHandler, FetchRunner

Submit = Callable[..., str]


@pytest.fixture(autouse=True)
def stalled_hub(hub: FakeHub) -> FakeHub:
    """A Hub that describes its dataset and then does not give the file."""
    hub.add("me/rows", {"train.csv": b"text\nhello\n"})
    hub.stalls_downloads = True
    return hub


@pytest.fixture
def runner(
    settings: Settings, database: Database, store: ArtifactStore, stop: threading.Event
) -> FetchRunner:
    return FetchRunner(settings, database, store, FetchHandler(settings, database, store), stop=stop)


@contextmanager
def running(runner: FetchRunner, hub: FakeHub, submit_fetch: Submit) -> Iterator[FetchLease]:
    """Runs a fetch in a thread, until its child waits for the file; leaves when the fetch has ended."""
    submit_fetch()
    lease = runner.claim()
    assert lease is not None
    thread = threading.Thread(target=runner.run, args=(lease,))
    thread.start()
    assert hub.has_stalled.wait(60)
    yield lease
    thread.join(60)
    assert not thread.is_alive()


def child() -> psutil.Process:
    [process] = find_children(FETCHING_MODULE)
    return process


def dataset_of(database: Database, lease: FetchLease) -> tables.DatasetRow:
    with database.snapshot() as session:
        return dataset_records.get(session, lease.dataset_id)


def assert_nothing_is_left(settings: Settings, store: ArtifactStore) -> None:
    assert list((settings.data_dir / "fetches").iterdir()) == []
    assert store.list_files("datasets") == []


def test_a_dataset_that_is_deleted_is_fetched_no_more(
    runner: FetchRunner,
    stalled_hub: FakeHub,
    submit_fetch: Submit,
    database: Database,
    store: ArtifactStore,
    settings: Settings,
) -> None:
    with running(runner, stalled_hub, submit_fetch) as lease:
        process = child()
        with database.transaction() as session:
            dataset_records.delete(session, lease.dataset_id)
    assert not process.is_running()
    assert_nothing_is_left(settings, store)


def test_a_child_that_is_killed_is_tried_again_and_then_fails(
    runner: FetchRunner, stalled_hub: FakeHub, submit_fetch: Submit, database: Database
) -> None:
    with running(runner, stalled_hub, submit_fetch) as lease:
        os.kill(child().pid, signal.SIGKILL)
    assert dataset_of(database, lease).state == "fetching"
    for _ in range(2):
        stalled_hub.has_stalled.clear()
        again = runner.claim()
        assert again is not None
        thread = threading.Thread(target=runner.run, args=(again,))
        thread.start()
        assert stalled_hub.has_stalled.wait(60)
        os.kill(child().pid, signal.SIGKILL)
        thread.join(60)
    dataset = dataset_of(database, lease)
    assert (dataset.state, (dataset.error or {})["code"]) == ("failed", "process_died")


def test_a_stopping_worker_hands_the_fetch_back(
    runner: FetchRunner, stalled_hub: FakeHub, submit_fetch: Submit, database: Database, stop: threading.Event
) -> None:
    with running(runner, stalled_hub, submit_fetch) as lease:
        stop.set()
    with database.snapshot() as session:
        fetch = session.get(tables.DatasetFetchRow, lease.dataset_id)
    assert fetch is not None
    assert (fetch.lease_token, fetch.attempts) == (None, 0)


def test_a_fetch_that_another_worker_took_over_is_dropped(
    runner: FetchRunner, stalled_hub: FakeHub, submit_fetch: Submit, database: Database, settings: Settings
) -> None:
    with running(runner, stalled_hub, submit_fetch) as lease, database.transaction() as session:
        later = datetime.now(UTC) + timedelta(hours=1)
        second = fetch_queue.claim(session, lease_seconds=30, max_attempts=3, now=later)
    assert second is not None
    stalled_hub.stalls_downloads = False
    leftover = settings.data_dir / "fetches" / "of-a-dead-worker"
    leftover.mkdir()
    runner.run(second)
    dataset = dataset_of(database, lease)
    assert (dataset.state, dataset.rows) == ("ready", 1)
    assert dataset.artifact == f"{runner.handler.artifact(second)}/rows.jsonl"
    assert not leftover.exists()
