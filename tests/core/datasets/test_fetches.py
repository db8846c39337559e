from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.orm import Session

from app.core.datasets import fetches, records as dataset_records
from app.core.datasets.fetches import DatasetFailure, FetchLease, HubSource, fetch_queue
from app.core.datasets.inspection import OnProblem
from app.core.datasets.unused_fields import OnUnused
from app.core.errors import QueueFull
from app.core.errors.datasets import DatasetNotReady
from app.core.errors.work import LeaseLost
from app.core.storage import tables
from app.core.storage.database import Database

NOW = datetime(2026, 11, 23, 6, tzinfo=UTC)
ERROR = DatasetFailure("hub_dataset_missing", "There is no such dataset.", "Check the spelling.")


def submit(session: Session, *, seconds: int = 0, max_waiting: int = 10) -> str:
    return fetches.submit(
        session,
        HubSource(hub_dataset="me/rows"),
        name="rows",
        column_map={"text": "body"},
        on_problem=OnProblem.SKIP,
        on_unused=OnUnused.IGNORE,
        max_waiting=max_waiting,
        now=NOW + timedelta(seconds=seconds),
    ).id


def claim(session: Session, *, seconds: int = 0) -> FetchLease | None:
    now = NOW + timedelta(seconds=seconds)
    return fetch_queue.claim(session, lease_seconds=30, max_attempts=3, now=now)


def test_the_oldest_fetch_is_claimed_first_and_by_one_worker(database: Database) -> None:
    with database.transaction() as session:
        second, first = submit(session, seconds=1), submit(session)
        leases = [claim(session) for _ in range(3)]
    assert [lease and lease.dataset_id for lease in leases] == [first, second, None]
    assert leases[0] is not None
    assert leases[0].source == HubSource(hub_dataset="me/rows")
    assert (leases[0].column_map, leases[0].on_problem) == ({"text": "body"}, "skip")
    assert leases[0].on_unused is OnUnused.IGNORE


def test_an_expired_lease_is_taken_over_and_its_worker_learns_of_it(database: Database) -> None:
    with database.transaction() as session:
        submit(session)
        first, second = claim(session), claim(session, seconds=31)
        assert first
        assert second
        fetch_queue.check(session, second)
        for write in (fetch_queue.check, fetch_queue.release):
            with pytest.raises(LeaseLost):
                write(session, first)
        with pytest.raises(LeaseLost):
            fetch_queue.fail(session, first, ERROR)


def test_a_heartbeat_keeps_the_lease(database: Database) -> None:
    with database.transaction() as session:
        submit(session)
        lease = claim(session)
        assert lease
        fetch_queue.heartbeat(session, lease, lease_seconds=30, now=NOW + timedelta(seconds=20))
        assert claim(session, seconds=40) is None


def test_a_fetch_whose_workers_all_died_fails(database: Database) -> None:
    with database.transaction() as session:
        dataset_id = submit(session)
        for attempt in range(3):
            assert claim(session, seconds=31 * attempt)
        assert claim(session, seconds=31 * 3) is None
        dataset = dataset_records.get(session, dataset_id)
        assert (dataset.state, (dataset.error or {})["code"]) == ("failed", "worker_lost")
        assert claim(session, seconds=1000) is None


def test_progress_and_the_commit_are_recorded(database: Database) -> None:
    with database.transaction() as session:
        dataset_id = submit(session)
        lease = claim(session)
        assert lease
        fetch_queue.record(session, lease, commit="abc", rows=7)
        dataset = dataset_records.get(session, dataset_id)
        assert (dataset.rows, (dataset.hub or {})["commit"]) == (7, "abc")


def test_a_failed_dataset_can_not_be_used_and_says_why(database: Database) -> None:
    with database.transaction() as session:
        dataset_id = submit(session)
        lease = claim(session)
        assert lease
        with pytest.raises(DatasetNotReady, match="still being fetched"):
            dataset_records.hold(session, dataset_id)
        fetch_queue.fail(session, lease, ERROR)
        with pytest.raises(DatasetNotReady, match="no such dataset"):
            dataset_records.hold(session, dataset_id)


def test_a_deleted_dataset_takes_its_fetch_along(database: Database) -> None:
    with database.transaction() as session:
        dataset_id = submit(session)
        lease = claim(session)
        assert lease
        dataset_records.delete(session, dataset_id)
        with pytest.raises(LeaseLost):
            fetch_queue.heartbeat(session, lease, lease_seconds=30)
        assert session.get(tables.DatasetFetchRow, dataset_id) is None


def test_only_so_many_fetches_may_wait(database: Database) -> None:
    with database.transaction() as session:
        submit(session, max_waiting=1)
        with pytest.raises(QueueFull):
            submit(session, max_waiting=1)
