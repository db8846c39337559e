"""The rows of running workers: register, heartbeat, leave, and find those that are alive."""

import hashlib
import socket
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, delete, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.core.engine import base_models
from app.core.engine.base_models import DownloadedModel, LocalModel
from app.core.engine.devices import WorkerDevice
from app.core.engine.state import EngineState
from app.core.settings import Settings
from app.core.specs.tracking import Tracker
from app.core.storage import clock, tables

# An id is this, a process id of up to 7 digits, and 6 more characters: 64 are stored.
_HOST_CHARACTERS = 48


@dataclass(frozen=True)
class WorkerReport:
    """The state that a worker reports at each heartbeat."""

    id: str
    roles: list[str]
    device: dict[str, Any] = field(default_factory=dict)
    devices: list[WorkerDevice] = field(default_factory=list)
    free_gpus: int = 0
    total_gpus: int = 0
    engine_url: str | None = None
    engine_token: str | None = None
    engine_state: EngineState | None = None
    problems: list[str] = field(default_factory=list)
    downloaded: list[DownloadedModel] = field(default_factory=list)
    folders: list[LocalModel] = field(default_factory=list)
    trackers: list[Tracker] = field(default_factory=list)
    has_hub_token: bool | None = None


def name_host(name: str | None = None) -> str:
    """Returns the name of this host as ids of workers begin with it, of at most 48 characters.

    A longer one is cut, and ends with a part of its SHA-256: hosts of a cluster often differ at the end.
    """
    name = name or socket.gethostname()
    if len(name) <= _HOST_CHARACTERS:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: _HOST_CHARACTERS - 9]}-{digest}"


def host_of(worker_id: str) -> str:
    """Returns the name of the host on which a worker runs, as `name_host` gave it."""
    return worker_id.rpartition("-")[0].rpartition("-")[0]


def name_device(worker_id: str, device: WorkerDevice) -> str:
    """Returns a name of a worker's device that no other one has: a GPU's id, else its host and place."""
    return device.uuid or f"{host_of(worker_id)}/{device.kind}/{device.index}"


def heartbeat(session: Session, report: WorkerReport, *, now: datetime | None = None) -> None:
    """Add or refresh the worker's row."""
    now = now or clock.now(session)
    worker = session.get(tables.WorkerRow, report.id)
    if worker is None:
        worker = tables.WorkerRow(id=report.id, started_at=now)
        session.add(worker)
    worker.roles = report.roles
    worker.device = report.device
    worker.devices = [device.model_dump(mode="json") for device in report.devices]
    worker.free_gpus, worker.total_gpus = report.free_gpus, report.total_gpus
    worker.engine_url = report.engine_url
    worker.engine_token = report.engine_token
    worker.engine_state = report.engine_state.model_dump(mode="json") if report.engine_state else None
    worker.problems = report.problems
    worker.base_models = [model.model_dump(mode="json") for model in report.downloaded]
    worker.model_folders = [model.model_dump(mode="json") for model in report.folders]
    worker.trackers, worker.has_hub_token = list(report.trackers), report.has_hub_token
    worker.heartbeat_at = now


def leave(session: Session, worker_id: str) -> None:
    """Remove the row of a worker that shuts down."""
    session.execute(delete(tables.WorkerRow).where(tables.WorkerRow.id == worker_id))


def find(session: Session, worker_ids: Collection[str]) -> list[tables.WorkerRow]:
    """Returns the rows of these workers, as far as there are any."""
    return list(session.scalars(select(tables.WorkerRow).where(tables.WorkerRow.id.in_(worker_ids))))


def find_alive(
    session: Session, *, lease_seconds: float, role: str | None = None, now: datetime | None = None
) -> list[tables.WorkerRow]:
    """Returns the workers (with this role, if given) whose last heartbeat is within a lease, latest first."""
    since = (now or clock.now(session)) - timedelta(seconds=lease_seconds)
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


def find_local(session: Session, settings: Settings) -> list[LocalModel]:
    """Returns the allowed models in the models folders of this machine and of running workers, by name."""
    found = {
        model.name: model
        for worker in find_alive(session, lease_seconds=settings.lease_seconds)
        for model in map(LocalModel.model_validate, worker.model_folders)
        if base_models.is_allowed(model.name, settings)
    }
    found |= {model.name: model for model in base_models.find_local(settings)}
    return [found[name] for name in sorted(found)]


def find_local_names(session: Session, settings: Settings) -> list[str]:
    """Returns the names of the models that `find_local` finds."""
    return list_local_names(find_alive(session, lease_seconds=settings.lease_seconds), settings)


def list_local_names(alive: Iterable[tables.WorkerRow], settings: Settings) -> list[str]:
    """Returns the names of the allowed models in the models folders of this machine and of these workers."""
    names = {str(model["name"]) for worker in alive for model in worker.model_folders}
    allowed = {name for name in names if base_models.is_allowed(name, settings)}
    return sorted(allowed.union(base_models.find_names(settings)))


def check_base_model(session: Session, settings: Settings, name: str) -> None:
    """Raise ModelNotAllowed or UnknownModel where no machine can use this base model."""
    names = () if "/" in name else find_local_names(session, settings)
    base_models.check(name, settings, names)


def is_usable(column: InstrumentedAttribute[str], names: Collection[str]) -> ColumnElement[bool]:
    """A condition: a machine with these models in its folder can use the base model, or download it."""
    return or_(column.contains("/"), column.in_(names))


def forget_downloaded(session: Session, name: str) -> None:
    """Remove a deleted Hub model from the rows of all workers, before their next heartbeats do."""
    for worker in session.scalars(select(tables.WorkerRow)):
        worker.base_models = [model for model in worker.base_models if model["name"] != name]


def forget_dead(session: Session, *, older_than_seconds: float, now: datetime | None = None) -> None:
    """Remove the rows of workers that ended without `leave`."""
    before = (now or clock.now(session)) - timedelta(seconds=older_than_seconds)
    session.execute(delete(tables.WorkerRow).where(tables.WorkerRow.heartbeat_at < before))
