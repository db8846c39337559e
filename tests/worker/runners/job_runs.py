"""What tests of the job runner share: a device, and a look at a job."""

from collections.abc import Iterator
from contextlib import contextmanager

from app.core.jobs import queue, records as job_records
from app.core.jobs.queue import JobLease
from app.core.storage import tables
from app.core.storage.database import Database


class FreeDevice:
    """Remembers who had it."""

    def __init__(self) -> None:
        self.lent_to: list[str] = []

    @contextmanager
    def lend(self, job_id: str) -> Iterator[bool]:
        self.lent_to.append(job_id)
        yield False


def claim(database: Database) -> JobLease:
    with database.transaction() as session:
        lease = queue.claim(session, "worker", lease_seconds=30)
    assert lease is not None
    return lease


def job_of(database: Database, lease: JobLease) -> tables.JobRow:
    with database.snapshot() as session:
        return job_records.get(session, lease.job_id)
