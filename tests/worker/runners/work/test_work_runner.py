"""What the runner does for every kind of work, shown with a made-up one and real children."""

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import DataError, OperationalError
from sqlalchemy.orm import Session

from app.core.errors import NotFound
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from app.core.work.failures import WorkFailure
from tests.waiting import wait_for
from tests.worker.runners.work.counts import (
    Claim,
    CountHandler,
    CountLease,
    CountRow,
    CountRunner,
    CountTable,
    count_queue,
    row_of,
)
from worker.runners.exports import ExportHandler
from worker.runners.fetches import FetchHandler
from worker.runners.jobs import JobHandler


@contextmanager
def running(runner: CountRunner, lease: CountLease, database: Database) -> Iterator[None]:
    """Runs the work in a thread, from its last count until it has ended."""
    thread = threading.Thread(target=runner.run, args=(lease,))
    thread.start()
    wait_for(lambda: row_of(database).reached == 3, "the child to have counted")
    yield
    thread.join(60)
    assert not thread.is_alive()


def test_a_result_is_stored_and_named(
    runner: CountRunner, claimed: Claim, database: Database, handler: CountHandler, store: ArtifactStore
) -> None:
    lease = claimed("finishes")
    runner.run(lease)
    row = row_of(database)
    assert (row.state, row.reached, row.lease_token) == ("succeeded", 4, None)
    assert store.list_files(row.artifact or "") == ["three"]
    assert handler.succeeded == [lease.key]
    assert runner.claim() is None


def test_a_failure_is_recorded_in_the_child_s_words(
    runner: CountRunner, claimed: Claim, database: Database
) -> None:
    runner.run(claimed("fails"))
    row = row_of(database)
    assert (row.state, row.error, row.message) == ("failed", "count_failed", "There is no four.")


def test_a_failure_whose_text_no_database_takes_is_recorded(
    brisk: Settings,
    each_database: Database,
    store: ArtifactStore,
    handler: CountHandler,
    stop: threading.Event,
) -> None:
    CountTable.metadata.create_all(each_database.engine)
    runner = CountRunner(brisk, each_database, store, handler, stop=stop)
    with each_database.transaction() as session:
        session.add(CountRow(id="count_1", script="fails-with-nul", created_at=datetime.now(UTC)))
    lease = runner.claim()
    assert lease is not None
    runner.run(lease)
    row = row_of(each_database)
    assert (row.state, row.message) == ("failed", "There is no\ufffd four.")


def test_a_report_that_the_database_refuses_fails_the_work_at_once(
    runner: CountRunner, claimed: Claim, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(session: Session, lease: CountLease, reached: int) -> None:
        raise DataError("UPDATE", {}, Exception("value too long"))

    monkeypatch.setattr(count_queue, "record", refuse)
    runner.run(claimed("waits"))
    assert (row_of(database).state, row_of(database).message) == ("failed", "The worker failed: DataError")


def test_a_worker_outlives_an_end_that_can_t_be_recorded(
    runner: CountRunner,
    claimed: Claim,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(session: Session, lease: CountLease, failure: WorkFailure) -> None:
        raise DataError("UPDATE", {}, Exception("value too long"))

    monkeypatch.setattr(count_queue, "fail", refuse)
    runner.run(claimed("fails"))
    assert row_of(database).lease_token is not None
    assert "how it ended could not be recorded" in caplog.text


def test_work_whose_child_dies_is_tried_again_and_then_fails_with_its_last_words(
    runner: CountRunner, claimed: Claim, database: Database
) -> None:
    runner.run(claimed("dies"))
    assert (row_of(database).state, row_of(database).attempts) == ("queued", 1)
    again = runner.claim()
    assert again is not None
    runner.run(again)
    row = row_of(database)
    assert (row.state, row.error, row.attempts) == ("failed", "process_died", 2)
    assert row.message == "The counting process ended with status 1 before it was done: about to die"


@pytest.mark.parametrize("script", ["waits", "ignores-stop"])
def test_a_worker_that_stops_asks_its_child_and_releases_the_work(
    runner: CountRunner, claimed: Claim, database: Database, stop: threading.Event, script: str
) -> None:
    with running(runner, claimed(script), database):
        stop.set()
    row = row_of(database)
    assert (row.state, row.attempts, row.lease_token) == ("queued", 0, None)


@pytest.mark.parametrize(("script", "is_shorter"), [("waits", True), ("ignores-stop", True), ("dies", False)])
def test_copies_have_what_a_stopped_child_has_left_of_its_grace(
    runner: CountRunner,
    claimed: Claim,
    database: Database,
    stop: threading.Event,
    handler: CountHandler,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    is_shorter: bool,
) -> None:
    given: list[float] = []

    def finish(lease: CountLease, *, timeout_seconds: float) -> None:
        given.append(timeout_seconds)

    monkeypatch.setattr(handler, "finish_copies", finish)
    with running(runner, claimed(script), database):
        if is_shorter:
            stop.set()
    assert (0 <= given[0] < handler.stop_grace_seconds) is is_shorter


def test_a_lost_lease_ends_the_child_and_leaves_the_row_to_its_new_owner(
    runner: CountRunner, claimed: Claim, database: Database
) -> None:
    with running(runner, claimed("waits"), database), database.transaction() as session:
        later = datetime.now(UTC) + timedelta(hours=1)
        second = count_queue.claim(session, lease_seconds=30, max_attempts=3, now=later)
    assert second is not None
    assert (row_of(database).state, row_of(database).lease_token) == ("queued", second.token)


def test_work_that_was_lost_too_often_fails(runner: CountRunner, claimed: Claim, database: Database) -> None:
    claimed("waits")
    for attempt in (1, 2):
        with database.transaction() as session:
            later = datetime.now(UTC) + attempt * timedelta(hours=1)
            count_queue.claim(session, lease_seconds=30, max_attempts=2, now=later)
    assert (row_of(database).state, row_of(database).message) == ("failed", "Lost 2 times.")


def test_a_report_that_is_not_understood_fails_the_work_and_ends_the_child(
    runner: CountRunner, claimed: Claim, database: Database
) -> None:
    runner.run(claimed("talks-nonsense"))
    row = row_of(database)
    assert (row.state, row.error) == ("failed", "internal_error")
    assert "ValidationError" in (row.message or "")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_fails_the_work_and_its_files_go_before_the_database_is_written(
    runner: CountRunner,
    claimed: Claim,
    database: Database,
    handler: CountHandler,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    lease = claimed("finishes")
    put_file, fail = ArtifactStore.put_file, count_queue.fail

    def fill_the_disk(self: ArtifactStore, key: str, source: Path) -> None:
        put_file(self, key, source)
        raise OSError(number, "No space left on device")

    def fail_on_a_disk_with_space(session: Session, lease: CountLease, failure: WorkFailure) -> None:
        assert not handler.folder(lease).exists()
        fail(session, lease, failure)

    monkeypatch.setattr(ArtifactStore, "put_file", fill_the_disk)
    monkeypatch.setattr(count_queue, "fail", fail_on_a_disk_with_space)
    runner.run(lease)
    assert (row_of(database).state, row_of(database).message) == ("failed", "The disk is full.")
    assert handler.succeeded == []


def test_the_log_has_the_traceback_of_an_error_that_the_failure_does_not_explain(
    runner: CountRunner,
    claimed: Claim,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def lose(self: ArtifactStore, key: str, source: Path) -> None:
        raise NotFound(f"{key} is gone.")

    monkeypatch.setattr(ArtifactStore, "put_file", lose)
    runner.run(claimed("finishes"))
    assert row_of(database).message == "The worker failed: NotFound"
    assert "three is gone." in caplog.text


@pytest.mark.parametrize("kind", [JobHandler, ExportHandler, FetchHandler])
def test_every_kind_has_words_for_a_full_disk(kind: Any) -> None:
    assert kind.disk_full.code == "disk_full"
    assert "Free some space, then" in kind.disk_full.hint


def test_reports_are_recorded_once_the_database_is_back(
    runner: CountRunner, claimed: Claim, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, failures = count_queue.record, iter([True, True])

    def record_when_back(session: Session, lease: CountLease, reached: int) -> None:
        if next(failures, False):
            raise OperationalError("UPDATE", {}, Exception("away"))
        record(session, lease, reached)

    monkeypatch.setattr(count_queue, "record", record_when_back)
    lease = claimed("dies")
    runner.run(lease)
    assert (row_of(database).state, row_of(database).reached) == ("queued", 3)
