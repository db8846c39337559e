"""The rows of running workers: register, heartbeat, leave, and find those that are alive."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.core.engine.base_models import DownloadedModel
from app.core.engine.state import EngineState
from app.core.settings import Settings
from app.core.storage import tables


@dataclass(frozen=True)
class WorkerReport:
    """The state that a worker reports at each heartbeat."""

    id: str
    roles: list[str]
    device: dict[str, Any] = field(default_factory=dict)
    engine_url: str | None = None
    engine_token: str | None = None
    engine_state: EngineState | None = None
    problems: list[str] = field(default_factory=list)
    downloaded: list[DownloadedModel] = field(default_factory=list)


def heartbeat(session: Session, report: WorkerReport, *, now: datetime | None = None) -> None:
    """Add or refresh the worker's row."""
    now = now or datetime.now(UTC)
    worker = session.get(tables.WorkerRow, report.id)
    if worker is None:
        worker = tables.WorkerRow(id=report.id, started_at=now)
        session.add(worker)
    worker.roles = report.roles
    worker.device = report.device
    worker.engine_url = report.engine_url
    worker.engine_token = report.engine_token
    worker.engine_state = report.engine_state.model_dump(mode="json") if report.engine_state else None
    worker.problems = report.problems
    worker.base_models = [model.model_dump(mode="json") for model in report.downloaded]
    worker.heartbeat_at = now


def leave(session: Session, worker_id: str) -> None:
    """Remove the row of a worker that shuts down."""
    session.execute(delete(tables.WorkerRow).where(tables.WorkerRow.id == worker_id))


def find_alive(
    session: Session, *, lease_seconds: float, role: str | None = None, now: datetime | None = None
) -> list[tables.WorkerRow]:
    """Returns the workers (with this role, if given) whose last heartbeat is within a lease, latest first."""
    since = (now or datetime.now(UTC)) - timedelta(seconds=lease_seconds)
    query = select(tables.WorkerRow).where(tables.WorkerRow.heartbeat_at >= since)
    workers = session.scalars(query.order_by(tables.WorkerRow.heartbeat_at.desc()))
    return [worker for worker in workers if role is None or role in worker.roles]


def engine_states(session: Session, settings: Settings) -> list[EngineState]:
    """Returns the states of the engines of running workers, as of their last heartbeats."""
    serving = find_alive(session, lease_seconds=settings.lease_seconds, role="serve")
    return [EngineState.model_validate(worker.engine_state) for worker in serving if worker.engine_state]


def find_downloaded(session: Session, settings: Settings) -> list[DownloadedModel]:
    """Returns the Hub models on the machines of running workers, by name.

    One that several workers have is there once, with the size of the largest and the latest use.
    """
    found: dict[str, DownloadedModel] = {}
    for worker in find_alive(session, lease_seconds=settings.lease_seconds):
        for model in map(DownloadedModel.model_validate, worker.base_models):
            other = found.get(model.name, model)
            changes = {
                "size_bytes": max(model.size_bytes, other.size_bytes),
                "used_at": max(model.used_at, other.used_at),
                "is_whole": model.is_whole or other.is_whole,
            }
            found[model.name] = model.model_copy(update=changes)
    return sorted(found.values(), key=lambda model: model.name)


def forget_downloaded(session: Session, name: str) -> None:
    """Remove a deleted Hub model from the rows of all workers, before their next heartbeats do."""
    for worker in session.scalars(select(tables.WorkerRow)):
        worker.base_models = [model for model in worker.base_models if model["name"] != name]


def forget_dead(session: Session, *, older_than_seconds: float, now: datetime | None = None) -> None:
    """Remove the rows of workers that ended without `leave`."""
    before = (now or datetime.now(UTC)) - timedelta(seconds=older_than_seconds)
    session.execute(delete(tables.WorkerRow).where(tables.WorkerRow.heartbeat_at < before))
