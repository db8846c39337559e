"""A pause while a child runs: it stops, keeps its checkpoint, and gives the device back."""

import threading
from collections.abc import Callable

from app.core.jobs import events, queue, records as job_records
from app.core.jobs.queue import JobLease
from app.core.storage.database import Database
from tests.worker.runners.job_runs import claim, job_of
from tests.worker.runners.test_jobs import running, wait_for_step
from worker.runners.jobs import JobRunner


def pause(database: Database, lease: JobLease) -> None:
    with database.transaction() as session:
        job_records.request_pause(session, lease.job_id)


def test_a_paused_job_ends_its_child_and_keeps_its_checkpoint(
    runner: JobRunner, claimed: Callable[[str], JobLease], database: Database
) -> None:
    lease = claimed("waits")
    with running(runner, lease):
        wait_for_step(database, lease)
        pause(database, lease)
    job = job_of(database, lease)
    assert (job.state, job.phase, job.step) == ("paused", None, 1)
    assert [attempt.exit_reason for attempt in job.attempts] == ["paused"]
    with database.snapshot() as session:
        types = [event.type for event in events.read(session, lease.job_id)]
    assert types[-2:] == ["checkpoint", "state"]


def test_a_resumed_job_runs_to_its_end(
    runner: JobRunner, claimed: Callable[[str], JobLease], database: Database
) -> None:
    lease = claimed("waits-once")
    with running(runner, lease):
        wait_for_step(database, lease)
        pause(database, lease)
    with database.transaction() as session:
        job_records.resume(session, lease.job_id)
    runner.run(claim(database))
    job = job_of(database, lease)
    assert job.state == "succeeded"
    assert [attempt.exit_reason for attempt in job.attempts] == ["paused", "succeeded"]


def test_a_worker_that_stops_during_a_pause_leaves_the_job_paused(
    runner: JobRunner, claimed: Callable[[str], JobLease], database: Database, stop: threading.Event
) -> None:
    lease = claimed("waits")
    with running(runner, lease):
        wait_for_step(database, lease)
        with database.transaction() as session:
            job_records.request_pause(session, lease.job_id)
            stop.set()
    assert job_of(database, lease).state == "paused"


def test_a_child_that_ignores_a_pause_is_killed_and_the_job_is_paused(
    runner: JobRunner, claimed: Callable[[str], JobLease], database: Database
) -> None:
    lease = claimed("ignores-stop")
    with running(runner, lease):
        wait_for_step(database, lease)
        pause(database, lease)
    assert job_of(database, lease).state == "paused"


def test_a_cancel_during_a_pause_cancels(
    runner: JobRunner, claimed: Callable[[str], JobLease], database: Database
) -> None:
    lease = claimed("ignores-stop")
    with running(runner, lease):
        wait_for_step(database, lease)
        pause(database, lease)
        with database.transaction() as session:
            job_records.request_cancel(session, lease.job_id)
    assert job_of(database, lease).state == "cancelled"


def test_the_queue_goes_on_with_the_next_job_while_one_is_paused(
    runner: JobRunner, claimed: Callable[[str], JobLease], database: Database
) -> None:
    lease = claimed("waits")
    with running(runner, lease):
        wait_for_step(database, lease)
        pause(database, lease)
    runner.run(claimed("finishes"))
    with database.transaction() as session:
        assert queue.claim(session, "worker", lease_seconds=30) is None
