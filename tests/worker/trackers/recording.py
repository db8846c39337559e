"""What tests of trackers share: events of a job, and its runs in trackers."""

from collections.abc import Callable
from typing import Any

from app.core.jobs import events, queue, records as job_records
from app.core.jobs.events import AnyEventData, Event, Metrics
from app.core.jobs.queue import JobLease
from app.core.storage import tables
from app.core.storage.database import Database
from tests.waiting import wait_for


def metrics(step: int, **fields: Any) -> Metrics:
    defaults: dict[str, Any] = {
        "total_steps": 4,
        "epoch": step / 4,
        "loss": 2 - step / 4,
        "tokens": 10 * step,
    }
    return Metrics(step=step, learning_rate=1e-4 * step, grad_norm=0.5, **{**defaults, **fields})


def record(database: Database, lease: JobLease, *entries: AnyEventData) -> None:
    with database.transaction() as session:
        queue.record(session, lease, list(entries))


def succeed(database: Database, lease: JobLease) -> None:
    with database.transaction() as session:
        queue.succeed(session, lease, adapter_name="helper")


def runs_of(database: Database, lease: JobLease) -> list[tables.TrackedRunRow]:
    with database.snapshot() as session:
        return job_records.get(session, lease.job_id).tracked_runs


def events_of(database: Database, lease: JobLease, kind: str) -> list[Event]:
    with database.snapshot() as session:
        return events.read(session, lease.job_id, limit=1000, types=[kind])


def wait_for_runs(database: Database, lease: JobLease, look: Callable[[tables.TrackedRunRow], Any]) -> None:
    """Until all trackers of the job have got so far."""

    def are_so_far() -> bool:
        runs = runs_of(database, lease)
        return len(runs) == len(lease.spec.report_to) and all(map(look, runs))

    wait_for(are_so_far, "the trackers")
