"""Hosts whose clocks differ: the database's clock decides which lease has run out, and who is alive."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, tzinfo

import pytest

from app.core.engine import workers
from app.core.engine.workers import WorkerReport
from app.core.exports.queue import export_queue
from app.core.jobs import events, queue
from app.core.jobs.events import Log
from app.core.storage import clock, tables
from app.core.storage.database import Database
from tests.factories import make_job


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    database = Database(postgres_url)
    yield database
    database.close()


@contextmanager
def a_host_whose_clock_is(monkeypatch: pytest.MonkeyPatch, **off: float) -> Iterator[None]:
    """Every module of the core reads a clock that is off."""

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(**off)

    with monkeypatch.context() as patches:
        for module in (clock, queue, workers, events):
            patches.setattr(module, "datetime", Shifted, raising=False)
        yield


def test_a_clock_that_is_fast_takes_no_lease(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with database.transaction() as session:
        make_job(session)
        lease = queue.claim(session, "other-host", lease_seconds=30)
        workers.heartbeat(session, WorkerReport("other-host", ["train"]))
    with a_host_whose_clock_is(monkeypatch, seconds=40), database.transaction() as session:
        assert queue.requeue_expired(session, max_lost_attempts=3) == []
        assert [one.id for one in workers.find_alive(session, lease_seconds=30)] == ["other-host"]
        assert export_queue.claim(session, lease_seconds=30, max_attempts=3) is None
    assert lease is not None


def test_a_lease_of_a_host_whose_clock_is_slow_lasts_as_long(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_host_whose_clock_is(monkeypatch, seconds=-40), database.transaction() as session:
        make_job(session)
        lease = queue.claim(session, "other-host", lease_seconds=30)
        assert lease is not None
        workers.heartbeat(session, WorkerReport("other-host", ["train"]))
    with database.transaction() as session:
        assert queue.requeue_expired(session, max_lost_attempts=3) == []
        assert [one.id for one in workers.find_alive(session, lease_seconds=30)] == ["other-host"]
        job = session.get(tables.JobRow, lease.job_id)
        assert job is not None
        assert job.created_at <= clock.now(session)


def test_jobs_are_queued_in_the_order_in_which_they_came(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.transaction() as session:
        first = make_job(session).id
    with a_host_whose_clock_is(monkeypatch, seconds=-40), database.transaction() as session:
        second = make_job(session).id
        events.append(session, second, [Log(message="later")])
    with database.transaction() as session:
        found = [queue.claim(session, "worker", lease_seconds=30) for _ in range(2)]
    assert [lease.job_id for lease in found if lease] == [first, second]


def test_the_only_host_s_clock_is_read_with_sqlite(each_database: Database) -> None:
    with each_database.transaction() as session:
        assert abs(clock.now(session) - datetime.now(UTC)) < timedelta(minutes=5)
