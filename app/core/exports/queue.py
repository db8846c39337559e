"""The durable queue of exports, as a worker uses it: what it adds to `WorkQueue`. Nothing here commits."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Protocol

from sqlalchemy import ColumnElement, and_, false, not_, or_, select
from sqlalchemy.orm import Session

from app.core.engine import workers
from app.core.exports.results import Agreement, ExportedFile
from app.core.keys import usage
from app.core.keys.usage import Amounts, UsageKey
from app.core.specs.export import ExportSpec, export_spec_adapter
from app.core.specs.states import ExportPhase, ExportState
from app.core.storage import clock, tables
from app.core.work.failures import WorkFailure
from app.core.work.leases import RELEASED, Leases, WorkLease
from app.core.work.queue import WorkQueue


@dataclass(frozen=True)
class ExportLease(WorkLease):
    """A worker's right to run one export. `key_id` is the key that asked for it, or empty."""

    adapter_id: str
    spec: ExportSpec
    adapter_name: str
    key_id: str
    began_at: datetime

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


@dataclass(frozen=True)
class ExportingWorker:
    """What the worker that claims exports can do; other running workers say it in their rows."""

    find_models: Callable[[], Collection[str]]  # the names of those in its models folder
    has_hub_token: Callable[[], bool]
    lease_seconds: float


class OnEnd(Protocol):
    """Called in the transaction that ends an export, with the columns that it sets."""

    def __call__(
        self, session: Session, lease: ExportLease, state: ExportState, columns: Mapping[str, Any]
    ) -> None: ...


class ExportQueue(WorkQueue[tables.ExportRow, ExportLease]):
    """The queue of exports. One that was cancelled or deleted has no lease."""

    leases = Leases(tables.ExportRow, tables.ExportRow.id, "export")
    released_columns: ClassVar[dict[str, Any]] = {"state": ExportState.QUEUED, "phase": None, "progress": 0.0}

    def __init__(self, worker: ExportingWorker | None = None, *, on_end: OnEnd | None = None) -> None:
        """`worker`: what it can't export it leaves to others; None: it can export everything."""
        self._worker = worker
        self._on_end = on_end

    def is_free(self, session: Session, now: datetime) -> ColumnElement[bool]:
        """A condition: the export waits, or its worker was lost, and this worker is one to make it."""
        row = tables.ExportRow
        is_waiting = or_(
            row.state == ExportState.QUEUED,
            and_(row.state == ExportState.RUNNING, row.lease_expires_at < now),
        )
        if self._worker is None:
            return is_waiting
        is_usable = workers.is_usable(row.base_model, self._worker.find_models())
        return and_(is_waiting, is_usable, not_(self._is_for_others(session, self._worker, now)))

    def claimed_columns(self, now: datetime) -> dict[str, Any]:
        """Columns that a claim sets, besides those of the lease."""
        begun = {"state": ExportState.RUNNING, "phase": ExportPhase.PREPARING, "progress": 0.0}
        return begun | {"started_at": now}

    def make_lease(self, session: Session, row: tables.ExportRow, token: str) -> ExportLease:
        """The lease on an export that was just claimed."""
        assert row.started_at is not None
        spec = export_spec_adapter.validate_python(row.spec)
        return ExportLease(row.id, token, row.adapter_id, spec, row.adapter_name, row.key_id, row.started_at)

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

    def _is_for_others(self, session: Session, worker: ExportingWorker, now: datetime) -> ColumnElement[bool]:
        """A condition: the export needs a token for the Hub, which only other running workers have.

        Where none has, any worker takes it and says so.
        """
        if worker.has_hub_token():
            return false()
        alive = workers.find_alive(session, lease_seconds=worker.lease_seconds, role="train", now=now)
        others = [other for other in alive if other.has_hub_token]
        if not others:
            return false()
        row = tables.ExportRow
        models = {str(model["name"]) for other in others for model in other.model_folders}
        return and_(row.spec["format"].as_string() == "hub", workers.is_usable(row.base_model, models))

    def _end(
        self,
        session: Session,
        lease: ExportLease,
        state: ExportState,
        now: datetime | None,
        **columns: Any,
    ) -> None:
        now = now or clock.now(session)
        if self._on_end:
            self._on_end(session, lease, state, columns)
        over: dict[str, object] = {"state": state, "phase": None, "finished_at": now}
        self.leases.update(session, lease, **RELEASED, **over, **columns)
        count_time(session, lease.key_id, lease.adapter_name, lease.began_at, now)

    def _release(self, session: Session, lease: ExportLease, **columns: Any) -> None:
        super()._release(session, lease, **columns)
        count_time(session, lease.key_id, lease.adapter_name, lease.began_at, clock.now(session))


def count_time(session: Session, key_id: str, adapter_name: str, began_at: datetime, now: datetime) -> None:
    """Add the time of an attempt at an export that ends now to what the key has used of the adapter."""
    seconds = max(0.0, (now - began_at).total_seconds())
    key = UsageKey(key_id, now.date(), adapter_name)
    usage.add(session, {key: Amounts(export_seconds=seconds)})


export_queue = ExportQueue()
