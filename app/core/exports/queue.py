"""The durable queue of exports, as a worker uses it: claim, heartbeat, record, finish, fail, hand back.

Built on leases.py. An export whose lease has expired is claimed again; one that was cancelled or deleted has
no lease, which its worker learns as LeaseLost. Nothing here commits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from app.core.exports.results import Agreement, ExportedFile
from app.core.specs.export import ExportSpec, export_spec_adapter
from app.core.specs.states import ExportPhase, ExportState
from app.core.storage import tables
from app.core.work.failures import Failure
from app.core.work.leases import RELEASED, Leases

_LEASES = Leases(tables.ExportRow, tables.ExportRow.id, "export")


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
    now = now or datetime.now(UTC)
    is_free = or_(
        tables.ExportRow.state == ExportState.QUEUED,
        and_(tables.ExportRow.state == ExportState.RUNNING, tables.ExportRow.lease_expires_at < now),
    )
    claimed = _LEASES.claim(
        session,
        is_free=is_free,
        lease_seconds=lease_seconds,
        now=now,
        state=ExportState.RUNNING,
        phase=ExportPhase.PREPARING,
        progress=0.0,
        attempts=tables.ExportRow.attempts + 1,
        started_at=now,
    )
    if claimed is None:
        return None
    row, token = claimed
    lease = ExportLease(row.id, token, row.adapter_id, export_spec_adapter.validate_python(row.spec))
    if row.attempts > max_attempts:
        fail(session, lease, _lost(max_attempts), now=now)
        return None
    return lease


def heartbeat(
    session: Session, lease: ExportLease, *, lease_seconds: float, now: datetime | None = None
) -> None:
    """Extend the lease. Raises LeaseLost."""
    _LEASES.extend(session, lease.export_id, lease.token, lease_seconds=lease_seconds, now=now)


def check(session: Session, lease: ExportLease) -> None:
    """Raise LeaseLost where the export was cancelled, deleted, or taken by another worker."""
    _LEASES.check(session, lease.export_id, lease.token)


def record(session: Session, lease: ExportLease, *, phase: ExportPhase, progress: float) -> None:
    """Write down how far the export is. Raises LeaseLost."""
    _LEASES.update(session, lease.export_id, lease.token, phase=phase, progress=progress)


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
    _requeue(session, lease, attempts=tables.ExportRow.attempts - 1)


def give_up_attempt(session: Session, lease: ExportLease, failure: Failure, *, max_attempts: int) -> None:
    """The child died: let the export be claimed again, or fail it. Raises LeaseLost."""
    attempts = session.scalar(select(tables.ExportRow.attempts).where(tables.ExportRow.id == lease.export_id))
    if attempts is not None and attempts < max_attempts:
        _requeue(session, lease)
    else:
        fail(session, lease, failure)


def find_tokens(session: Session) -> set[str]:
    """The tokens of all exports under way."""
    return _LEASES.find_tokens(session)


def find_resumable(session: Session) -> set[str]:
    """The exports whose merged model may still be of use."""
    states = (ExportState.QUEUED, ExportState.RUNNING, ExportState.FAILED)
    return set(session.scalars(select(tables.ExportRow.id).where(tables.ExportRow.state.in_(states))))


def find_artifacts(session: Session) -> set[str]:
    """The keys of the files of all exports that have any."""
    return {artifact for artifact in session.scalars(select(tables.ExportRow.artifact)) if artifact}


def _requeue(session: Session, lease: ExportLease, **columns: object) -> None:
    free: dict[str, object] = {"state": ExportState.QUEUED, "phase": None, "progress": 0.0}
    _LEASES.update(session, lease.export_id, lease.token, **RELEASED, **free, **columns)


def _end(
    session: Session, lease: ExportLease, state: ExportState, now: datetime | None, **columns: object
) -> None:
    over: dict[str, object] = {"state": state, "phase": None, "finished_at": now or datetime.now(UTC)}
    _LEASES.update(session, lease.export_id, lease.token, **RELEASED, **over, **columns)


def _lost(attempts: int) -> Failure:
    return Failure(
        "worker_lost",
        f"The worker stopped answering during this export, {attempts} times.",
        "Look at the worker's own log; POST /exports/{id}/retry tries again.",
    )
