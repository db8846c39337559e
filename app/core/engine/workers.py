"""The rows of running workers: register, heartbeat, leave, and find those that are alive."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

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


def forget_dead(session: Session, *, older_than_seconds: float, now: datetime | None = None) -> None:
    """Remove the rows of workers that ended without `leave`."""
    before = (now or datetime.now(UTC)) - timedelta(seconds=older_than_seconds)
    session.execute(delete(tables.WorkerRow).where(tables.WorkerRow.heartbeat_at < before))
