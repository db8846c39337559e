"""GET /status: workers, queue, storage, disks and versions. Readiness is in `health.py`."""

import platform
import shutil
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fastapi import APIRouter
from pydantic import BaseModel, Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.api.deps import ServicesDep
from app.api.schemas import WorkerRead
from app.core.engine import workers
from app.core.jobs import records as job_records
from app.core.settings import Settings
from app.core.specs.states import JobState
from app.core.storage import tables
from app.core.work import turns

router = APIRouter(tags=["Service"])

_STARTED_AT = datetime.now(UTC)


class QueueStatusRead(BaseModel):
    """Jobs, counted."""

    by_state: dict[JobState, int] = Field(description="How many jobs are in each state.")
    oldest_queued_at: datetime | None = Field(
        description="When the job that waits longest was submitted; null: none waits."
    )
    max_queued: int = Field(description="So many may wait; one more is refused.")


class StorageRead(BaseModel):
    """Things of one kind that are kept."""

    count: int = Field(description="How many there are.")
    size_bytes: int = Field(description="Size of their files together.")


class DiskRead(BaseModel):
    """A folder, and the disk that it is on."""

    folder: str = Field(description="What it holds.", examples=["data"])
    path: str = Field(description="Where it is on the API's machine.")
    total_bytes: int = Field(description="Size of the disk.")
    free_bytes: int = Field(description="Free on it.")


class VersionsRead(BaseModel):
    """What runs here; workers tell theirs in `device`."""

    tunesmith: str = Field(description="This program's version.")
    python: str = Field(description="The API's Python.")
    database: str = Field(description="The kind of database.", examples=["sqlite", "postgresql"])


class StatusRead(BaseModel):
    """The whole box at a glance."""

    started_at: datetime = Field(description="When this API process started.")
    versions: VersionsRead = Field(description="What runs here.")
    workers: list[WorkerRead] = Field(
        description="Workers that are alive. `device` has its name and memory, and as of the last heartbeat "
        "`free_bytes`, `utilization_percent` and on a GPU `temperature_celsius`."
    )
    queue: QueueStatusRead = Field(description="Jobs, counted.")
    datasets: StorageRead = Field(description="Datasets that are kept.")
    adapters: StorageRead = Field(description="Adapters that are kept.")
    disks: list[DiskRead] = Field(description="Disks that fill up as jobs run.")


class WorkersRead(BaseModel):
    """The workers that are alive."""

    data: list[WorkerRead] = Field(description="The one that was heard of last is first.")


@router.get("/status", summary="Status of the box")
def show_status(services: ServicesDep) -> StatusRead:
    """Workers and their devices, memory, the queue, what is stored, disks, versions."""
    settings = services.settings
    with services.database.snapshot() as session:
        alive = workers.find_alive(session, lease_seconds=settings.lease_seconds)
        return StatusRead(
            started_at=_STARTED_AT,
            versions=_versions(services.database.engine.dialect.name),
            workers=[WorkerRead.from_row(row) for row in alive],
            queue=QueueStatusRead(
                by_state=job_records.count_by_state(session),
                oldest_queued_at=turns.find_oldest(session, tables.JobRow),
                max_queued=settings.max_queued_jobs,
            ),
            datasets=_count(session, tables.DatasetRow),
            adapters=_count(session, tables.AdapterRow),
            disks=_disks(settings),
        )


@router.get("/workers", summary="Workers and their devices")
def list_workers(services: ServicesDep) -> WorkersRead:
    """Workers that are alive, with every device of their hosts: free, training, serving."""
    with services.database.snapshot() as session:
        alive = workers.find_alive(session, lease_seconds=services.settings.lease_seconds)
        return WorkersRead(data=[WorkerRead.from_row(row) for row in alive])


def _versions(database: str) -> VersionsRead:
    try:
        own = version("tunesmith")
    except PackageNotFoundError:  # the image holds the code, not an installed package
        own = "0.1.0"
    return VersionsRead(tunesmith=own, python=platform.python_version(), database=database)


def _count(session: Session, table: type[tables.DatasetRow | tables.AdapterRow]) -> StorageRead:
    count, size = session.execute(select(func.count(), func.coalesce(func.sum(table.size_bytes), 0))).one()
    return StorageRead(count=count, size_bytes=int(size))


def _disks(settings: Settings) -> list[DiskRead]:
    found = [_disk("data", settings.data_dir), _disk("models", settings.models_folder)]
    return [disk for disk in found if disk]


def _disk(folder: str, path: Path) -> DiskRead | None:
    try:
        usage = shutil.disk_usage(path)
    except OSError:  # the folder does not exist yet
        return None
    return DiskRead(folder=folder, path=str(path), total_bytes=usage.total, free_bytes=usage.free)
