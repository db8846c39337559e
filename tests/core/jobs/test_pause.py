"""Pausing and resuming a job: its state, its attempts, its inputs and its events."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from app.core.adapters import records as adapter_records
from app.core.datasets import records as dataset_records
from app.core.errors.adapters import AdapterInUse
from app.core.errors.datasets import DatasetInUse
from app.core.errors.jobs import JobAlreadyEnded, JobNotPausable, JobNotPaused, JobNotRetryable
from app.core.jobs import events, queue, records as job_records
from app.core.jobs.events import StateChange
from app.core.jobs.queue import JobLease
from app.core.settings import Settings
from app.core.storage import tables
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from app.core.work.failures import WorkFailure
from tests.factories import make_adapter, make_dataset, make_job

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(seconds=31)


def claim(session: Session) -> JobLease:
    lease = queue.claim(session, "worker", lease_seconds=30, now=NOW)
    assert lease is not None
    return lease


def claim_new_job(session: Session) -> JobLease:
    make_job(session, now=NOW)
    return claim(session)


def pause(session: Session, lease: JobLease) -> tables.JobRow:
    job_records.request_pause(session, lease.job_id)
    queue.release(session, lease, reason="stopped")
    return job_records.get(session, lease.job_id)


def reasons(job: tables.JobRow) -> list[str | None]:
    return [attempt.exit_reason for attempt in job.attempts]


def test_a_waiting_job_is_paused_at_once_and_not_claimed_until_it_is_resumed(database: Database) -> None:
    with database.transaction() as session:
        job_id = make_job(session).id
        assert job_records.request_pause(session, job_id).state == "paused"
        assert queue.claim(session, "worker", lease_seconds=30) is None
        assert job_records.resume(session, job_id).state == "queued"
        assert claim(session).job_id == job_id


def test_a_running_job_is_asked_to_pause_and_its_attempt_says_so(database: Database) -> None:
    with database.transaction() as session:
        lease = claim_new_job(session)
        assert queue.find_stop_request(session, lease) is None
        asked = job_records.request_pause(session, lease.job_id)
        job_records.request_pause(session, lease.job_id)  # twice is no error
        assert (asked.state, queue.find_stop_request(session, lease)) == ("running", "pause")
        queue.release(session, lease, reason="stopped")
        job = job_records.get(session, lease.job_id)
        assert (job.state, job.pause_requested_at, job.lease_token, job.finished_at) == (
            ("paused", None, None, None)
        )
        assert (reasons(job), job.lost_attempts) == (["paused"], 0)


def test_a_resumed_job_goes_on_with_its_next_attempt(database: Database) -> None:
    with database.transaction() as session:
        job = pause(session, claim_new_job(session))
        job_records.resume(session, job.id)
        assert claim(session).attempt == 2


def test_a_pause_that_is_withdrawn_in_time_changes_nothing(database: Database) -> None:
    with database.transaction() as session:
        lease = claim_new_job(session)
        job_records.request_pause(session, lease.job_id)
        assert job_records.resume(session, lease.job_id).state == "running"
        assert queue.find_stop_request(session, lease) is None


def test_a_job_that_stopped_for_a_withdrawn_pause_is_queued_again(database: Database) -> None:
    with database.transaction() as session:
        lease = claim_new_job(session)
        job_records.request_pause(session, lease.job_id)
        job_records.resume(session, lease.job_id)
        queue.release(session, lease, reason="Resumed while it stopped.")
        job = job_records.get(session, lease.job_id)
        assert (job.state, reasons(job)) == ("queued", ["handed_back"])


def test_a_job_whose_worker_is_lost_during_a_pause_is_paused(database: Database) -> None:
    with database.transaction() as session:
        lease = claim_new_job(session)
        job_records.request_pause(session, lease.job_id)
        found = queue.requeue_expired(session, max_lost_attempts=1, now=LATER)
        job = job_records.get(session, lease.job_id)
        assert (found, reasons(job)) == ([(lease.job_id, "paused")], ["worker_lost"])
        assert job.lost_attempts == 1


def test_a_child_that_dies_during_a_pause_leaves_a_paused_job(database: Database) -> None:
    with database.transaction() as session:
        lease = claim_new_job(session)
        job_records.request_pause(session, lease.job_id)
        died = WorkFailure("process_died", "It died.")
        assert queue.give_up_attempt(session, lease, died, max_lost_attempts=3) == "paused"


def test_a_paused_job_is_cancelled_at_once(database: Database) -> None:
    with database.transaction() as session:
        job = job_records.request_cancel(session, pause(session, claim_new_job(session)).id)
        assert job.state == "cancelled"
        assert job.finished_at is not None


def test_a_cancel_has_precedence_over_a_pause(database: Database) -> None:
    with database.transaction() as session:
        lease = claim_new_job(session)
        job_records.request_pause(session, lease.job_id)
        job_records.request_cancel(session, lease.job_id)
        with pytest.raises(JobNotPausable, match="being cancelled"):
            job_records.request_pause(session, lease.job_id)
        with pytest.raises(JobNotPaused):
            job_records.resume(session, lease.job_id)
        queue.release(session, lease, reason="stopped")
        assert job_records.get(session, lease.job_id).state == "cancelled"


def test_a_refusal_says_what_to_do_instead(database: Database) -> None:
    with database.transaction() as session:
        job_id = make_job(session).id
        with pytest.raises(JobNotPaused, match="queued"):
            job_records.resume(session, job_id)
        job_records.request_pause(session, job_id)
        for refused, error in (
            (job_records.request_pause, JobNotPausable),
            (job_records.retry, JobNotRetryable),
        ):
            with pytest.raises(error) as caught:
                refused(session, job_id)  # type: ignore[operator]
            assert "/resume" in (caught.value.hint or "")
        job_records.request_cancel(session, job_id)
        with pytest.raises(JobAlreadyEnded):
            job_records.request_pause(session, job_id)
        with pytest.raises(JobNotPaused) as ended:
            job_records.resume(session, job_id)
        assert "/retry" in (ended.value.hint or "")


def test_the_inputs_of_a_paused_job_can_not_be_deleted(
    database: Database, settings: Settings, tmp_path: Path
) -> None:
    store = ArtifactStore(settings.artifacts_url)
    with database.transaction() as session:
        dataset, adapter = make_dataset(session, store, tmp_path), make_adapter(session)
        job = make_job(session, dataset=dataset.id, continue_from=adapter.id)
        job_records.request_pause(session, job.id)
        with pytest.raises(DatasetInUse):
            dataset_records.delete(session, dataset.id)
        with pytest.raises(AdapterInUse):
            adapter_records.delete(session, adapter.id)


def test_a_pause_is_recorded_as_events(database: Database) -> None:
    with database.transaction() as session:
        job = pause(session, claim_new_job(session))
        job_records.resume(session, job.id)
        recorded = [event.data for event in events.read(session, job.id, after=2)]
    assert [one.state for one in recorded if isinstance(one, StateChange)] == ["paused", "queued"]
    assert [one.message for one in recorded if isinstance(one, events.Log)] == [
        "Pause requested: stopping after this step."
    ]
