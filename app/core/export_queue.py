"""The durable queue of exports, as a worker uses it: claim, heartbeat, record, finish, fail, hand back.

The pattern is that of queue.py: a claim stamps a fresh lease token and a deadline, and every later write is
guarded by it. An export whose lease has expired is claimed again; one that was cancelled or deleted has no
lease, which its worker learns as LeaseLost. Nothing here commits.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import and_, or_, select, update
from sqlalchemy.orm import Session

from app.core import tables
from app.core.errors import LeaseLost
from app.core.export_results import Agreement, ExportedFile
from app.core.export_specs import ExportSpec, export_spec_adapter
from app.core.queue import Failure
from app.core.states import ExportPhase, ExportState


@dataclass(frozen=True)
class ExportLease:
    """A worker's right to run one export."""

    export_id: str
    token: str
    adapter_id: str
    spec: ExportSpec

    @property
    def artifact(self) -> str:
        """The key of this attempt's files: another worker may be at the same export."""
        return f"exports/{self.export_id}/{self.token}"


@dataclass(frozen=True)
class ExportResult:
    """What an export became."""

    files: Sequence[ExportedFile]
    agreement: Agreement
    notes: Sequence[str]
    url: str | None = None


def claim(
    session: Session, *, lease_seconds: float, max_attempts: int, now: datetime | None = None
) -> ExportLease | None:
    """Take the oldest export that nobody is at, or None; one that was lost too often fails instead."""
    now = now or _now()
    is_free = or_(
        tables.Export.state == ExportState.QUEUED,
        and_(tables.Export.state == ExportState.RUNNING, tables.Export.lease_expires_at < now),
    )
    export_id = session.scalar(
        select(tables.Export.id)
        .where(is_free)
        .order_by(tables.Export.created_at, tables.Export.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if export_id is None:
        return None
    token = secrets.token_hex(16)
    taken = session.scalar(
        update(tables.Export)
        .where(tables.Export.id == export_id, is_free)
        .values(
            state=ExportState.RUNNING,
            phase=ExportPhase.PREPARING,
            progress=0.0,
            lease_token=token,
            lease_expires_at=now + timedelta(seconds=lease_seconds),
            attempts=tables.Export.attempts + 1,
            started_at=now,
        )
        .returning(tables.Export.attempts)
        .execution_options(synchronize_session=False)
    )
    if taken is None:
        return None
    row = session.get_one(tables.Export, export_id, populate_existing=True)
    lease = ExportLease(export_id, token, row.adapter_id, export_spec_adapter.validate_python(row.spec))
    if taken > max_attempts:
        fail(session, lease, _lost(max_attempts), now=now)
        return None
    return lease


def heartbeat(
    session: Session, lease: ExportLease, *, lease_seconds: float, now: datetime | None = None
) -> None:
    """Extend the lease. Raises LeaseLost."""
    _guarded_update(session, lease, lease_expires_at=(now or _now()) + timedelta(seconds=lease_seconds))


def check(session: Session, lease: ExportLease) -> None:
    """Raise LeaseLost where the export was cancelled, deleted, or taken by another worker."""
    held = select(tables.Export.id).where(
        tables.Export.id == lease.export_id, tables.Export.lease_token == lease.token
    )
    if session.scalar(held) is None:
        raise _lease_lost(lease)


def record(session: Session, lease: ExportLease, *, phase: ExportPhase, progress: float) -> None:
    """Write down how far the export is. Raises LeaseLost."""
    _guarded_update(session, lease, phase=phase, progress=progress)


def finish(
    session: Session, lease: ExportLease, result: ExportResult, *, now: datetime | None = None
) -> None:
    """The files are in the store, or on the Hub. Raises LeaseLost."""
    _end(
        session,
        lease,
        ExportState.SUCCEEDED,
        now,
        progress=1.0,
        files=[file.model_dump(mode="json") for file in result.files],
        agreement=result.agreement.model_dump(mode="json"),
        notes=list(result.notes),
        url=result.url,
        artifact=lease.artifact if result.files else None,
    )


def fail(
    session: Session,
    lease: ExportLease,
    failure: Failure,
    *,
    agreement: Agreement | None = None,
    now: datetime | None = None,
) -> None:
    """The export failed, with the reason, and what the comparison found where it came to one. Raises
    LeaseLost.
    """
    error = {"code": failure.code, "message": failure.message, "hint": failure.hint}
    found = agreement.model_dump(mode="json") if agreement else None
    _end(session, lease, ExportState.FAILED, now, error=error, agreement=found)


def hand_back(session: Session, lease: ExportLease) -> None:
    """Let go of an export because this worker stops; it does not count as an attempt. Raises LeaseLost."""
    _requeue(session, lease, attempts=tables.Export.attempts - 1)


def give_up_attempt(session: Session, lease: ExportLease, failure: Failure, *, max_attempts: int) -> None:
    """The child died: let the export be claimed again, or fail it. Raises LeaseLost."""
    attempts = session.scalar(select(tables.Export.attempts).where(tables.Export.id == lease.export_id))
    if attempts is not None and attempts < max_attempts:
        _requeue(session, lease)
    else:
        fail(session, lease, failure)


def find_tokens(session: Session) -> set[str]:
    """The tokens of all exports under way."""
    return {token for token in session.scalars(select(tables.Export.lease_token)) if token}


def find_resumable(session: Session) -> set[str]:
    """The exports whose merged model may still be of use."""
    states = (ExportState.QUEUED, ExportState.RUNNING, ExportState.FAILED)
    return set(session.scalars(select(tables.Export.id).where(tables.Export.state.in_(states))))


def find_artifacts(session: Session) -> set[str]:
    """The keys of the files of all exports that have any."""
    return {artifact for artifact in session.scalars(select(tables.Export.artifact)) if artifact}


def _requeue(session: Session, lease: ExportLease, **columns: object) -> None:
    free: dict[str, object] = {"state": ExportState.QUEUED, "phase": None, "progress": 0.0}
    _guarded_update(session, lease, **free, lease_token=None, lease_expires_at=None, **columns)


def _end(
    session: Session, lease: ExportLease, state: ExportState, now: datetime | None, **columns: object
) -> None:
    over: dict[str, object] = {"state": state, "phase": None, "finished_at": now or _now()}
    _guarded_update(session, lease, **over, lease_token=None, lease_expires_at=None, **columns)


def _guarded_update(session: Session, lease: ExportLease, **columns: object) -> None:
    changed = session.scalar(
        update(tables.Export)
        .where(tables.Export.id == lease.export_id, tables.Export.lease_token == lease.token)
        .values(**columns)
        .returning(tables.Export.id)
        .execution_options(synchronize_session=False)
    )
    if changed is None:
        raise _lease_lost(lease)


def _lease_lost(lease: ExportLease) -> LeaseLost:
    return LeaseLost(f"Export {lease.export_id} is not this worker's any more.")


def _lost(attempts: int) -> Failure:
    return Failure(
        "worker_lost",
        f"The worker stopped answering during this export, {attempts} times.",
        "Look at the worker's own log; POST /exports/{id}/retry tries again.",
    )


def _now() -> datetime:
    return datetime.now(UTC)
