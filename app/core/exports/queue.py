"""The durable queue of exports, as a worker uses it: what it adds to `WorkQueue`. Nothing here commits."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy.orm import Session

from app.core.exports.results import Agreement, ExportedFile
from app.core.specs.export import ExportSpec, export_spec_adapter
from app.core.specs.states import ExportPhase, ExportState
from app.core.storage import tables
from app.core.work.failures import WorkFailure
from app.core.work.leases import RELEASED, Leases, WorkLease
from app.core.work.queue import WorkQueue


@dataclass(frozen=True)
class ExportLease(WorkLease):
    """A worker's right to run one export."""

    adapter_id: str
    spec: ExportSpec

    @property
    def export_id(self) -> str:
        """The export's id."""
        return self.key

    @property
    def artifact(self) -> str:
        """The key of this attempt's files: another worker may be running the same export."""
        return f"exports/{self.export_id}/{self.token}"


@dataclass(frozen=True)
class ExportResult:
    """What an export became."""

    files: Sequence[ExportedFile]
    agreement: Agreement
    notes: Sequence[str]
    url: str | None = None


@dataclass(frozen=True)
class ComparedFailure(WorkFailure):
    """Why an export failed, and what the comparison with the live adapter found where it came to one."""

    agreement: Agreement | None = None


class ExportQueue(WorkQueue[tables.ExportRow, ExportLease]):
    """The queue of exports. One that was cancelled or deleted has no lease."""

    leases = Leases(tables.ExportRow, tables.ExportRow.id, "export")
    released_columns: ClassVar[dict[str, Any]] = {"state": ExportState.QUEUED, "phase": None, "progress": 0.0}

    def is_free(self, now: datetime) -> ColumnElement[bool]:
        """A condition: the export waits, or its worker was lost."""
        return or_(
            tables.ExportRow.state == ExportState.QUEUED,
            and_(tables.ExportRow.state == ExportState.RUNNING, tables.ExportRow.lease_expires_at < now),
        )

    def claimed_columns(self, now: datetime) -> dict[str, Any]:
        """Columns that a claim sets, besides those of the lease."""
        begun = {"state": ExportState.RUNNING, "phase": ExportPhase.PREPARING, "progress": 0.0}
        return begun | {"started_at": now}

    def make_lease(self, session: Session, row: tables.ExportRow, token: str) -> ExportLease:
        """The lease on an export that was just claimed."""
        return ExportLease(row.id, token, row.adapter_id, export_spec_adapter.validate_python(row.spec))

    def record(self, session: Session, lease: ExportLease, *, phase: ExportPhase, progress: float) -> None:
        """Record the progress of the export. Raises LeaseLost."""
        self.leases.update(session, lease, phase=phase, progress=progress)

    def finish(
        self, session: Session, lease: ExportLease, result: ExportResult, *, now: datetime | None = None
    ) -> None:
        """End the export as succeeded: its files are in the store, or on the Hub. Raises LeaseLost."""
        self._end(
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
        self, session: Session, lease: ExportLease, failure: WorkFailure, *, now: datetime | None = None
    ) -> None:
        """End the export as failed, with the reason. Raises LeaseLost."""
        error = {"code": failure.code, "message": failure.message, "hint": failure.hint}
        agreement = failure.agreement if isinstance(failure, ComparedFailure) else None
        found = agreement.model_dump(mode="json") if agreement else None
        self._end(session, lease, ExportState.FAILED, now, error=error, agreement=found)

    def explain_loss(self, attempts: int) -> WorkFailure:
        """The failure of an export whose workers were lost so many times."""
        return WorkFailure(
            "worker_lost",
            f"The worker stopped answering during this export, {attempts} times.",
            "Look at the worker's own log; POST /exports/{id}/retry tries again.",
        )

    def find_resumable(self, session: Session) -> set[str]:
        """The exports whose merged model may still be of use."""
        states = (ExportState.QUEUED, ExportState.RUNNING, ExportState.FAILED)
        return set(session.scalars(select(tables.ExportRow.id).where(tables.ExportRow.state.in_(states))))

    def find_artifacts(self, session: Session) -> set[str]:
        """The keys of the files of all exports that have any."""
        return {artifact for artifact in session.scalars(select(tables.ExportRow.artifact)) if artifact}

    def _end(
        self,
        session: Session,
        lease: ExportLease,
        state: ExportState,
        now: datetime | None,
        **columns: object,
    ) -> None:
        over: dict[str, object] = {"state": state, "phase": None, "finished_at": now or datetime.now(UTC)}
        self.leases.update(session, lease, **RELEASED, **over, **columns)


export_queue = ExportQueue()
