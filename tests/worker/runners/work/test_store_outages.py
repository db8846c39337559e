"""What the runner does while the artifact store is away, shown with a made-up kind of work."""

import threading
from pathlib import Path
from typing import Any

import pytest

from app.core.errors.storage import StoreUnreachable
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.waiting import wait_for
from tests.worker.runners.work.counts import Claim, CountHandler, CountLease, CountRunner, row_of
from worker.runners import work_attempt


@pytest.fixture
def store_away(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The store does not answer while the list has an entry; each call removes one."""
    put_file, away = ArtifactStore.put_file, [True]

    def put_when_back(self: ArtifactStore, key: str, source: Path) -> None:
        if away:
            away.pop()
            raise StoreUnreachable("The artifact store does not answer: refused")
        put_file(self, key, source)

    monkeypatch.setattr(ArtifactStore, "put_file", put_when_back)
    monkeypatch.setattr(work_attempt, "_STORE_RETRY_SECONDS", 0.01)
    return away


def test_a_result_waits_for_a_store_that_is_away(
    runner: CountRunner, claimed: Claim, database: Database, store_away: list[bool]
) -> None:
    store_away.extend([True] * 3)
    runner.run(claimed("finishes"))
    assert (row_of(database).state, store_away) == ("succeeded", [])


def test_a_store_that_stays_away_is_named(
    brisk: Settings,
    database: Database,
    store: ArtifactStore,
    handler: CountHandler,
    claimed: Claim,
    stop: threading.Event,
    store_away: list[bool],
) -> None:
    impatient = brisk.model_copy(update={"store_wait_seconds": 0.0})
    CountRunner(impatient, database, store, handler, stop=stop).run(claimed("finishes"))
    row = row_of(database)
    assert (row.state, row.error) == ("failed", "store_unreachable")
    assert row.message == "The artifact store does not answer: refused"


def test_a_worker_that_stops_does_not_wait_for_the_store(
    runner: CountRunner, claimed: Claim, database: Database, stop: threading.Event, store_away: list[bool]
) -> None:
    lease = claimed("finishes")
    store_away.extend([True] * 1000)
    thread = threading.Thread(target=runner.run, args=(lease,))
    thread.start()
    wait_for(lambda: len(store_away) < 1000, "the result to be refused by the store")
    stop.set()
    thread.join(60)
    assert (row_of(database).state, row_of(database).lease_token) == ("queued", None)


def test_what_a_report_asks_of_the_store_is_done_once_the_store_is_back(
    runner: CountRunner, claimed: Claim, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def follow_up(self: CountHandler, lease: CountLease, report: Any, heartbeat: Any) -> None:
        asked.append(report)
        if len(asked) == 1:
            raise StoreUnreachable

    monkeypatch.setattr(CountHandler, "follow_up", follow_up)
    runner.run(claimed("finishes"))
    assert [report.reached for report in asked] == [1, 1, 2, 3]
    assert row_of(database).state == "succeeded"


def test_work_whose_files_can_t_be_fetched_waits_for_the_store(
    runner: CountRunner, claimed: Claim, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, away = CountHandler.start, [True, True]

    def start_when_back(self: CountHandler, lease: CountLease) -> Any:
        if away:
            away.pop()
            raise StoreUnreachable
        return start(self, lease)

    monkeypatch.setattr(CountHandler, "start", start_when_back)
    monkeypatch.setattr(work_attempt, "_STORE_RETRY_SECONDS", 0.01)
    runner.run(claimed("finishes"))
    assert row_of(database).state == "succeeded"
