"""The queue of exports: who may work on one, and what a person may ask."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.orm import Session

from app.core.adapters import records as adapter_records
from app.core.errors import QueueFull
from app.core.errors.adapters import AdapterInUse
from app.core.errors.exports import ExportAlreadyEnded, ExportNotEnded, ExportNotRetryable
from app.core.errors.work import LeaseLost
from app.core.exports import records as export_records
from app.core.exports.queue import ComparedFailure, ExportLease, ExportResult, export_queue
from app.core.exports.results import Agreement, Threshold
from app.core.specs.export import export_spec_adapter
from app.core.specs.states import ExportPhase, ExportState
from app.core.storage import tables
from app.core.storage.database import Database
from tests.factories import make_adapter

NOW = datetime(2026, 1, 1, tzinfo=UTC)
AGREEMENT = Agreement(
    prompts=1,
    positions=1,
    max_abs_logit_difference=0,
    mean_abs_logit_difference=0,
    mean_kl=0,
    greedy_match=1,
    answers_equal=1,
    adapter_kl=1,
    threshold=Threshold(max_mean_kl=1, min_greedy_match=0, must_keep_adapter=False),
    loaded_with="nothing",
    computed_in="float32",
)


def submit(session: Session, *, max_waiting: int = 10) -> tables.ExportRow:
    adapter = session.get(tables.AdapterRow, "ad_0000000000000000") or make_adapter(session)
    spec = export_spec_adapter.validate_python({"format": "merged"})
    return export_records.submit(session, adapter, spec, max_waiting=max_waiting, now=NOW)


def claim(session: Session, *, now: datetime = NOW, max_attempts: int = 3) -> ExportLease | None:
    return export_queue.claim(session, lease_seconds=30, max_attempts=max_attempts, now=now)


@pytest.fixture
def lease(database: Database) -> ExportLease:
    with database.transaction() as session:
        submit(session)
        lease = claim(session)
    assert lease is not None
    return lease


def row_of(database: Database, lease: ExportLease) -> tables.ExportRow:
    with database.snapshot() as session:
        return export_records.get(session, lease.export_id)


def test_an_export_is_claimed_once(database: Database, lease: ExportLease) -> None:
    with database.transaction() as session:
        assert claim(session) is None
    assert row_of(database, lease).state == ExportState.RUNNING


def test_an_export_whose_lease_expired_is_claimed_again(database: Database, lease: ExportLease) -> None:
    with database.transaction() as session:
        again = claim(session, now=NOW + timedelta(seconds=31))

    assert again is not None
    with pytest.raises(LeaseLost), database.transaction() as session:
        export_queue.record(session, lease, phase=ExportPhase.MERGING, progress=0.5)


def test_an_export_that_was_lost_too_often_fails(database: Database, lease: ExportLease) -> None:
    with database.transaction() as session:
        assert claim(session, now=NOW + timedelta(seconds=31), max_attempts=1) is None

    row = row_of(database, lease)
    assert (row.state, (row.error or {})["code"]) == (ExportState.FAILED, "worker_lost")


def test_a_cancelled_export_is_taken_from_its_worker(database: Database, lease: ExportLease) -> None:
    with database.transaction() as session:
        export_records.cancel(session, lease.export_id)

    with pytest.raises(LeaseLost), database.transaction() as session:
        export_queue.finish(session, lease, ExportResult(files=[], agreement=AGREEMENT, notes=[]))
    assert row_of(database, lease).state == ExportState.CANCELLED


def test_a_release_is_not_counted_as_an_attempt(database: Database, lease: ExportLease) -> None:
    with database.transaction() as session:
        export_queue.release(session, lease)

    row = row_of(database, lease)
    assert (row.state, row.attempts, row.phase) == (ExportState.QUEUED, 0, None)


def test_a_failed_export_is_retried_and_a_successful_one_is_not(
    database: Database, lease: ExportLease
) -> None:
    with database.transaction() as session:
        failure = ComparedFailure("export_mismatch", "No.", agreement=AGREEMENT)
        export_queue.fail(session, lease, failure)
        assert export_records.retry(session, lease.export_id).error is None
        again = claim(session)
        assert again is not None
        export_queue.finish(session, again, ExportResult(files=[], agreement=AGREEMENT, notes=[]))

    with pytest.raises(ExportNotRetryable), database.transaction() as session:
        export_records.retry(session, lease.export_id)
    with pytest.raises(ExportAlreadyEnded), database.transaction() as session:
        export_records.cancel(session, lease.export_id)


def test_an_export_under_way_holds_itself_and_its_adapter(database: Database, lease: ExportLease) -> None:
    with pytest.raises(ExportNotEnded), database.transaction() as session:
        export_records.delete(session, lease.export_id)
    with pytest.raises(AdapterInUse, match=lease.export_id), database.transaction() as session:
        adapter_records.delete(session, lease.adapter_id)


def test_a_full_queue_takes_no_more(database: Database, lease: ExportLease) -> None:
    with pytest.raises(QueueFull), database.transaction() as session:
        submit(session, max_waiting=1)
