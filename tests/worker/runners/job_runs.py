"""What tests of the job runner share: a runner, a device, and the rows of jobs."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from app.core.jobs import queue, records as job_records
from app.core.jobs.placement import Host
from app.core.jobs.queue import JobLease
from app.core.settings import Settings
from app.core.storage import tables
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from worker.processes.prewarmed import PrewarmedTrainer
from worker.runners.jobs import JobHandler, JobRunner
from worker.trackers.followers import Followers


class FreeDevice:
    """A device that nothing else uses."""

    @contextmanager
    def reserve(self, job_id: str) -> Iterator[bool]:
        yield False

    def environment(self, job_id: str) -> dict[str, str]:
        return {}

    def next_environment(self) -> dict[str, str] | None:
        return {}

    def describe_host(self) -> Host:
        return Host("worker", 1, 1, {"tiny"}, set())


def make_runner(
    settings: Settings,
    database: Database,
    store: ArtifactStore,
    prewarmed: PrewarmedTrainer,
    stop: threading.Event | None = None,
    *,
    followers: Followers | None = None,
) -> JobRunner:
    stop = stop or threading.Event()
    handler = JobHandler(
        settings,
        database,
        store,
        FreeDevice(),
        worker_id="worker",
        prewarmed=prewarmed,
        followers=followers or Followers(settings, database),
        stop=stop,
    )
    return JobRunner(settings, database, store, handler, stop=stop)


def claim(database: Database) -> JobLease:
    with database.transaction() as session:
        lease = queue.claim(session, "worker", lease_seconds=30)
    assert lease is not None
    return lease


def job_of(database: Database, lease: JobLease) -> tables.JobRow:
    with database.snapshot() as session:
        return job_records.get(session, lease.job_id)
