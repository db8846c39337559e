"""What is stored of jobs and other work that has ended, by kind: its size, its deletion; base models.

A job that has not ended loses nothing. Deletions are in short transactions; files go after the commit.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

from sqlalchemy import Select, delete as sql_delete, func, select, update
from sqlalchemy.orm import Session

from app.core.base_models.needs import find_needs, find_unneeded
from app.core.engine import workers
from app.core.errors.evaluations import EvaluationNotEnded, EvaluationNotFound
from app.core.evaluations import records as evaluation_records
from app.core.exports import records as export_records
from app.core.jobs import checkpoints
from app.core.retention import folders
from app.core.settings import Settings
from app.core.specs.states import ENDED
from app.core.storage import tables
from app.core.storage.artifacts import ArtifactStore
from app.core.storage.database import Database


class StoredKind(StrEnum):
    """Kinds of things that grow for ever."""

    CHECKPOINTS = "checkpoints"
    TENSORBOARD = "tensorboard"
    LOGS = "logs"
    EVENTS = "events"
    EXPORTS = "exports"
    EVALUATIONS = "evaluations"
    BASE_MODELS = "base_models"


@dataclass(frozen=True)
class Stored:
    """How much of a kind there is, and how much of it is of what has ended. Sizes are in bytes."""

    kind: StoredKind
    count: int
    size_bytes: int | None
    deletable_count: int
    deletable_bytes: int | None
    keep_days: float


def measure(settings: Settings, database: Database) -> list[Stored]:
    """Returns every kind. The database does not know the size of events and evaluations."""
    with database.snapshot() as session:
        ended = set(session.scalars(select(tables.JobRow.id).where(tables.JobRow.state.in_(ENDED))))
        events = _count_events(session)
        exports = _measure_exports(session)
        evaluations = evaluation_records.count_by_state(session)
        stored = {StoredKind.CHECKPOINTS: checkpoints.find_stored_sizes(session)}
        base_models = _measure_base_models(session, settings)
    return [
        *(_measure_parts(settings, kind, ended, stored.get(kind, {})) for kind in _JOB_PARTS),
        Stored(StoredKind.EVENTS, events[0], None, events[1], None, settings.keep_events_days),
        Stored(StoredKind.EXPORTS, *exports, settings.keep_exports_days),
        Stored(
            StoredKind.EVALUATIONS,
            sum(evaluations.values()),
            None,
            sum(count for state, count in evaluations.items() if state.has_ended),
            None,
            settings.keep_evaluations_days,
        ),
        Stored(StoredKind.BASE_MODELS, *base_models, settings.keep_base_models_days),
    ]


def remove(
    kind: StoredKind,
    settings: Settings,
    database: Database,
    store: ArtifactStore,
    *,
    older_than: timedelta = timedelta(0),
    now: datetime | None = None,
) -> tuple[int, int]:
    """Delete a kind, of what ended longer ago than `older_than`. Returns how many and their size in bytes."""
    before = (now or datetime.now(UTC)) - older_than
    assert kind is not StoredKind.BASE_MODELS, "engines delete them: app/api/base_models/removal.py"
    if kind is StoredKind.EXPORTS:
        return _remove_exports(database, store, before)
    if kind is StoredKind.EVALUATIONS:
        return _remove_evaluations(database, before), 0
    if kind is StoredKind.EVENTS:
        return _remove_events(database, before), 0
    return _remove_parts(kind, settings, database, store, before)


def remove_aged(
    settings: Settings, database: Database, store: ArtifactStore, *, now: datetime | None = None
) -> dict[StoredKind, int]:
    """Delete what is older than the settings say. Returns how many of each kind."""
    days = {kind: keep_days(kind, settings) for kind in StoredKind if kind is not StoredKind.BASE_MODELS}
    removed = {
        kind: remove(kind, settings, database, store, older_than=timedelta(days=most), now=now)[0]
        for kind, most in days.items()
        if most
    }
    return {kind: count for kind, count in removed.items() if count}


def keep_days(kind: StoredKind, settings: Settings) -> float:
    """Returns after how many days a kind is deleted; 0: never."""
    days: float = getattr(settings, f"keep_{kind}_days")
    return days


def _find_job_parts(folder: Path, kind: StoredKind) -> list[Path]:
    if kind is StoredKind.LOGS:
        return folders.find_logs(folder)
    return folders.find_parts(folder, _JOB_PARTS[kind])


_JOB_PARTS: dict[StoredKind, tuple[str, ...]] = {
    StoredKind.CHECKPOINTS: folders.CHECKPOINTS,
    StoredKind.TENSORBOARD: folders.TENSORBOARD,
    StoredKind.LOGS: (),
}


def _measure_parts(
    settings: Settings, kind: StoredKind, ended: set[str], stored_bytes: Mapping[str, int]
) -> Stored:
    """Measure what jobs have in folders here, and in the artifact store those of `stored_bytes`."""
    count = size = deletable_count = deletable_bytes = 0
    for job_id in _find_job_ids(settings) | stored_bytes.keys():
        parts = _find_job_parts(settings.job_folder(job_id), kind)
        found = sum(map(folders.size_of, parts)) + stored_bytes.get(job_id, 0)
        has_some = bool(parts) or job_id in stored_bytes
        count, size = count + has_some, size + found
        if job_id in ended and has_some:
            deletable_count, deletable_bytes = deletable_count + 1, deletable_bytes + found
    return Stored(kind, count, size, deletable_count, deletable_bytes, keep_days(kind, settings))


def _find_job_ids(settings: Settings) -> set[str]:
    return {folder.name for folder in settings.job_folder("x").parent.glob("job_*")}


def _remove_parts(
    kind: StoredKind, settings: Settings, database: Database, store: ArtifactStore, before: datetime
) -> tuple[int, int]:
    count = size = 0
    stored_bytes: dict[str, int] = {}
    if kind is StoredKind.CHECKPOINTS:
        with database.snapshot() as session:
            stored_bytes = checkpoints.find_stored_sizes(session)
    for job_id in _find_job_ids(settings) | stored_bytes.keys():
        folder = settings.job_folder(job_id)
        if job_id not in stored_bytes and not _find_job_parts(folder, kind):
            continue
        with database.transaction() as session:
            if not _lock_ended(session, job_id, before):
                continue
            if kind is StoredKind.CHECKPOINTS:
                checkpoints.forget_all(session, job_id)
            doomed = folders.set_aside(_find_job_parts(folder, kind))
        if job_id in stored_bytes:
            store.discard(checkpoints.name_folder(job_id))
            size += stored_bytes[job_id]
        count, size = count + bool(doomed or job_id in stored_bytes), size + folders.delete(doomed)
    return count, size


def _ids_of_ended(before: datetime) -> Select[str]:
    return select(tables.JobRow.id).where(tables.JobRow.state.in_(ENDED), tables.JobRow.finished_at <= before)


def _lock_ended(session: Session, job_id: str, before: datetime) -> bool:
    """Whether the job has ended, and stays so until the transaction ends: a retry waits for it."""
    locked = _ids_of_ended(before).where(tables.JobRow.id == job_id).with_for_update()
    return session.scalar(locked) is not None


def _count_events(session: Session) -> tuple[int, int]:
    counted = select(func.count()).select_from(tables.EventRow)
    ended = counted.join(tables.JobRow, tables.JobRow.id == tables.EventRow.job_id)
    return session.scalar(counted) or 0, session.scalar(ended.where(tables.JobRow.state.in_(ENDED))) or 0


def _remove_events(database: Database, before: datetime) -> int:
    """Delete the events of ended jobs, a job a transaction. Returns how many."""
    with database.snapshot() as session:
        has_events = select(tables.EventRow.job_id).where(tables.EventRow.job_id == tables.JobRow.id).exists()
        jobs = list(session.scalars(_ids_of_ended(before).where(has_events)))
    count = 0
    for job_id in jobs:
        with database.transaction() as session:
            if not _lock_ended(session, job_id, before):
                continue
            own = tables.EventRow.job_id == job_id
            count += session.scalar(select(func.count()).select_from(tables.EventRow).where(own)) or 0
            session.execute(sql_delete(tables.EventRow).where(own))
            # A retry counts from 1 again: who follows it knows of no gap.
            session.execute(
                update(tables.JobRow)
                .where(tables.JobRow.id == job_id)
                .values(last_event_seq=0, result_bytes=None)
            )
    return count


def _measure_exports(session: Session) -> tuple[int, int, int, int]:
    rows = session.execute(select(tables.ExportRow.state, tables.ExportRow.files)).all()
    sizes = [(state, sum(int(file["size_bytes"]) for file in files)) for state, files in rows]
    ended = [size for state, size in sizes if state in ENDED]
    return len(sizes), sum(size for _, size in sizes), len(ended), sum(ended)


def _measure_base_models(session: Session, settings: Settings) -> tuple[int, int, int, int]:
    found = workers.find_downloaded(session, settings)
    unneeded = find_unneeded(found, find_needs(session), workers.engine_states(session, settings))
    sizes, deletable = ([model.size_bytes for model in models] for models in (found, unneeded))
    return len(sizes), sum(sizes), len(deletable), sum(deletable)


def _remove_evaluations(database: Database, before: datetime) -> int:
    """Delete evaluations that have ended, one a transaction. Returns how many."""
    row = tables.EvaluationRow
    with database.snapshot() as session:
        ids = list(session.scalars(select(row.id).where(row.state.in_(ENDED), row.finished_at <= before)))
    count = 0
    for evaluation_id in ids:
        # One that was retried or deleted meanwhile is not this one's to delete.
        with suppress(EvaluationNotEnded, EvaluationNotFound), database.transaction() as session:
            evaluation_records.delete(session, evaluation_id)
            count += 1
    return count


def _remove_exports(database: Database, store: ArtifactStore, before: datetime) -> tuple[int, int]:
    with database.snapshot() as session:
        old = select(tables.ExportRow.id).where(
            tables.ExportRow.state.in_(ENDED), tables.ExportRow.finished_at <= before
        )
        ids = list(session.scalars(old))
    size = 0
    for export_id in ids:
        with database.transaction() as session:
            row = export_records.get(session, export_id)
            size += sum(int(file["size_bytes"]) for file in row.files)
            folder = export_records.delete(session, export_id)
        store.discard(folder)
    return len(ids), size
