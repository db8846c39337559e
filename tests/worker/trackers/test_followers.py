"""Trackers that hang, fail, come back or are not installed, and jobs that go on all the same."""

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from app.core.jobs import queue
from app.core.jobs.events import Warn
from app.core.jobs.queue import JobLease
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.worker.runners.job_runs import job_of, make_runner
from tests.worker.trackers.recording import events_of, metrics, record, runs_of, succeed, wait_for_runs
from worker.processes.prewarmed import PrewarmedTrainer
from worker.trackers import follower
from worker.trackers.followers import Followers

Claimed = Callable[..., JobLease]


@pytest.fixture
def impatient(settings: Settings) -> Settings:
    return settings.model_copy(update={"tracker_end_seconds": 1.0})


@pytest.fixture
def followers(impatient: Settings, database: Database) -> Iterator[Followers]:
    made = Followers(impatient, database, module="tests.scripted.tracking")
    yield made
    made.close()


def claim_for(claimed: Claimed, script: str, **spec: Any) -> JobLease:
    return claimed("helper", report_to=["tensorboard", "mlflow"], tracking={"project": script}, **spec)


def wait_for_mlflow(database: Database, lease: JobLease, look: Callable[[Any], Any]) -> None:
    only = lease.spec.model_copy(update={"report_to": ["mlflow"]})
    wait_for_runs(database, JobLease(**{**vars(lease), "spec": only}), look)


def warnings_of(database: Database, lease: JobLease) -> list[Warn]:
    return [event.data for event in events_of(database, lease, "warning") if isinstance(event.data, Warn)]


def tracked(settings: Settings, lease: JobLease) -> list[Any]:
    """What the scripted tracker got: steps, and the job's state at the end."""
    path = settings.job_folder(lease.job_id) / "tracked.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("script", "delivered", "lacks"), [("hangs", 0, "lacks 1 points"), ("hangs-at-the-end", 1, "may lack")]
)
def test_a_tracker_that_hangs_costs_one_warning_and_its_own_time(
    script: str, delivered: int, lacks: str, followers: Followers, claimed: Claimed, database: Database
) -> None:
    lease = claim_for(claimed, script)
    followers.follow(lease)
    record(database, lease, metrics(1))
    wait_for_mlflow(database, lease, lambda run: run.points == delivered)
    succeed(database, lease)  # which waits for nothing
    wait_for_mlflow(database, lease, lambda run: lacks in (run.problem or ""))
    [warning] = warnings_of(database, lease)
    assert (warning.code, job_of(database, lease).state) == ("tracker_failed", "succeeded")
    assert "no reply within" in warning.message
    assert not runs_of(database, lease)[0].is_complete


def test_a_tracker_that_comes_back_gets_every_point(
    followers: Followers,
    claimed: Claimed,
    database: Database,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(follower, "_FIRST_RETRY_SECONDS", 0.05)
    lease = claim_for(claimed, "fails-once")
    record(database, lease, metrics(1), metrics(2))
    followers.follow(lease)
    wait_for_mlflow(database, lease, lambda run: run.points == 2)
    record(database, lease, *[metrics(step) for step in range(3, 120)])
    succeed(database, lease)
    wait_for_mlflow(database, lease, lambda run: run.is_complete)
    assert tracked(settings, lease) == [*range(1, 120), "succeeded"]
    [warning] = warnings_of(database, lease)
    assert "[secret]@tracker refused" in warning.message
    [run] = runs_of(database, lease)
    assert (run.problem, run.run_id, run.url) == (None, "run-1", "https://tracker/run-1")


def test_a_worker_without_the_package_says_so(
    impatient: Settings, claimed: Claimed, database: Database
) -> None:
    lease = claim_for(claimed, "any")
    Followers(impatient, database, installed=[]).follow(lease)
    wait_for_mlflow(database, lease, lambda run: run.problem)
    [warning] = warnings_of(database, lease)
    assert warning.code == "tracker_missing"
    assert "tunesmith[mlflow]" in warning.message


def test_a_worker_that_stops_ends_the_run_as_one_that_goes_on_later(
    followers: Followers, claimed: Claimed, database: Database, settings: Settings
) -> None:
    lease = claim_for(claimed, "any")
    followers.follow(lease)
    record(database, lease, metrics(1))
    wait_for_mlflow(database, lease, lambda run: run.points)
    with database.transaction() as session:
        queue.release(session, lease, reason="The worker is shutting down.")
    followers.close()
    assert tracked(settings, lease) == [1, "queued"]


def test_the_job_runner_has_its_jobs_followed(
    impatient: Settings, database: Database, store: ArtifactStore, claimed: Claimed, settings: Settings
) -> None:
    followers = Followers(impatient, database, module="tests.scripted.tracking")
    prewarmed = PrewarmedTrainer(impatient, "worker", module="tests.scripted.training")
    runner = make_runner(impatient, database, store, prewarmed, threading.Event(), followers=followers)
    lease = claimed("finishes", report_to=["trackio"])
    runner.run(lease)
    wait_for_runs(database, lease, lambda run: run.is_complete)
    assert tracked(settings, lease) == [1, 10, "succeeded"]
