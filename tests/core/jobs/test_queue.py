"""The queue's rules, on a real database file."""

import threading
from datetime import UTC, datetime, timedelta

import pytest

from app.core.errors import QueueFull
from app.core.errors.jobs import JobAlreadyEnded, JobNotFound, JobNotRetryable
from app.core.errors.work import LeaseLost
from app.core.jobs import events, queue, records as job_records
from app.core.jobs.events import Log
from app.core.jobs.queue import JobLease, JobProgress
from app.core.specs.states import JobState, Phase
from app.core.storage.database import Database
from app.core.work.failures import WorkFailure
from tests.factories import make_job, make_spec

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(seconds=31)
FAILURE = WorkFailure("process_died", "It died.")


def claim(database: Database, now: datetime = NOW) -> JobLease | None:
    with database.transaction() as session:
        return queue.claim(session, "worker", lease_seconds=30, now=now)


def claim_new_job(database: Database, **fields: object) -> JobLease:
    with database.transaction() as session:
        make_job(session, now=NOW, **fields)
    lease = claim(database)
    assert lease is not None
    return lease


def state_of(database: Database, job_id: str) -> str:
    with database.snapshot() as session:
        return job_records.get(session, job_id).state


def test_the_oldest_job_is_claimed_first(database: Database) -> None:
    with database.transaction() as session:
        make_job(session, name="second", now=LATER)
        make_job(session, name="first", now=NOW)
    names = [lease.spec.name for lease in (claim(database), claim(database)) if lease]
    assert names == ["first", "second"]
    assert claim(database) is None


def test_threads_never_claim_one_job_twice(database: Database) -> None:
    with database.transaction() as session:
        wanted = {make_job(session).id for _ in range(30)}
    claimed: list[str] = []

    def claim_all() -> None:
        while lease := claim(database):
            claimed.append(lease.job_id)

    threads = [threading.Thread(target=claim_all) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(wanted)


def test_expired_lease_is_requeued_with_its_attempt_closed(database: Database) -> None:
    lease = claim_new_job(database)
    with database.transaction() as session:
        assert queue.requeue_expired(session, max_lost_attempts=3, now=NOW) == []
        queue.requeue_expired(session, max_lost_attempts=3, now=LATER)
        job = job_records.get(session, lease.job_id)
        assert (job.state, job.lost_attempts) == ("queued", 1)
        assert [attempt.exit_reason for attempt in job.attempts] == ["worker_lost"]


def test_heartbeat_keeps_a_lease_from_expiring(database: Database) -> None:
    lease = claim_new_job(database)
    with database.transaction() as session:
        queue.heartbeat(session, lease, lease_seconds=30, now=LATER)
        assert queue.requeue_expired(session, max_lost_attempts=3, now=LATER) == []


def test_a_lost_lease_can_write_nothing(database: Database) -> None:
    lease = claim_new_job(database)
    with database.transaction() as session:
        queue.requeue_expired(session, max_lost_attempts=3, now=LATER)
    for write in (
        lambda session: queue.heartbeat(session, lease, lease_seconds=30),
        lambda session: queue.record(session, lease, [Log(message="late")]),
        lambda session: queue.succeed(session, lease, adapter_name="late"),
        lambda session: queue.fail(session, lease, FAILURE),
        lambda session: queue.release(session, lease, reason="late"),
        lambda session: queue.give_up_attempt(session, lease, FAILURE, max_lost_attempts=3),
    ):
        with pytest.raises(LeaseLost), database.transaction() as session:
            write(session)
    assert state_of(database, lease.job_id) == "queued"


def test_a_job_lost_too_often_fails_with_the_reason(database: Database) -> None:
    lease = claim_new_job(database)
    for _ in range(2):
        with database.transaction() as session:
            queue.give_up_attempt(session, lease, FAILURE, max_lost_attempts=3)
        again = claim(database)
        assert again is not None
        lease = again
    with database.transaction() as session:
        queue.give_up_attempt(session, lease, FAILURE, max_lost_attempts=3)
        job = job_records.get(session, lease.job_id)
        assert (job.state, job.error_code, len(job.attempts)) == ("failed", "process_died", 3)


def test_a_lost_job_that_was_to_be_cancelled_is_cancelled(database: Database) -> None:
    lease = claim_new_job(database)
    with database.transaction() as session:
        job_records.request_cancel(session, lease.job_id)
        queue.requeue_expired(session, max_lost_attempts=3, now=LATER)
    assert state_of(database, lease.job_id) == "cancelled"


def test_hand_back_does_not_count_as_a_loss(database: Database) -> None:
    lease = claim_new_job(database)
    with database.transaction() as session:
        queue.release(session, lease, reason="shutting down")
        job = job_records.get(session, lease.job_id)
        assert (job.state, job.phase, job.lost_attempts) == ("queued", None, 0)


def test_hand_back_of_a_job_to_be_cancelled_cancels_it(database: Database) -> None:
    lease = claim_new_job(database)
    with database.transaction() as session:
        job_records.request_cancel(session, lease.job_id)
        queue.release(session, lease, reason="shutting down")
    assert state_of(database, lease.job_id) == "cancelled"


def test_progress_keeps_what_it_does_not_name(database: Database) -> None:
    lease = claim_new_job(database)
    with database.transaction() as session:
        queue.record(session, lease, [], JobProgress(phase=Phase.TRAINING, step=3, loss=1.5))
        queue.record(session, lease, [], JobProgress(step=4))
        job = job_records.get(session, lease.job_id)
        assert (job.phase, job.step, job.loss) == ("training", 4, 1.5)


def test_a_waiting_job_is_cancelled_at_once_and_never_claimed(database: Database) -> None:
    with database.transaction() as session:
        job_id = make_job(session).id
        assert job_records.request_cancel(session, job_id).state == "cancelled"
    assert claim(database) is None


def test_a_running_job_is_asked_to_stop(database: Database) -> None:
    lease = claim_new_job(database)
    with database.transaction() as session:
        assert queue.find_stop_request(session, lease) is None
        job_records.request_cancel(session, lease.job_id)
        job_records.request_cancel(session, lease.job_id)  # twice is no error
        assert queue.find_stop_request(session, lease) == "cancel"
        queue.finish_cancelled(session, lease)
    with pytest.raises(JobAlreadyEnded), database.transaction() as session:
        job_records.request_cancel(session, lease.job_id)


def test_retry_queues_a_failed_job_again_without_its_error(database: Database) -> None:
    lease = claim_new_job(database)
    with database.transaction() as session:
        queue.fail(session, lease, FAILURE)
        job = job_records.retry(session, lease.job_id)
        assert (job.state, job.error_code, job.finished_at) == ("queued", None, None)
    again = claim(database)
    assert again is not None
    assert again.attempt == 2


def test_a_succeeded_or_waiting_job_is_not_retried(database: Database) -> None:
    lease = claim_new_job(database)
    with database.transaction() as session:
        queue.succeed(session, lease, adapter_name="adapter")
    with pytest.raises(JobNotRetryable), database.transaction() as session:
        job_records.retry(session, lease.job_id)


def test_a_full_queue_refuses_one_more(database: Database) -> None:
    with database.transaction() as session:
        job_records.submit(session, make_spec(), max_queued=1)
        with pytest.raises(QueueFull):
            job_records.submit(session, make_spec(), max_queued=1)


def test_events_are_numbered_without_gaps_under_concurrent_writers(database: Database) -> None:
    with database.transaction() as session:
        job_id = make_job(session).id

    def write() -> None:
        for _ in range(10):
            with database.transaction() as session:
                events.append(session, job_id, [Log(message="a"), Log(message="b")])

    threads = [threading.Thread(target=write) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.snapshot() as session:
        found = events.read(session, job_id, limit=1000)
        assert [event.seq for event in found] == list(range(1, 102))
        assert job_records.get(session, job_id).last_event_seq == 101


def test_events_are_read_after_a_seq_and_by_type(database: Database) -> None:
    lease = claim_new_job(database)
    with database.transaction() as session:
        queue.record(session, lease, [Log(message="one"), Log(message="two")])
        after = events.read(session, lease.job_id, after=3)
        assert [event.data for event in after] == [Log(message="two")]
        assert [event.seq for event in events.read(session, lease.job_id, types=["log"])] == [3, 4]


def test_an_unknown_job_has_no_events(database: Database) -> None:
    with pytest.raises(JobNotFound), database.transaction() as session:
        events.append(session, "job_none", [Log(message="lost")])


def test_every_change_of_state_is_recorded_as_an_event(database: Database) -> None:
    lease = claim_new_job(database)
    with database.transaction() as session:
        queue.fail(session, lease, FAILURE)
        recorded = events.read(session, lease.job_id, types=["state"])
    states = [event.data.state for event in recorded]  # type: ignore[union-attr]
    assert states == [JobState.QUEUED, JobState.RUNNING, JobState.FAILED]
    assert recorded[-1].level == "error"
