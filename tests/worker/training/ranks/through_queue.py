"""Jobs of several processes in the queue, and what the death of a rank leaves of their first attempt."""

from pathlib import Path
from typing import Any

from app.core.jobs import events
from app.core.jobs.events import StateChange
from app.core.jobs.queue import JobLease
from app.core.settings import Settings
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from tests.factories import make_dataset, make_job
from tests.tiny_model import NAME
from tests.worker.runners.job_runs import JobRunner, claim, job_of, make_runner
from tests.worker.training.conftest import make_rows
from worker.processes.prewarmed import PrewarmedTrainer

SPEC: dict[str, Any] = {
    "base_model": NAME,
    "lora": {"r": 4},
    "training": {"max_steps": 60, "logging_steps": 1, "save_steps": 5, "learning_rate": 1e-3},
}


def claim_job(
    settings: Settings, database: Database, store: ArtifactStore, folder: Path, resources: dict[str, int]
) -> tuple[JobRunner, JobLease]:
    """A runner, and the first attempt at a job."""
    runner = make_runner(settings, database, store, PrewarmedTrainer(settings, "worker"))
    with database.transaction() as session:
        dataset = make_dataset(session, store, folder, make_rows(10)).id
        make_job(session, dataset=dataset, **SPEC, resources=resources)
    return runner, claim(database)


def read_death(database: Database, lease: JobLease) -> str:
    """The reason why the job is queued again: a process of its only attempt died."""
    job = job_of(database, lease)
    assert job.state == "queued"
    [attempt] = job.attempts
    assert attempt.exit_reason == "process_died"
    with database.snapshot() as session:
        last = events.read(session, lease.job_id, limit=1000, types=["state"])[-1].data
    assert isinstance(last, StateChange)
    return last.reason or ""
