"""The job runner against a real child process that follows a script."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from app.core.adapters import records as adapter_records
from app.core.jobs import events, queue, records as job_records
from app.core.jobs.queue import JobLease
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.children import find_children
from tests.worker.runners.job_runs import job_of
from worker.runners.jobs import JobRunner


def event_types(database: Database, lease: JobLease) -> list[str]:
    with database.snapshot() as session:
        return [event.type for event in events.read(session, lease.job_id)]


@contextmanager
def running(runner: JobRunner, lease: JobLease) -> Iterator[None]:
    """Runs the job in a thread; leaves when the job has ended."""
    thread = threading.Thread(target=runner.run, args=(lease,))
    thread.start()
    yield
    thread.join(60)
    assert not thread.is_alive()


def wait_for_step(database: Database, lease: JobLease) -> None:
    """Until the child has reported its first step."""
    tick = threading.Event()
    for _ in range(600):
        if job_of(database, lease).step:
            return
        tick.wait(0.05)
    raise AssertionError("the child reported no step")


def test_a_finished_child_makes_an_adapter(
    runner: JobRunner, claimed: Callable[[str], JobLease], database: Database, store: ArtifactStore
) -> None:
    lease = claimed("finishes")
    runner.run(lease)
    job = job_of(database, lease)
    assert (job.state, job.step, job.loss) == ("succeeded", 10, 0.5)
    assert [attempt.exit_reason for attempt in job.attempts] == ["succeeded"]
    with database.snapshot() as session:
        adapter = adapter_records.get(session, "finishes")
    assert adapter.size_bytes == len(b"weights")
    # The scripted child writes no record.
    assert adapter.general_path is None
    assert adapter.artifact == runner.handler.artifact(lease)
    assert store.list_files(adapter.artifact) == ["adapter_model.safetensors"]
    assert event_types(database, lease)[-1] == "state"


def test_a_failed_child_fails_the_job_with_its_reason(
    runner: JobRunner, claimed: Callable[[str], JobLease], database: Database
) -> None:
    lease = claimed("fails")
    runner.run(lease)
    job = job_of(database, lease)
    assert (job.state, job.error_code, job.error_hint) == ("failed", "model_gated", "Set HF_TOKEN.")


def test_a_child_that_dies_is_tried_again(
    runner: JobRunner, claimed: Callable[[str], JobLease], database: Database
) -> None:
    lease = claimed("dies-once")
    runner.run(lease)
    assert job_of(database, lease).state == "queued"
    with database.transaction() as session:
        second = queue.claim(session, "worker", lease_seconds=30)
    assert second is not None
    runner.run(second)
    reasons = [attempt.exit_reason for attempt in job_of(database, lease).attempts]
    assert reasons == ["process_died", "succeeded"]


def test_a_child_that_always_dies_fails_the_job_with_its_last_words(
    runner: JobRunner, claimed: Callable[[str], JobLease], database: Database
) -> None:
    lease: JobLease | None = claimed("dies")
    while lease is not None:
        last = lease
        runner.run(lease)
        with database.transaction() as session:
            lease = queue.claim(session, "worker", lease_seconds=30)
    job = job_of(database, last)
    assert (job.state, len(job.attempts)) == ("failed", 3)
    assert "about to die" in (job.error_message or "")


def test_a_killed_child_is_named_with_its_signal(
    runner: JobRunner, claimed: Callable[[str], JobLease], database: Database
) -> None:
    lease = claimed("waits")
    with running(runner, lease):
        wait_for_step(database, lease)
        os.kill(_child_pid(), signal.SIGKILL)
    assert job_of(database, lease).state == "queued"
    with database.snapshot() as session:
        reason = events.read(session, lease.job_id)[-1].data.reason  # type: ignore[union-attr]
    assert "SIGKILL" in reason


def test_cancel_ends_the_child_and_the_job(
    runner: JobRunner, claimed: Callable[[str], JobLease], database: Database
) -> None:
    lease = claimed("waits")
    with running(runner, lease):
        wait_for_step(database, lease)
        with database.transaction() as session:
            job_records.request_cancel(session, lease.job_id)
    job = job_of(database, lease)
    assert (job.state, job.attempts[0].exit_reason) == ("cancelled", "cancelled")
    assert "checkpoint" in event_types(database, lease)


def test_a_child_that_ignores_a_cancel_is_killed(
    runner: JobRunner, claimed: Callable[[str], JobLease], database: Database
) -> None:
    lease = claimed("ignores-stop")
    with running(runner, lease):
        wait_for_step(database, lease)
        with database.transaction() as session:
            job_records.request_cancel(session, lease.job_id)
    assert job_of(database, lease).state == "cancelled"


def test_a_stopping_worker_hands_the_job_back(
    runner: JobRunner, claimed: Callable[[str], JobLease], database: Database, stop: threading.Event
) -> None:
    lease = claimed("waits")
    with running(runner, lease):
        wait_for_step(database, lease)
        stop.set()
    job = job_of(database, lease)
    assert (job.state, job.lost_attempts) == ("queued", 0)
    assert job.attempts[0].exit_reason == "handed_back"


def test_a_lost_lease_drops_the_result(
    runner: JobRunner, claimed: Callable[[str], JobLease], database: Database
) -> None:
    lease = claimed("waits")
    with running(runner, lease):
        wait_for_step(database, lease)
        child = _child_pid()
        with database.transaction() as session:
            later = datetime.now(UTC) + timedelta(hours=1)
            queue.requeue_expired(session, max_lost_attempts=3, now=later)
            second = queue.claim(session, "another", lease_seconds=30)
    assert second is not None
    job = job_of(database, lease)
    assert (job.state, job.lease_token) == ("running", second.token)
    assert not Path(f"/proc/{child}").exists()


def test_a_child_that_dies_in_the_middle_of_a_report_is_tried_again(
    runner: JobRunner, claimed: Callable[[str], JobLease], database: Database
) -> None:
    lease = claimed("dies-in-mid-report")
    runner.run(lease)
    job = job_of(database, lease)
    assert (job.state, job.attempts[0].exit_reason, job.step) == ("queued", "process_died", 1)


def _child_pid() -> int:
    """The one training child of this process."""
    [child] = find_children("tests.scripted.training")
    return int(child.pid)
