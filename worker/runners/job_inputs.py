"""What an attempt at a job begins with: its files on this machine, without those of earlier attempts."""

import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy.orm import Session

from app.core.adapters import records as adapter_records
from app.core.datasets import records as dataset_records
from app.core.datasets.rows import DatasetFormat
from app.core.errors import NotFound
from app.core.errors.jobs import JobFailure
from app.core.jobs import events, records as job_records
from app.core.jobs.events import Evaluation, Metrics
from app.core.jobs.queue import JobLease
from app.core.retention.folders import CHECKPOINTS
from app.core.settings import Settings
from app.core.specs.states import JobState
from app.core.storage import tables
from app.core.storage.artifact_cache import ArtifactCache
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database
from worker.processes.reports import CurvePoint, TrainingRequest


@dataclass(frozen=True)
class _JobInputs:
    """What a job reads, and how far its loss curve is recorded."""

    dataset: tables.DatasetRow
    dataset_format: DatasetFormat
    validation_dataset: tables.DatasetRow | None
    adapter: tables.AdapterRow | None
    last_point: CurvePoint | None
    submitted_at: datetime


def make_request(
    settings: Settings,
    database: Database,
    store: ArtifactStore,
    lease: JobLease,
    hold: ExitStack | None = None,
) -> TrainingRequest:
    """Fetch what the job reads, for as long as `hold` is open; returns its child's request.

    Raises JobFailure, OSError.
    """
    cache = ArtifactCache(settings.cache_folder, settings.cache_bytes)
    with database.snapshot() as session:
        inputs = _find(session, lease)
    job_folder = settings.job_folder(lease.job_id)
    job_folder.mkdir(parents=True, exist_ok=True)

    def fetch(row: tables.DatasetRow | tables.AdapterRow) -> Path:
        try:
            return store.fetch(row.artifact, cache, hold)
        except FileNotFoundError as error:
            raise JobFailure(f"The artifact store has lost {row.artifact}.") from error

    return TrainingRequest(
        job_id=lease.job_id,
        attempt=lease.attempt,
        spec=lease.spec,
        dataset=fetch(inputs.dataset),
        dataset_format=inputs.dataset_format,
        dataset_sha256=inputs.dataset.sha256,
        dataset_name=inputs.dataset.name,
        validation_dataset=fetch(inputs.validation_dataset) if inputs.validation_dataset else None,
        unused_fields=dataset_records.find_unused(inputs.dataset),
        continue_from=fetch(inputs.adapter) if inputs.adapter else None,
        submitted_at=inputs.submitted_at,
        models_folder=settings.models_folder,
        job_folder=job_folder,
        output_folder=output_folder(settings, lease),
        trials_folder=settings.cache_folder / "trials",
        path=settings.training_path,
        cpu_ranks=settings.cpu_ranks,
        ray_address=settings.ray_address,
        last_point=inputs.last_point,
    )


def output_folder(settings: Settings, lease: JobLease) -> Path:
    """Where an attempt puts its finished adapter."""
    return settings.job_folder(lease.job_id) / f"attempt-{lease.attempt}-adapter"


def remove_leftovers(settings: Settings, database: Database, store: ArtifactStore, lease: JobLease) -> None:
    """Remove undelivered adapters, and checkpoints of jobs that have succeeded or were deleted."""
    for attempt in range(1, lease.attempt):
        _adapter_id, artifact = adapter_records.name_artifact(lease.job_id, attempt)
        store.delete(artifact)
    for folder in settings.job_folder(lease.job_id).glob("attempt-*-adapter*"):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in settings.job_folder("*").parent.glob("*/checkpoints"):
        with database.snapshot() as session:
            job = session.get(tables.JobRow, folder.parent.name)
        # As where another host ended the job, or the API has no access to this disk.
        if job is None or job.state == JobState.SUCCEEDED:
            remove_checkpoints(folder.parent)


def remove_checkpoints(job_folder: Path) -> None:
    """Remove what only an interrupted job needs."""
    for name in CHECKPOINTS:
        shutil.rmtree(job_folder / name, ignore_errors=True)


def _find(session: Session, lease: JobLease) -> _JobInputs:
    """The rows of what the job reads. Raises JobFailure where one was deleted meanwhile."""
    spec = lease.spec
    point = events.read_last(session, lease.job_id, types=["metrics", "eval"])
    assert point is None or isinstance(point, Metrics | Evaluation)
    try:
        dataset = dataset_records.get_ready(session, lease.dataset_id)
        return _JobInputs(
            dataset,
            DatasetFormat(dataset.format or ""),
            dataset_records.get_ready(session, spec.validation_dataset) if spec.validation_dataset else None,
            adapter_records.get(session, spec.continue_from) if spec.continue_from else None,
            point,
            job_records.get(session, lease.job_id).created_at.astimezone(UTC),
        )
    except NotFound as error:
        raise JobFailure(f"It was deleted before the job began: {error.message}", hint=error.hint) from error
