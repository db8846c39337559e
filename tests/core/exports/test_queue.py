"""The queue of exports: who may work on one, and what a person may ask."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy.orm import Session

from app.core.adapters import records as adapter_records
from app.core.engine import workers
from app.core.engine.base_models import LocalModel
from app.core.engine.workers import WorkerReport
from app.core.errors import QueueFull
from app.core.errors.adapters import AdapterInUse
from app.core.errors.exports import ExportAlreadyEnded, ExportNotEnded, ExportNotRetryable
from app.core.errors.work import LeaseLost
from app.core.exports import records as export_records
from app.core.exports.queue import (
    ComparedFailure,
    ExportingWorker,
    ExportLease,
    ExportQueue,
    ExportResult,
    export_queue,
)
from app.core.exports.results import Agreement, Threshold
from app.core.keys import records as keys, usage
from app.core.specs.export import export_spec_adapter
from app.core.specs.states import ExportPhase, ExportState
from app.core.storage import tables
from app.core.storage.database import Database
from app.core.work.failures import WorkFailure
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


def claim_without_token(session: Session) -> ExportLease | None:
    """Claim as a worker that has every model and no token for the Hub."""
    worker = ExportingWorker(lambda: ["big-model"], lambda: False, lease_seconds=30)
    return ExportQueue(worker).claim(session, lease_seconds=30, max_attempts=3, now=NOW)


def submit_push(session: Session, base_model: str) -> None:
    adapter = make_adapter(session, base_model=base_model)
    spec = export_spec_adapter.validate_python({"format": "hub", "repository": "me/helper"})
    export_records.submit(session, adapter, spec, max_waiting=None, now=NOW)


def start_worker(session: Session, *, has_hub_token: bool, folders: tuple[LocalModel, ...] = ()) -> None:
    report = WorkerReport("worker-2", ["train"], has_hub_token=has_hub_token, folders=list(folders))
    workers.heartbeat(session, report, now=NOW)


def test_a_push_is_left_to_the_worker_that_has_a_token(each_database: Database) -> None:
    with each_database.transaction() as session:
        submit_push(session, "owner/model")
        start_worker(session, has_hub_token=True)
        assert claim_without_token(session) is None
        submit(session)
        other = claim_without_token(session)
        assert other is not None
        assert other.spec.format == "merged"


def test_a_push_for_which_no_worker_has_a_token_is_claimed_and_fails_with_the_reason(
    database: Database,
) -> None:
    with database.transaction() as session:
        submit_push(session, "owner/model")
        start_worker(session, has_hub_token=False)
        assert claim_without_token(session) is not None


def test_a_push_is_not_left_to_a_worker_that_lacks_its_base_model(database: Database) -> None:
    model = LocalModel(
        name="other-model", architecture=None, context_length=None, size_bytes=1, obstacle=None
    )
    with database.transaction() as session:
        submit_push(session, "big-model")
        start_worker(session, has_hub_token=True, folders=(model,))
        assert claim_without_token(session) is not None


def test_the_time_of_each_attempt_counts_for_the_key_that_asked(database: Database) -> None:
    with database.transaction() as session:
        key, _ = keys.create(session, "ci")
        adapter = make_adapter(session)
        spec = export_spec_adapter.validate_python({"format": "merged"})
        caller = keys.caller_of(key)
        made = export_records.submit(session, adapter, spec, max_waiting=9, caller=caller, now=NOW)
        first = claim(session, now=NOW)
        assert first is not None
        failure = WorkFailure("process_died", "It died.")
        export_queue.fail(session, first, failure, now=NOW + timedelta(seconds=20))
        export_records.retry(session, made.id)
        assert claim(session, now=NOW + timedelta(seconds=60)) is not None
        export_records.cancel(session, made.id, now=NOW + timedelta(seconds=70))
        # One that has not begun has used nothing.
        export_records.retry(session, made.id)
        export_records.cancel(session, made.id, now=NOW + timedelta(seconds=90))
    with database.snapshot() as session:
        (row,) = usage.find(session, key_id=key.id, model=None, since=NOW.date(), until=NOW.date(), limit=9)
    assert (row.model, row.export_seconds, row.training_seconds) == ("helper", 30.0, 0.0)
